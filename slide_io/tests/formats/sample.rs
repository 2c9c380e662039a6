//! Slides to test with: drawn ones, and the real ones where they are at hand.

use std::path::{Path, PathBuf};

use slide_io::jpeg::ColorModel;
use slide_io::pyramid::PyramidSpec;
use slide_io::{Mpp, Point, Region, Rgb, RgbImage, Size};

/// Seeded random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `from` to just below `to`.
    pub fn range(&mut self, from: i64, to: i64) -> i64 {
        from + (self.next() % (to - from) as u64) as i64
    }
}

/// Pink stroma with dark round nuclei and grain: edges in all directions, as chroma upsampling needs for a test.
pub fn tissue(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut random = Random(seed);
    let mut image = RgbImage::from_fn(width, height, |x, y| {
        let wave = ((x as f32 / 37.0).sin() + (y as f32 / 53.0).cos()) * 18.0;
        let grain = (random.next() % 17) as f32;
        Rgb([215.0 + wave / 2.0 + grain, 150.0 + wave + grain, 195.0 + wave / 3.0 + grain].map(|v| v.min(255.0) as u8))
    });
    for _ in 0..width * height / 900 {
        let (x, y, r) = (random.range(0, width.into()), random.range(0, height.into()), random.range(3, 9));
        for (dx, dy) in (-r..=r).flat_map(|dx| (-r..=r).map(move |dy| (dx, dy))).filter(|(x, y)| x * x + y * y <= r * r)
        {
            let (x, y) = (x + dx, y + dy);
            if (0..i64::from(width)).contains(&x) && (0..i64::from(height)).contains(&y) {
                image.put_pixel(x as u32, y as u32, Rgb([88, 52, 140]));
            }
        }
    }
    image
}

/// PANDA's layout.
pub fn panda() -> PyramidSpec {
    PyramidSpec { mpp: Some(Mpp(0.4863)), ..PyramidSpec::default() }
}

/// Aperio's layout: small tiles of RGB components.
pub fn aperio() -> PyramidSpec {
    let description = "Aperio Image Library v11.2.1\r\n(240x240) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990".to_owned();
    let (color, levels) = (ColorModel::Rgb, vec![1, 4]);
    PyramidSpec { tile: 240, levels, description: Some(description), color, ..PyramidSpec::default() }
}

/// The real slides, sorted; none (and a word about it) where their folder is absent.
pub fn real_files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    if !root.is_dir() {
        eprintln!("skipped: no folder of real slides beside the repository (shared/data)");
        return Vec::new();
    }
    let mut files = Vec::new();
    for folder in ["slides", "slides/negative", "slides_derived"] {
        let entries = std::fs::read_dir(root.join(folder)).expect("the folder is listed");
        files.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    }
    files.sort();
    files
}

/// The formats that read TIFFs.
pub fn tiff_readers() -> impl Iterator<Item = &'static slide_io::format::Format> {
    slide_io::format::FORMATS.iter().filter(|format| format.name != "image")
}

pub fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

pub fn region(level: usize, x: i64, y: i64, width: u32, height: u32) -> Region {
    Region { level, origin: Point::new(x, y), size: Size::new(width, height) }
}
