//! From slide files to patches: generated pyramids whose pixels are known, and the real slides where they are at hand.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::imageops::crop_imm;
use slide_io::h5::{Coordinates, read_coordinates, write_coordinates};
use slide_io::patch::{SlideGrid, Subset, read_patch};
use slide_io::pyramid::{PyramidSpec, write_pyramid};
use slide_io::thumbnail::{GridColours, draw_grid, thumbnail};
use slide_io::tissue::EmptyReason;
use slide_io::{
    Error, Grid, GridSpec, Mpp, PatchSource, Point, Region, Rgb, RgbImage, Size, Slide, SlidePatches, TissueMask,
    TissueParams,
};

/// A section drawn on glass: a smooth ramp of stain inside a rectangle, so that JPEG changes little.
fn section(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let inside = (width / 4..width * 3 / 4).contains(&x) && (height / 4..height * 3 / 4).contains(&y);
        if !inside {
            return Rgb([242, 241, 242]);
        }
        let (u, v) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        Rgb([(230.0 - 60.0 * u) as u8, (110.0 + 60.0 * v) as u8, (190.0 - 30.0 * u) as u8])
    })
}

fn write(path: &Path, image: &RgbImage, mpp: f64) {
    let spec = PyramidSpec { quality: 95, levels: vec![1, 4], mpp: Some(Mpp(mpp)), ..PyramidSpec::default() };
    write_pyramid(path, image, &spec).unwrap();
}

fn tiled(slide: &Slide, mpp: Mpp, spec: &GridSpec) -> (TissueMask, Grid) {
    let mask = TissueMask::compute(slide, mpp, &TissueParams::default()).unwrap();
    let grid = Grid::new(slide.size(), mpp, spec, &mask).unwrap();
    (mask, grid)
}

#[test]
fn a_drawn_section_is_found_cut_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tiff");
    write(&path, &section(4000, 3000), 0.4863);
    let slide = Slide::open(&path).unwrap();
    let mpp = slide.mpp().unwrap();
    assert!((mpp.0 - 0.4863).abs() < 1e-6, "{mpp}");
    let spec = GridSpec { size: 128, stride: 128, ..GridSpec::default() };
    let (mask, grid) = tiled(&slide, mpp, &spec);
    assert!((mask.share() - 0.25).abs() < 0.01, "{}", mask.share());
    assert_eq!(grid.kept() + grid.dropped.len(), grid.candidates);
    // Kept are exactly those of which at least half lies in the rectangle that was drawn.
    let side = grid.side_level0;
    let covered =
        |start: i64, from: f64, to: f64| ((start as f64 + side).min(to) - (start as f64).max(from)).max(0.0) / side;
    let share = |p: &Point| covered(p.x, 1000.0, 3000.0) * covered(p.y, 750.0, 2250.0);
    let all = Grid::new(slide.size(), mpp, &GridSpec { min_tissue: 0.0, ..spec.clone() }, &mask).unwrap();
    assert_eq!(all.kept(), all.candidates);
    for origin in all.origins.iter().filter(|p| (share(p) - 0.5).abs() > 0.1) {
        assert_eq!(grid.origins.contains(origin), share(origin) > 0.5, "at {origin:?}, share {}", share(origin));
    }
    // Away from its edges the ramp must come back where it was drawn; JPEG and truncation cost less than 3 levels.
    let ratio = spec.ratio(mpp);
    let mut compared = 0;
    for origin in grid.origins.iter().filter(|p| share(p) > 0.999) {
        let patch = read_patch(&slide, mpp, *origin, &spec).unwrap();
        for (i, j, pixel) in patch.enumerate_pixels().filter(|p| p.0 % 37 == 5 && p.1 % 29 == 3) {
            let u = (origin.x as f64 + (f64::from(i) + 0.5) * ratio) / 4000.0;
            let v = (origin.y as f64 + (f64::from(j) + 0.5) * ratio) / 3000.0;
            for (got, drawn) in pixel.0.into_iter().zip([230.0 - 60.0 * u, 110.0 + 60.0 * v, 190.0 - 30.0 * u]) {
                assert!((f64::from(got) - drawn).abs() < 3.0, "{got} for {drawn} at {origin:?} + ({i}, {j})");
            }
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared}");
    // The coordinates file says all that is needed to read the same patches again.
    let file = folder.path().join("s_patches.h5");
    let coordinates = Coordinates::new("s", slide.levels(), mpp, &grid);
    match write_coordinates(&file, &coordinates, &serde_json::json!({"stage": "tile"})) {
        Err(Error::Unsupported { .. }) => eprintln!("skipped: this build has no HDF5"),
        written => {
            written.unwrap();
            let read = read_coordinates(&file).unwrap();
            assert_eq!(read, coordinates);
            let again = read.geometry.unwrap().spec(mpp);
            let patch = |spec| read_patch(&slide, mpp, grid.origins[0], spec).unwrap();
            assert_eq!(patch(&again), patch(&spec));
        }
    }
}

