use std::sync::atomic::{AtomicUsize, Ordering};

use image::Rgb;
use proptest::prelude::*;

use super::*;
use crate::slide::HALVING_MARGIN;

/// A level of a slide whose level 0 has the linear colour field `field`, seen through pixels of `downsample`: the mean of
/// a linear field over a pixel is its value at the pixel's centre.
fn gradient(level: &Level, x: i64, y: i64, size: Size) -> RgbImage {
    RgbImage::from_fn(size.width, size.height, |i, j| {
        let (i, j) = (x + i64::from(i), y + i64::from(j));
        if i < 0 || j < 0 || i >= i64::from(level.size.width) || j >= i64::from(level.size.height) {
            return Rgb([255; 3]);
        }
        let centre = |k: i64| (k as f64 + 0.5) * level.downsample;
        let v = field(centre(i), centre(j));
        Rgb(v.map(|v| v.round() as u8))
    })
}

fn field(x: f64, y: f64) -> [f64; 3] {
    [20.0 + x / 24.0, 230.0 - y / 24.0, 30.0 + (x + y) / 50.0]
}

/// Reads a patch of the gradient slide (4000 level-0 px) and returns its largest error in grey levels.
fn worst(downsample: f64, origin: Point, ratio: f64, size: u32) -> f64 {
    let level = Level { size: Size::square((4000.0 / downsample).round() as u32), downsample };
    let patch = resampled(&level, origin, ratio, size, |x, y, s| Ok(gradient(&level, x, y, s))).unwrap();
    assert_eq!(patch.dimensions(), (size, size));
    let mut worst: f64 = 0.0;
    for (i, j, pixel) in patch.enumerate_pixels() {
        let expected =
            field(origin.x as f64 + (f64::from(i) + 0.5) * ratio, origin.y as f64 + (f64::from(j) + 0.5) * ratio);
        for (got, expected) in pixel.0.into_iter().zip(expected) {
            worst = worst.max((f64::from(got) - expected).abs());
        }
    }
    worst
}

#[test]
fn pixel_centres_are_exact_on_a_gradient() {
    // The gradient is quantised once on the level and once in the patch: at most 0.5 grey levels each. A shift by half a
    // patch pixel at ratio 8.3 would cost 0.17 grey levels in each axis, so the mean error is tested too, below.
    for (downsample, ratio) in [(1.0, 1.028), (1.0, 2.0), (4.0005, 8.3), (4.0, 4.5), (16.006, 16.1), (1.0, 0.7)] {
        let error = worst(downsample, Point::new(1003, 511), ratio, 64);
        assert!(error < 1.0, "{error} at downsample {downsample}, ratio {ratio}");
    }
}

#[test]
fn there_is_no_shift_of_a_fraction_of_a_pixel() {
    // A steep ramp: 3 grey levels per patch pixel, so that a shift of half a pixel is 1.5. Mean errors must vanish.
    let (downsample, ratio, size) = (2.0, 3.3, 60);
    let level = Level { size: Size::square(500), downsample };
    let value = |x: f64| 10.0 + x * 3.0 / ratio;
    let origin = Point::new(13, 7);
    let read = |x: i64, _y: i64, s: Size| {
        Ok(RgbImage::from_fn(s.width, s.height, |i, _| {
            Rgb([(value((x as f64 + f64::from(i) + 0.5) * downsample) - value(13.0) + 10.0).round() as u8; 3])
        }))
    };
    let patch = resampled(&level, origin, ratio, size, read).unwrap();
    let mean: f64 =
        (2..size - 2).map(|i| f64::from(patch.get_pixel(i, 30)[0]) - (10.0 + (f64::from(i) + 0.5) * 3.0)).sum::<f64>()
            / f64::from(size - 4);
    assert!(mean.abs() < 0.1, "shifted by {} px", mean / 3.0);
}

#[test]
fn a_level_of_the_right_scale_is_copied_unchanged() {
    for (downsample, origin, ratio) in [(1.0, (5, 9), 1.0), (4.0, (40, 44), 4.0), (1.0, (5, 9), 1.0 + 1e-8)] {
        let level = Level { size: Size::square(300), downsample };
        let source = RgbImage::from_fn(300, 300, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x ^ y) as u8]));
        let reads = AtomicUsize::new(0);
        let patch = resampled(&level, Point::new(origin.0, origin.1), ratio, 32, |x, y, size| {
            reads.fetch_add(1, Ordering::Relaxed);
            assert_eq!(size, Size::square(32), "nothing but the patch is read");
            Ok(image::imageops::crop_imm(&source, x as u32, y as u32, size.width, size.height).to_image())
        })
        .unwrap();
        let (x, y) = (origin.0 as u32 / downsample as u32, origin.1 as u32 / downsample as u32);
        assert_eq!(patch, image::imageops::crop_imm(&source, x, y, 32, 32).to_image());
        assert_eq!(reads.into_inner(), 1);
    }
}

