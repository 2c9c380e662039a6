use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use image::{Rgb, RgbImage};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::folder::ImageFolder;
use crate::patch::{Patch, PatchKey, PatchSource};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/stain");

fn golden(name: &str) -> RgbImage {
    read_image(&Path::new(GOLDEN).join(name)).unwrap()
}

fn params(normalize: Method) -> StainParams {
    StainParams { normalize, ..StainParams::default() }
}

fn target(normalize: Method) -> Target {
    Target::new(&params(normalize)).unwrap().unwrap()
}

fn pixels(image: &RgbImage) -> &[[u8; 3]] {
    image.as_raw().as_chunks().0
}

const METHODS: [Method; 2] = [Method::Macenko, Method::Reinhard];

/// Colours of haematoxylin and eosin, and the brightness of glass, of two laboratories.
const LABORATORIES: [([[f64; 3]; 2], f64); 2] =
    [([[0.65, 0.70, 0.29], [0.18, 0.87, 0.45]], 245.0), ([[0.53, 0.76, 0.38], [0.27, 0.80, 0.53]], 241.0)];

/// Tissue with every mixture of the two stains, from 0 to 1.6 and 0.9, and a corner of glass; always the same tissue.
fn section(laboratory: usize, strength: f64) -> RgbImage {
    let (colours, glass) = LABORATORIES[laboratory];
    RgbImage::from_fn(96, 96, |x, y| {
        let glassy = x < 12 && y < 12;
        let haematoxylin = if glassy { 0.0 } else { 0.15 + 1.45 * (f64::from(x * 37 % 96) / 95.0).powi(3) };
        let eosin = if glassy { 0.0 } else { 0.1 + 0.8 * f64::from(y * 29 % 96) / 95.0 };
        let density = combine(strength * haematoxylin, colours[0], strength * eosin, colours[1]);
        Rgb(density.map(|d| (glass * (-d).exp()).round() as u8))
    })
}

fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.as_raw().len() as f64
}

fn assert_near(found: &[f64], stored: &Value, tolerance: f64) {
    let expected: Vec<f64> = serde_json::from_value(stored.clone()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < tolerance, "{found} {expected}");
    }
}

/// `tests/golden/stain/make.py` wrote these with numpy, in double precision. Statistics are in double precision here too,
/// with other sums and another eigenvalue solver: 1e-9. The map is in single precision, so a byte may be rounded
/// otherwise: one grey level, in at most one byte of a thousand.
#[test]
fn both_methods_are_those_of_numpy() {
    let stored: Value = serde_json::from_str(include_str!("../../../tests/golden/stain/stain.json")).unwrap();
    let patch = golden("patch.png");
    for (method, name) in METHODS.into_iter().zip(["macenko", "reinhard"]) {
        match target(method).estimate(pixels(&patch)).unwrap() {
            Statistics::Macenko(Stains { colours, strongest }) => {
                assert_near(&colours[0], &stored[name]["colours"][0], 1e-9);
                assert_near(&colours[1], &stored[name]["colours"][1], 1e-9);
                assert_near(&strongest, &stored[name]["strongest"], 1e-9);
            }
            Statistics::Reinhard(Colours { mean, deviation }) => {
                assert_near(&mean, &stored[name]["mean"], 1e-9);
                assert_near(&deviation, &stored[name]["deviation"], 1e-9);
            }
        }
        let mut ours = patch.clone();
        target(method).normalizer(pixels(&patch)).unwrap().apply(&mut ours);
        let theirs = golden(&format!("{name}.png"));
        assert!(mean_difference(&patch, &theirs) > 5.0, "{name} changes the patch");
        let apart = ours.iter().zip(theirs.iter()).map(|(a, b)| a.abs_diff(*b));
        assert!(apart.clone().max() <= Some(1), "{name}");
        assert!(apart.filter(|&d| d > 0).count() * 1000 <= ours.as_raw().len(), "{name}");
    }
}