#[test]
fn a_patch_at_the_scale_of_a_level_is_that_level() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tiff");
    write(&path, &section(2048, 2048), 0.25);
    let slide = Slide::open(&path).unwrap();
    for (mpp, level, downsample) in [(0.25, 0, 1i64), (1.0, 1, 4)] {
        let spec = GridSpec { mpp: Mpp(mpp), size: 200, stride: 200, min_tissue: 0.0 };
        let origin = Point::new(96 * downsample, 52 * downsample);
        let patch = read_patch(&slide, Mpp(0.25), origin, &spec).unwrap();
        assert_eq!(patch, slide.read(&Region { level, origin, size: Size::square(200) }).unwrap());
    }
}

#[test]
fn a_single_level_slide_gives_the_same_mask() {
    let folder = tempfile::tempdir().unwrap();
    let image = section(3000, 2000);
    let share = |levels: Vec<u32>| {
        let path = folder.path().join("s.tiff");
        write_pyramid(&path, &image, &PyramidSpec { levels, mpp: Some(Mpp(0.5)), ..PyramidSpec::default() }).unwrap();
        TissueMask::compute(&Slide::open(&path).unwrap(), Mpp(0.5), &TissueParams::default()).unwrap().share()
    };
    let (pyramid, flat) = (share(vec![1, 4, 16]), share(vec![1]));
    assert!((pyramid - flat).abs() < 0.002, "{pyramid} {flat}");
}

#[test]
fn many_threads_and_many_slides_read_the_same_patches() {
    let folder = tempfile::tempdir().unwrap();
    // More slides than are kept open at a time.
    let grids: Vec<SlideGrid> = (0..40u8)
        .map(|i| {
            let path = folder.path().join(format!("{i}.tiff"));
            write(&path, &RgbImage::from_pixel(300, 200, Rgb([i * 5, 200 - i * 2, 90])), 0.5);
            let origins = vec![Point::new(0, 0), Point::new(130, 60)];
            let spec = GridSpec { mpp: Mpp(0.6), size: 64, ..GridSpec::default() };
            SlideGrid { id: i.to_string(), path, mpp: Mpp(0.5), label: Some(u32::from(i % 2)), spec, origins }
        })
        .collect();
    let patches = SlidePatches::new(grids, vec!["even".into(), "odd".into()]).unwrap();
    assert_eq!(patches.len(), 80);
    let alone: Vec<RgbImage> = (0..80).map(|i| patches.read(i).unwrap().image).collect();
    for (i, image) in alone.iter().enumerate() {
        let slide = i as u8 / 2;
        let centre = image.get_pixel(32, 32).0;
        assert!(centre[0].abs_diff(slide * 5) <= 3 && centre[1].abs_diff(200 - slide * 2) <= 3, "{i}: {centre:?}");
    }
    let shared: Arc<SlidePatches> = Arc::new(patches);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (shared, alone) = (Arc::clone(&shared), &alone);
            scope.spawn(move || {
                for i in (0..80).map(|k| (k * 37 + thread * 11) % 80) {
                    let patch = shared.read(i).unwrap();
                    assert_eq!((&patch.image, patch.label), (&alone[i], Some(i as u32 / 2 % 2)));
                    assert_eq!(patch.key, shared.key(i));
                }
            });
        }
    });
    let odd: Vec<usize> = (0..80).filter(|&i| shared.label(i) == Some(1)).collect();
    let odd = Subset::new(shared, odd).unwrap();
    assert_eq!((odd.len(), odd.read(3).unwrap().key.item.as_str()), (40, "3"));
}

#[test]
fn a_missing_slide_is_an_error_with_its_name() {
    let grid = SlideGrid {
        id: "gone".into(),
        path: PathBuf::from("no/such/gone.svs"),
        mpp: Mpp(0.5),
        label: None,
        spec: GridSpec::default(),
        origins: vec![Point::new(0, 0)],
    };
    let error = SlidePatches::new(vec![grid], vec![]).unwrap().read(0).unwrap_err();
    assert!(error.to_string().contains("gone.svs"), "{error}");
}

/// A folder of the shared data; `None`, with the reason printed, where it is not at hand.
fn data(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if !folder.is_dir() {
        eprintln!("skipped: {} is not at hand", folder.display());
        return None;
    }
    Some(folder)
}