#[test]
fn the_same_scale_between_pixels_is_resampled() {
    // Level-0 pixel 2 is half a pixel of a level of downsample 4: the ramp must come out half a step on.
    let level = Level { size: Size::square(100), downsample: 4.0 };
    let read =
        |x: i64, _: i64, s: Size| Ok(RgbImage::from_fn(s.width, s.height, |i, _| Rgb([(x as u8 + i as u8) * 2; 3])));
    let patch = resampled(&level, Point::new(42, 40), 4.0, 16, read).unwrap();
    assert_eq!(patch.get_pixel(5, 5)[0], (10 + 5) * 2 + 1);
}

#[test]
fn the_border_of_the_slide_does_not_bleed_in() {
    // A dark slide: white from outside would show in the patches at its four corners, also where the level is rounded down.
    for (downsample, side, ratio) in [(1.0, 100u32, 2.5), (4.0, 100, 5.0), (4.02, 99, 5.0)] {
        let level = Level { size: Size::square(side), downsample };
        let read = |x: i64, y: i64, s: Size| {
            Ok(RgbImage::from_fn(s.width, s.height, |i, j| {
                let inside = |k: i64| (0..i64::from(side)).contains(&k);
                Rgb([if inside(x + i64::from(i)) && inside(y + i64::from(j)) { 40 } else { 255 }; 3])
            }))
        };
        let full = if downsample == 4.02 { 400.0 } else { f64::from(side) * downsample };
        let last = (full - ratio * 16.0).floor() as i64;
        for origin in [Point::new(0, 0), Point::new(last, 0), Point::new(last, last)] {
            let patch = resampled(&level, origin, ratio, 16, read).unwrap();
            assert!(patch.iter().all(|&v| v == 40), "at {origin:?}, downsample {downsample}");
        }
    }
}

#[test]
fn what_lies_outside_the_slide_is_white() {
    let level = Level { size: Size::square(100), downsample: 1.0 };
    let read = |x: i64, y: i64, s: Size| {
        Ok(RgbImage::from_fn(s.width, s.height, |i, j| {
            let inside = |k: i64| (0..100).contains(&k);
            Rgb([if inside(x + i64::from(i)) && inside(y + i64::from(j)) { 40 } else { 255 }; 3])
        }))
    };
    let patch = resampled(&level, Point::new(-32, 60), 2.0, 32, read).unwrap();
    assert_eq!(patch.get_pixel(8, 8)[0], 255);
    assert_eq!(patch.get_pixel(24, 8)[0], 40);
    assert_eq!(patch.get_pixel(24, 28)[0], 255);
    assert!(resampled(&level, Point::new(5000, 5000), 2.0, 8, read).unwrap().iter().all(|&v| v == 255));
}

#[test]
fn the_nearest_finer_level_is_read() {
    let levels: Vec<Level> =
        [1.0, 4.0005, 16.006].map(|downsample| Level { size: Size::square(10), downsample }).into();
    for (downsample, expected) in [(0.5, 0), (1.0, 0), (1.03, 0), (3.9, 0), (4.0, 1), (5.0, 1), (16.0, 2), (99.0, 2)] {
        assert_eq!(coarsest_level(&levels, downsample), expected, "for {downsample}");
    }
}

fn grid(id: &str, count: i64, label: Option<u32>) -> SlideGrid {
    SlideGrid {
        id: id.into(),
        path: PathBuf::from(format!("{id}.svs")),
        mpp: Mpp(0.5),
        label,
        spec: GridSpec::default(),
        origins: (0..count).map(|i| Point::new(i * 256, 0)).collect(),
    }
}

#[test]
fn a_flat_index_finds_slide_and_patch() {
    let slides = vec![grid("a", 2, Some(1)), grid("none", 0, Some(0)), grid("b", 3, None)];
    let patches = SlidePatches::new(slides, vec!["x".into(), "y".into()]).unwrap();
    assert_eq!(patches.len(), 5);
    let keys: Vec<_> =
        (0..5).map(|i| (patches.key(i).item, patches.key(i).origin.unwrap().x, patches.label(i))).collect();
    let expected = [("a", 0, Some(1)), ("a", 256, Some(1)), ("b", 0, None), ("b", 256, None), ("b", 512, None)];
    assert_eq!(keys, expected.map(|(id, x, label)| (id.to_owned(), x, label)));
    assert_eq!((patches.range(0), patches.range(1), patches.range(2)), (0..2, 2..2, 2..5));
    assert!(SlidePatches::new(vec![], vec![]).unwrap().is_empty());
    assert!(SlidePatches::new(vec![grid("a", 1, Some(0))], vec![]).is_err());
}

#[test]
fn a_subset_is_the_patches_it_names() {
    let all: Arc<dyn PatchSource> = Arc::new(SlidePatches::new(vec![grid("a", 4, None)], vec![]).unwrap());
    let some = Subset::new(Arc::clone(&all), vec![3, 1]).unwrap();
    assert_eq!((some.len(), some.key(0), some.key(1)), (2, all.key(3), all.key(1)));
    assert!(Subset::new(all, vec![4]).is_err());
    assert!(some.slide_ends().is_empty(), "its order is not the slides'");
    let slides = vec![grid("a", 2, None), grid("b", 3, None), grid("c", 1, None)];
    let left = Subset::new(Arc::new(SlidePatches::new(slides, vec![]).unwrap()), vec![0, 1, 5]).unwrap();
    assert_eq!((left.slide_ends(), left.prefers_few_slides()), (&[2, 3][..], true));
}

