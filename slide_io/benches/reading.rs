//! How fast patches come out of a slide. `benches/compare.py` runs it beside other readers.
//!
//! ```text
//! cargo bench -p slide_io --bench reading -- make SOURCE.svs OUT_FOLDER   slides of 20,000 x 20,000 px of real tissue
//! cargo bench -p slide_io --bench reading -- read SLIDE...                patches/s, one line of JSON a measurement
//! cargo bench -p slide_io --bench reading -- random SLIDE OUT_FOLDER      patches/s in random order: from the slide, packed
//! ```

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use slide_io::jpeg::ColorModel;
use slide_io::pack::{self, PackedPatches, PackedSlide};
use slide_io::patch::{SlideGrid, read_patch};
use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::{
    Grid, GridSpec, Mpp, PatchSource, Region, Rgb, RgbImage, Size, Slide, SlidePatches, TissueMask, TissueParams, Walk,
};
use tiff::tags::Tag;

/// Side of the slides that are made, px.
const SIDE: u32 = 20_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let paths = || arguments[1..].iter().map(PathBuf::from);
    match arguments.first().map(String::as_str) {
        Some("make") if arguments.len() == 3 => make(Path::new(&arguments[1]), Path::new(&arguments[2])),
        Some("random") if arguments.len() == 3 => random(Path::new(&arguments[1]), Path::new(&arguments[2])),
        Some("read") => paths().for_each(|path| read(&path)),
        // `cargo test --benches` and a bare `cargo bench` come here.
        _ => eprintln!("give `make SOURCE OUT`, `read SLIDE...` or `random SLIDE OUT`; see benches/compare.py"),
    }
}

/// Repeats the pixels of a real slide, every second copy mirrored so that no seam shows.
fn make(source: &Path, out: &Path) {
    let source = Slide::open(source).expect("the source opens");
    let Size { width, height } = source.size();
    let region = Region { level: 0, origin: slide_io::Point::new(0, 0), size: source.size() };
    let pixels = source.read(&region).expect("the source can be read");
    let fold =
        |at: u32, length: u32| if (at / length).is_multiple_of(2) { at % length } else { length - 1 - at % length };
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| *pixels.get_pixel(fold(x, width), fold(y, height)));
    let panda = PyramidSpec { mpp: Some(Mpp(0.5)), ..PyramidSpec::default() };
    // CMU-1-Small-Region was scanned with Q=30, later scanners take 70.
    let aperio = |quality: u8| PyramidSpec {
        tile: 240,
        quality,
        description: Some(format!(
            "Aperio Image Library v11.2.1\r\n(240x240) JPEG/RGB Q={quality}|AppMag = 20|MPP = 0.5"
        )),
        color: ColorModel::Rgb,
        mpp: None,
        ..PyramidSpec::default()
    };
    let flat = PyramidSpec { levels: vec![1], ..panda.clone() };
    let aperio_like = [("aperio_like.svs", aperio(70)), ("aperio_like_q30.svs", aperio(30))];
    for (name, spec) in [("panda_like.tiff", panda), ("one_level.tiff", flat)].into_iter().chain(aperio_like) {
        write_pyramid(out.join(name), &image, &spec).expect("the slide can be written");
        println!("{}", out.join(name).display());
    }
}

fn read(path: &Path) {
    let slide = Slide::open(path).expect("the slide opens");
    let native = slide.mpp().unwrap_or(Mpp(0.5));
    let full = TissueMask::full(slide.size());
    let spec = |mpp: f64| GridSpec { mpp: Mpp(mpp), min_tissue: 0.0, ..GridSpec::default() };
    let grid = |spec: &GridSpec| Grid::new(slide.size(), native, spec, &full).expect("a grid fits");
    let level0 = grid(&spec(native.0));
    if let Some((tiles, seconds)) = raw(path) {
        let side = f64::from(slide.properties()["openslide.level[0].tile-width"].parse::<u32>().expect("a number"));
        // As patches of 256 px a second, to compare with those below.
        report(path, "raw limit: libjpeg-turbo alone", 1, ((tiles as f64 * side * side / 65536.0) as usize, seconds));
    }
    for threads in [1, 2] {
        report(path, "patches of level 0", threads, patches(path, native, &level0, threads));
    }
    for factor in [2.0, 4.0, 8.0] {
        let coarser = grid(&spec(native.0 * factor));
        report(path, &format!("patches at {factor} times its µm/px"), 1, patches(path, native, &coarser, 1));
    }
    let start = Instant::now();
    let fresh = Slide::open(path).expect("the slide opens");
    let mask = TissueMask::compute(&fresh, native, &TissueParams::default()).expect("a mask");
    let cut = Grid::new(fresh.size(), native, &GridSpec { mpp: native, ..GridSpec::default() }, &mask).expect("a grid");
    report(path, "open, tissue mask and grid (slides)", 0, (1, start.elapsed().as_secs_f64()));
    assert!(cut.kept() > 0);
}