#[test]
fn two_laboratories_become_alike_and_like_the_reference() {
    for method in METHODS {
        let target = target(method);
        let before = [section(0, 1.0), section(1, 0.7)];
        let mut after = before.clone();
        for image in &mut after {
            target.normalizer(pixels(image)).unwrap().apply(image);
        }
        let (apart, left) = (mean_difference(&before[0], &before[1]), mean_difference(&after[0], &after[1]));
        // Macenko leaves 6 %, the rounding of bytes and mixtures beyond the percentiles. Reinhard leaves more: his map is
        // not the inverse of mixing two stains.
        let share = if method == Method::Macenko { 0.08 } else { 0.55 };
        assert!(apart > 15.0 && left < share * apart, "{method:?}: {apart} before, {left} after");
        for image in &after {
            match (target.estimate(pixels(image)).unwrap(), target.statistics()) {
                (Statistics::Macenko(found), Statistics::Macenko(wanted)) => {
                    for stain in [0, 1] {
                        let cosine = dot(found.colours[stain], wanted.colours[stain]).min(1.0);
                        // The bytes of the reference's colours are whole numbers: 1.5 degrees.
                        assert!(cosine.acos().to_degrees() < 1.5, "{:?}", found.colours);
                        assert!((found.strongest[stain] / wanted.strongest[stain] - 1.0).abs() < 0.05, "{found:?}");
                    }
                }
                (Statistics::Reinhard(found), Statistics::Reinhard(wanted)) => {
                    // What passes 255 is cut, and another set of pixels is tissue afterwards.
                    assert!((found.mean[0] - wanted.mean[0]).abs() < 0.15, "{found:?}");
                    for axis in [1, 2] {
                        assert!((found.mean[axis] - wanted.mean[axis]).abs() < 0.03, "{found:?}");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The numbers of [`Colours::REFERENCE`] are the average of all 700 tiles; every seventh is nearly that.
#[test]
fn the_reference_of_reinhard_is_the_average_of_its_tiles() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/patches_crc5/train");
    let Ok(tiles) = ImageFolder::open(&folder) else {
        eprintln!("skipped: {} is absent", folder.display());
        return;
    };
    let mut sums = [[0.0; 3]; 2];
    let indices = (0..tiles.len()).step_by(7);
    let count = indices.len() as f64;
    for index in indices {
        let image = tiles.read(index).unwrap().image;
        let Colours { mean, deviation } = Colours::estimate(pixels(&image), &StainParams::default()).unwrap();
        sums = [combine(1.0, sums[0], 1.0 / count, mean), combine(1.0, sums[1], 1.0 / count, deviation)];
    }
    let [mean, deviation] = sums;
    for axis in [0, 1, 2] {
        assert!((mean[axis] - Colours::REFERENCE.mean[axis]).abs() < 0.02, "{mean:?}");
        assert!((deviation[axis] - Colours::REFERENCE.deviation[axis]).abs() < 0.015, "{deviation:?}");
    }
}

#[test]
fn an_image_is_its_own_reference() {
    let folder = tempfile::tempdir().unwrap();
    let reference = folder.path().join("reference.png");
    let mut image = section(1, 0.8);
    image.save(&reference).unwrap();
    for method in METHODS {
        let target = Target::new(&StainParams { reference: reference.clone(), ..params(method) }).unwrap().unwrap();
        let before = image.clone();
        target.normalizer(pixels(&before)).unwrap().apply(&mut image);
        // Macenko moves the few mixtures beyond the percentiles to the nearer stain.
        let changed = image.iter().zip(before.iter()).filter(|(a, b)| a.abs_diff(**b) > 1).count();
        let allowed = if method == Method::Macenko { before.as_raw().len() / 50 } else { 0 };
        assert!(changed <= allowed, "{method:?}: {changed} bytes");
        image = before;
    }
}

#[test]
fn haematoxylin_comes_first_and_takes_the_red() {
    for laboratory in [0, 1] {
        let Statistics::Macenko(found) = target(Method::Macenko).estimate(pixels(&section(laboratory, 1.0))).unwrap()
        else {
            panic!("the method is Macenko's");
        };
        for (found, expected) in found.colours.iter().zip(LABORATORIES[laboratory].0) {
            let length = dot(expected, expected).sqrt();
            let degrees = (dot(*found, expected) / length).min(1.0).acos().to_degrees();
            // No pixel is of one stain alone.
            assert!(degrees < 6.0, "{found:?} {expected:?}: {degrees}");
        }
        assert!(found.colours[0][0] > found.colours[1][0]);
    }
}

#[test]
fn blank_patches_stay_as_they_are() {
    for method in METHODS {
        let target = target(method);
        let normalizer = target.normalizer(pixels(&section(0, 1.0))).unwrap();
        let blank = RgbImage::from_fn(64, 64, |x, y| Rgb([240 + (x % 16) as u8, 240 + (y % 16) as u8, 255]));
        let mut after = blank.clone();
        normalizer.apply(&mut after);
        assert_eq!(after, blank, "{method:?}");
        // Glass a little darker than stain.light is changed a little.
        for level in [230, 235, 239] {
            let mut near = RgbImage::from_pixel(2, 2, Rgb([level; 3]));
            normalizer.apply(&mut near);
            let worst = near.iter().map(|v| v.abs_diff(level)).max();
            assert!(worst <= Some(8), "{method:?}, {level}: {worst:?}");
        }
        let why = NoStatistics::LittleTissue { tissue: 0, pixels: 4096 };
        assert_eq!(target.estimate(pixels(&blank)), Err(why));
        assert!(why.to_string().starts_with("0 of 4096 pixels"), "{why}");
        let mut nothing = RgbImage::new(0, 0);
        normalizer.apply(&mut nothing);
        assert!(target.estimate(&[]).is_err());
    }
}

#[test]
fn tissue_of_one_colour_has_no_statistics() {
    let grey = RgbImage::from_fn(64, 64, |x, y| Rgb([(x + 2 * y) as u8; 3]));
    for method in METHODS {
        for image in [RgbImage::from_pixel(64, 64, Rgb([150, 60, 120])), RgbImage::new(64, 64), grey.clone()] {
            assert_eq!(target(method).estimate(pixels(&image)), Err(NoStatistics::OneColour), "{method:?}");
        }
    }
    // Amounts of one stain alone.
    let (colours, glass) = LABORATORIES[0];
    let eosin = RgbImage::from_fn(64, 64, |x, y| {
        Rgb(colours[1].map(|v| (glass * (-v * (0.9 + f64::from(x + y) / 100.0)).exp()).round() as u8))
    });
    assert_eq!(target(Method::Macenko).estimate(pixels(&eosin)), Err(NoStatistics::OneColour));
}

#[test]
fn senseless_values_and_references_are_refused_by_name() {
    let message = |params: StainParams| Target::new(&params).unwrap_err().to_string();
    let with = || params(Method::Macenko);
    assert!(message(StainParams { light: 0, ..with() }).contains("stain.light"));
    assert!(message(StainParams { min_density: 0.0, ..with() }).contains("stain.min_density"));
    assert!(message(StainParams { min_density: f64::NAN, ..with() }).contains("stain.min_density"));
    assert!(message(StainParams { min_density: 6.0, ..with() }).contains("stain.min_density"));
    assert!(message(StainParams { percentile: 50.0, ..with() }).contains("stain.percentile"));
    assert!(message(StainParams { reference: "no/such.png".into(), ..with() }).contains("no/such.png"));
    let folder = tempfile::tempdir().unwrap();
    let reference = folder.path().join("blank.png");
    RgbImage::from_pixel(64, 64, Rgb([250; 3])).save(&reference).unwrap();
    let message = message(StainParams { reference, ..with() });
    assert!(message.contains("blank.png") && message.contains("reference of the stain"), "{message}");
    assert_eq!(Target::new(&StainParams::default()).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever statistics there are, the map is of finite numbers, and leaves what is brighter than glass.
    #[test]
    fn maps_are_finite_whatever_the_pixels(
        base in proptest::array::uniform3(0u8..=255), spread in 1u16..256, seed in any::<u64>(), light in 200u8..=255,
    ) {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u16 % spread
        };
        let found: Vec<[u8; 3]> = (0..3000).map(|_| base.map(|v| v.saturating_add(next() as u8))).collect();
        for method in METHODS {
            let target = Target::new(&StainParams { light, ..params(method) }).unwrap().unwrap();
            let Ok(normalizer) = target.normalizer(&found) else { continue };
            let numbers = format!("{normalizer:?}");
            prop_assert!(!numbers.contains("NaN") && !numbers.contains("inf"), "{}", numbers);
            let mut glass = RgbImage::from_fn(256, 1, |x, _| Rgb([(x as u8).max(light); 3]));
            let before = glass.clone();
            normalizer.apply(&mut glass);
            prop_assert_eq!(glass, before);
        }
    }
}

/// Sections of two laboratories as two slides of `each` patches, or as images without slides.
struct Sections {
    ends: Vec<usize>,
    images: Vec<Option<RgbImage>>,
    reads: AtomicUsize,
}

impl Sections {
    fn slides(each: usize, slides: Vec<Vec<Option<RgbImage>>>) -> Arc<Self> {
        let ends = (1..=slides.len()).map(|slide| slide * each).collect();
        Arc::new(Self { ends, images: slides.into_iter().flatten().collect(), reads: AtomicUsize::new(0) })
    }

    fn images(images: Vec<Option<RgbImage>>) -> Arc<Self> {
        Arc::new(Self { ends: vec![], images, reads: AtomicUsize::new(0) })
    }
}

impl PatchSource for Sections {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn key(&self, index: usize) -> PatchKey {
        let item = self.ends.partition_point(|&end| end <= index);
        let item = if self.ends.is_empty() { format!("image {index}") } else { format!("slide {item}") };
        PatchKey { item, origin: None }
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn slide_ends(&self) -> &[usize] {
        &self.ends
    }

    fn read(&self, index: usize) -> Result<Patch> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let image = self.images[index].clone().ok_or_else(|| Error::bad("slide", format!("tile {index}")))?;
        Ok(Patch { key: self.key(index), image, label: None })
    }
}

fn blank() -> RgbImage {
    RgbImage::from_pixel(96, 96, Rgb([248, 247, 249]))
}

#[test]
fn the_statistics_of_a_slide_are_its_own_and_estimated_once() {
    // Half of each slide is blank, and the second has a patch that cannot be read.
    let mut second: Vec<_> = (0..100).map(|i| Some(if i % 2 == 0 { section(1, 0.7) } else { blank() })).collect();
    second[17] = None;
    let first = (0..100).map(|i| Some(if i % 2 == 0 { section(0, 1.0) } else { blank() })).collect();
    let source = Sections::slides(100, vec![first, second]);
    for method in METHODS {
        let target = target(method);
        let normalized = Normalized::new(source.clone(), target.clone());
        source.reads.store(0, Ordering::Relaxed);
        let (late, early) = (normalized.read(198).unwrap().image, normalized.read(2).unwrap().image);
        assert_eq!(source.reads.load(Ordering::Relaxed), 2 + 2 * 64, "two patches and two samples");
        // The sample is a quarter of the pixels, so its statistics are near those of the whole, not the same.
        for (found, image) in [(&early, section(0, 1.0)), (&late, section(1, 0.7))] {
            let mut expected = image.clone();
            target.normalizer(pixels(&image)).unwrap().apply(&mut expected);
            assert!(mean_difference(found, &expected) < 2.0, "{}", mean_difference(found, &expected));
        }
        // The order of reading changes nothing.
        let other = Normalized::new(source.clone(), target.clone());
        assert_eq!(other.read(2).unwrap().image, early);
        assert_eq!(other.read(198).unwrap().image, late);
        assert_eq!(normalized.read(1).unwrap().image, blank());
        assert_eq!(
            (normalized.len(), normalized.slide_ends(), normalized.key(150).item.as_str()),
            (200, &[100, 200][..], "slide 1")
        );
        assert!(normalized.read(117).unwrap_err().to_string().contains("tile 117"));
    }
}

#[test]
fn a_slide_without_statistics_is_an_error_with_its_reason() {
    let (good, empty, lost) = (vec![Some(section(0, 1.0)); 2], vec![Some(blank()); 2], vec![None, None]);
    let source = Sections::slides(2, vec![good, empty, lost]);
    let normalized = Normalized::new(source, target(Method::Macenko));
    let reason = |slide: usize| normalized.estimate_slide(slide).unwrap_err().to_string();
    normalized.estimate_slide(0).unwrap();
    assert!(reason(1).starts_with("slide 1: its stain cannot be normalised: 0 of"), "{}", reason(1));
    assert!(reason(2).contains("none of 2 patches looked at can be read") && reason(2).contains("tile 4"));
    assert_eq!(normalized.read(2).unwrap_err().to_string(), reason(1));
    assert!(normalized.read(0).is_ok());
    // A slide without patches needs no statistics.
    let none = Arc::new(Sections { ends: vec![0, 1], images: vec![Some(blank())], reads: AtomicUsize::new(0) });
    Normalized::new(none, target(Method::Macenko)).estimate_slide(0).unwrap();
}

#[test]
fn images_have_their_own_statistics_or_those_of_their_folder() {
    let images = vec![Some(section(0, 1.0)), Some(section(1, 0.7)), Some(blank()), None];
    let own = |image: RgbImage| {
        let mut after = image.clone();
        target(Method::Macenko).normalizer(pixels(&image)).unwrap().apply(&mut after);
        after
    };
    let source = Sections::images(images);
    let each = Normalized::new(source.clone(), target(Method::Macenko));
    assert_eq!(each.read(0).unwrap().image, own(section(0, 1.0)));
    assert_eq!(each.read(1).unwrap().image, own(section(1, 0.7)));
    assert_eq!(each.read(2).unwrap().image, blank());
    assert!(each.read(3).unwrap_err().to_string().contains("tile 3"));
    let params = StainParams { images: ImageStatistics::Folder, ..params(Method::Macenko) };
    let folder = Normalized::new(source, Target::new(&params).unwrap().unwrap());
    let found = [0, 1].map(|index| folder.read(index).unwrap().image);
    assert_ne!(found[0], own(section(0, 1.0)));
    // One map for all: what differed differs.
    assert!(mean_difference(&found[0], &found[1]) > 10.0);
    let nothing = Normalized::new(Sections::images(vec![Some(blank()); 3]), target(Method::Reinhard));
    let error = nothing.read(1).unwrap_err().to_string();
    assert!(error.starts_with("image 1: its stain cannot be normalised, nor that of its folder: 0 of"), "{error}");
}

#[test]
fn threads_that_want_the_same_slide_share_one_estimate() {
    let source = Sections::slides(80, vec![vec![Some(section(0, 1.0)); 80]]);
    let normalized = Normalized::new(source.clone(), target(Method::Macenko));
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (normalized, found) = (&normalized, &found);
            scope.spawn(move || found.lock().unwrap().push(normalized.read(index).unwrap().image));
        }
    });
    let found = found.into_inner().unwrap();
    assert!(found.iter().all(|image| *image == found[0]));
    assert_eq!(source.reads.load(Ordering::Relaxed), 8 + 64);
}