#[test]
fn errors_say_where() {
    let error = at(Error::bad("s.svs", "tile 7 is cut short"), Point::new(512, -3)).to_string();
    assert_eq!(error, "s.svs: the file is damaged: tile 7 is cut short (patch at level-0 (512, -3))");
    let error = at(Error::io("s.svs", std::io::ErrorKind::NotFound.into()), Point::new(1, 2)).to_string();
    assert!(error.starts_with("s.svs: ") && error.ends_with("(patch at level-0 (1, 2))"), "{error}");
}

#[test]
fn open_slides_are_bounded_shared_and_retried() {
    let open = OpenSlides::<usize>::new();
    let opened = AtomicUsize::new(0);
    let get = |i: usize| {
        open.get(i, || {
            opened.fetch_add(1, Ordering::SeqCst);
            Ok(i)
        })
    };
    for i in 0..OPEN_SLIDES {
        assert_eq!(*get(i).unwrap(), i);
    }
    let kept = get(0).unwrap(); // now the newest
    assert_eq!(opened.load(Ordering::SeqCst), OPEN_SLIDES);
    get(OPEN_SLIDES).unwrap(); // closes slide 1
    assert_eq!(open.slots.lock().unwrap().len(), OPEN_SLIDES);
    get(0).unwrap();
    assert_eq!(opened.load(Ordering::SeqCst), OPEN_SLIDES + 1);
    get(1).unwrap();
    assert_eq!(opened.load(Ordering::SeqCst), OPEN_SLIDES + 2);
    assert_eq!(*kept, 0);
    // A failure is not remembered.
    assert!(open.get(777, || Err(Error::Usage("gone".into()))).is_err());
    assert_eq!(*open.get(777, || Ok(7)).unwrap(), 7);
    // Many threads, one opening.
    opened.store(0, Ordering::SeqCst);
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| get(999).unwrap()))));
    assert_eq!(opened.load(Ordering::SeqCst), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_scale_and_place_is_exact(
        downsample in prop_oneof![Just(1.0), Just(4.0), 1.5f64..8.0], step in 0.6f64..3.5, x in 0i64..3000, y in 0i64..3000,
    ) {
        let error = worst(downsample, Point::new(x, y), downsample * step, 24);
        prop_assert!(error < 1.1, "{error}");
    }
}

/// Mean and 99.9th percentile of the absolute differences of two images, grey levels.
fn differences(a: &RgbImage, b: &RgbImage) -> (f64, u8) {
    let mut all: Vec<u8> = a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
    all.sort_unstable();
    (all.iter().map(|d| f64::from(*d)).sum::<f64>() / all.len() as f64, all[all.len() * 999 / 1000])
}

#[test]
fn halving_while_decoding_is_close_to_decoding_and_resampling() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let files = [
        "slides/CMU-1-Small-Region.svs",
        "slides_derived/bcnb_351899r0_Npos3_panda512.tiff",
        "slides_derived/bcnb_351899r1_Npos3_aperio240.svs",
        "slides_derived/bcnb_590960_Npos1-2_panda512.tiff",
    ];
    let (mut halved, mut skipped) = (0, 0);
    for file in files {
        let Ok(slide) = Slide::open(root.join(file)) else {
            eprintln!("skipped: no {file} beside the repository (shared/data)");
            skipped += 1;
            continue;
        };
        for ratio in [2.0, 3.0, 3.99, 4.0, 5.5, 8.0, 11.0, 16.0, 20.0] {
            let resolution = slide.resolution_for(ratio);
            let level = slide.resolutions()[resolution];
            let from = slide.levels().iter().position(|stored| *stored == level);
            // What the halving was made from.
            let stored = slide.levels().iter().rposition(|stored| stored.downsample <= level.downsample).unwrap();
            assert!(from.is_some() || level.downsample * HALVING_MARGIN <= ratio * (1.0 + LEVEL_TOLERANCE));
            halved += usize::from(from.is_none());
            let (base, size) = (slide.resolutions().iter().position(|l| *l == slide.levels()[stored]).unwrap(), 1500.0);
            let patch = |number: usize| {
                let read = |x, y, size| slide.read_at(number, x, y, size);
                let level = slide.resolutions()[number];
                resampled(&level, Point::new(101, 203), ratio, (size / ratio) as u32, read).unwrap()
            };
            let (mean, most) = differences(&patch(base), &patch(resolution));
            assert!(mean <= 1.0 && most <= 10, "{file} at ratio {ratio}: mean {mean}, 99.9 % {most}");
        }
    }
    assert!(halved == 0 && skipped == files.len() || halved >= 3, "{halved} of the resolutions were halvings");
}