/// A real slide, and what must come out of it at 0.5 µm/px and 128 px: the range of the share of tissue (as seen on its
/// thumbnail, loosely), the range of patches kept, and why there are none.
type Expected = (&'static str, [f64; 2], [usize; 2], Option<EmptyReason>);

const REAL: [Expected; 9] = [
    ("slides/CMU-1-Small-Region.svs", [0.2, 0.6], [60, 250], None),
    ("slides/TCGA-CR-7395-01A-01-TS1.svs", [0.5, 0.95], [100, 900], None),
    ("slides/pathml-small_HE_levels.tiff", [0.0, 1.0], [0, 10], None),
    ("slides/slideio-test3-DAPI.ndpi", [0.0, 0.0], [0, 0], Some(EmptyReason::DarkBackground)),
    ("slides_derived/bcnb_351899_Npos3_aperio240_noMPP.svs", [0.001, 0.3], [0, 120], None),
    ("slides_derived/bcnb_351899r0_Npos3_panda512.tiff", [0.2, 0.7], [150, 800], None),
    ("slides_derived/bcnb_351899r1_Npos3_aperio240.svs", [0.2, 0.7], [150, 600], None),
    ("slides_derived/bcnb_590960_Npos1-2_panda512.tiff", [0.05, 0.5], [60, 700], None),
    ("slides_derived/oral_normal400x_j2k33003.svs", [0.6, 1.0], [10, 200], None),
];

#[test]
fn every_real_slide_is_tiled_or_refused_with_a_reason() {
    let Some(root) = data("") else { return };
    let spec = GridSpec { size: 128, stride: 128, ..GridSpec::default() };
    for (file, shares, counts, empty) in &REAL {
        let name = file.rsplit('/').next().unwrap();
        let slide = match Slide::open(root.join(file)) {
            Ok(slide) => slide,
            // Vendor formats need libopenslide; a refusal must name the file.
            Err(error) => {
                println!("{file:58} refused: {error}");
                assert!(error.to_string().contains(name), "{error}");
                continue;
            }
        };
        let mpp = slide.mpp().unwrap_or(Mpp(0.5));
        let (mask, grid) = tiled(&slide, mpp, &spec);
        println!(
            "{file:58} {}x{} {mpp}{} tissue {:5.1} % (threshold {:2}) patches {} of {}{}",
            slide.size().width,
            slide.size().height,
            if slide.mpp().is_none() { " (assumed)" } else { "" },
            100.0 * mask.share(),
            mask.threshold(),
            grid.kept(),
            grid.candidates,
            mask.empty_reason().map(|reason| format!(": {reason}")).unwrap_or_default()
        );
        assert!((shares[0]..=shares[1]).contains(&mask.share()), "{file}: {}", mask.share());
        assert!((counts[0]..=counts[1]).contains(&grid.kept()), "{file}: {}", grid.kept());
        if empty.is_some() {
            assert_eq!(mask.empty_reason(), *empty, "{file}");
        }
        for origin in grid.origins.first().into_iter().chain(grid.origins.last()) {
            let patch = read_patch(&slide, mpp, *origin, &spec).unwrap();
            assert_eq!(patch.dimensions(), (128, 128));
            // A kept patch is no glass: its pixels differ.
            let (low, high) = patch.iter().fold((255, 0), |(low, high), &v| (v.min(low), v.max(high)));
            assert!(high - low > 30, "{file} at {origin:?}");
        }
        let mut picture = thumbnail(&slide, 400).unwrap();
        assert!(picture.width().max(picture.height()) <= 400);
        let before = picture.clone();
        draw_grid(&mut picture, slide.size(), Some(&mask), &grid, &GridColours::default());
        assert_eq!(picture != before, mask.share() > 0.0);
        if let Some(folder) = std::env::var_os("GENSIS_PICTURES") {
            picture.save(Path::new(&folder).join(format!("{name}.png"))).unwrap();
        }
    }
    assert!(Slide::open(root.join("slides/negative/histolab-broken.svs")).is_err());
}

#[test]
fn a_patch_of_a_real_slide_agrees_with_its_level_0() {
    let Some(root) = data("slides_derived") else { return };
    let slide = Slide::open(root.join("bcnb_351899r0_Npos3_panda512.tiff")).unwrap();
    let mpp = slide.mpp().unwrap();
    // At 2.1 times level 0 the patch comes from level 0; compare the mean colour of its area with level 0's own.
    let spec = GridSpec { mpp: Mpp(mpp.0 * 2.1), size: 100, ..GridSpec::default() };
    let (_, grid) = tiled(&slide, mpp, &spec);
    let origin = grid.origins[grid.kept() / 2];
    let patch = read_patch(&slide, mpp, origin, &spec).unwrap();
    let level0 = slide.read(&Region { level: 0, origin, size: Size::square(210) }).unwrap();
    let mean = |image: &RgbImage, c: usize| {
        image.pixels().map(|p| f64::from(p[c])).sum::<f64>() / f64::from(image.width() * image.height())
    };
    for c in 0..3 {
        // The filter reaches a few pixels over the border of the area: a grey level at most.
        assert!((mean(&patch, c) - mean(&level0, c)).abs() < 1.0);
    }
    // Every tenth of it too, so that a shift or a flip cannot hide: 10 px are 21 level-0 px.
    for k in 0..10 {
        let small = crop_imm(&patch, k * 10, 50, 10, 10).to_image();
        let large = crop_imm(&level0, k * 21, 105, 21, 21).to_image();
        for c in 0..3 {
            assert!((mean(&small, c) - mean(&large, c)).abs() < 6.0, "part {k}");
        }
    }
}