/// Random order, as training reads: straight from the slide, and from its packed patches, at level 0's own scale (where
/// patches may be stored tiles) and at 1.1 times it (where every patch is resampled and encoded).
fn random(path: &Path, out: &Path) {
    let slide = Slide::open(path).expect("the slide opens");
    let native = slide.mpp().unwrap_or(Mpp(0.5));
    for factor in [1.0, 1.1] {
        let spec = GridSpec { mpp: Mpp(native.0 * factor), min_tissue: 0.0, ..GridSpec::default() };
        let grid = Grid::new(slide.size(), native, &spec, &TissueMask::full(slide.size())).expect("a grid fits");
        let cut = SlideGrid {
            id: "slide".into(),
            path: path.to_owned(),
            mpp: native,
            label: None,
            spec: spec.clone(),
            origins: grid.origins.clone(),
        };
        let tar = out.join(format!("packed_{factor}.tar"));
        let start = Instant::now();
        let index = pack::write(&tar, ("slide", &slide, native), (&spec, &grid.origins), 90, &serde_json::Value::Null);
        let index = index.expect("the patches are packed");
        let what = format!("packing at {factor} times its µm/px ({} copied, {} MB)", index.copied, index.bytes >> 20);
        report(path, &what, 2, (grid.kept(), start.elapsed().as_secs_f64()));
        let packed = PackedSlide { id: "slide".into(), tar, label: None, patches: index.patches };
        let straight = SlidePatches::new(vec![cut], vec![]).expect("patches");
        let packed = PackedPatches::new(vec![packed], vec![]).expect("patches");
        // A step that shares no factor with the number of patches visits all of them, far from each other.
        let count = grid.kept();
        let step = (count * 618 / 1000..).find(|&step| gcd(step, count) == 1).expect("there is one");
        let order: Vec<usize> = (0..count).map(|place| place * step % count).collect();
        for threads in [1, 2] {
            for (from, source) in [("the slide", &straight as &dyn PatchSource), ("the pack", &packed)] {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for part in order.chunks(count.div_ceil(threads)) {
                        scope.spawn(move || {
                            for &index in part {
                                let patch = source.read(index).expect("a patch");
                                assert_ne!(patch.image.get_pixel(0, 0), &Rgb([1, 2, 3]));
                            }
                        });
                    }
                });
                let what = format!("random patches from {from} at {factor} times its µm/px");
                report(path, &what, threads, (count, start.elapsed().as_secs_f64()));
            }
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Every stored tile of level 0 through libjpeg-turbo into one buffer, with colour conversion: (tiles, seconds). Only of
/// JPEG tiles with tables apart.
fn raw(path: &Path) -> Option<(usize, f64)> {
    let file = std::fs::File::open(path).expect("the slide opens");
    let mut decoder = tiff::decoder::Decoder::new(std::io::BufReader::new(&file)).expect("a TIFF");
    let offsets = decoder.get_tag_u64_vec(Tag::TileOffsets).expect("tiles");
    let lengths = decoder.get_tag_u64_vec(Tag::TileByteCounts).expect("tiles");
    let tables = decoder.get_tag_u8_vec(Tag::JPEGTables).ok()?;
    let transform = u8::from(decoder.get_tag_u32(Tag::PhotometricInterpretation).expect("a colour model") == 6);
    let mut head = [&tables[..2], b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0", &[transform]].concat();
    head.extend(&tables[2..tables.len() - 2]);
    let mut jpeg = turbojpeg::Decompressor::new().expect("a decompressor");
    let mut pixels = vec![0; 4096 * 4096 * 3];
    let start = Instant::now();
    let mut stream = Vec::new();
    for (&offset, &length) in offsets.iter().zip(&lengths) {
        stream.clone_from(&head);
        stream.resize(head.len() + length as usize - 2, 0);
        file.read_exact_at(&mut stream[head.len()..], offset + 2).expect("a tile");
        let header = jpeg.read_header(&stream).expect("a JPEG");
        let (width, height, format) = (header.width, header.height, turbojpeg::PixelFormat::RGB);
        let target = turbojpeg::Image { pixels: &mut pixels[..], width, pitch: 3 * width, height, format };
        jpeg.decompress(&stream, target).expect("pixels");
    }
    Some((offsets.len(), start.elapsed().as_secs_f64()))
}

/// Reads all patches of a fresh slide, each thread a part of its own; (patches, seconds).
fn patches(path: &Path, native: Mpp, grid: &Grid, threads: usize) -> (usize, f64) {
    let start = Instant::now();
    let slide = Slide::open(path).expect("the slide opens");
    let (slide, walk) = (&slide, &Walk::new(&slide, native, &grid.spec, &grid.origins));
    let order = walk.order();
    std::thread::scope(|scope| {
        for part in order.chunks(order.len().div_ceil(threads)) {
            scope.spawn(move || {
                for &index in part {
                    let patch = read_patch(slide, native, grid.origins[index], &grid.spec).expect("a patch");
                    walk.done(slide, index);
                    assert_ne!(patch.get_pixel(0, 0), &Rgb([1, 2, 3]));
                }
            });
        }
    });
    (grid.kept(), start.elapsed().as_secs_f64())
}

fn report(path: &Path, what: &str, threads: usize, (count, seconds): (usize, f64)) {
    let slide = path.file_name().expect("a file").to_string_lossy();
    let per_second = count as f64 / seconds;
    println!(
        "{{\"slide\": \"{slide}\", \"what\": \"{what}\", \"threads\": {threads}, \"count\": {count}, \"per_second\": {per_second:.1}}}"
    );
}
