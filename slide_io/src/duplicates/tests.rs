//! Copies of drawn sections and of real tiles: found, and told from others.

use std::fs;
use std::path::PathBuf;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use proptest::prelude::*;

use super::*;
use crate::folder::read_image;
use crate::geometry::Mpp;
use crate::jpeg::{self, ColorModel};
use crate::pyramid::{PyramidSpec, write_pyramid};
use crate::slide::Slide;
use crate::tissue::TissueParams;

const GLASS: Rgb<u8> = Rgb([242, 240, 241]);

/// A needle biopsy of 700 x 200 px on a canvas: pink, with purple glands that differ from seed to seed.
fn biopsy(seed: u32, canvas: (u32, u32), corner: (u32, u32)) -> RgbImage {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(99);
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24)
    };
    let glands: Vec<[f64; 3]> = (0..60).map(|_| [700.0 * random(), 200.0 * random(), 6.0 + 14.0 * random()]).collect();
    let wave = 6.0 * random();
    let mut image = RgbImage::from_pixel(canvas.0, canvas.1, GLASS);
    for y in 0..200 {
        for x in 0..700 {
            let (fx, fy) = (f64::from(x), f64::from(y));
            let centre = 100.0 + 20.0 * (fx / 90.0 + wave).sin();
            if (fy - centre).abs() < 70.0 + 8.0 * (fx / 17.0 + 2.0 * wave).sin() {
                let gland = glands.iter().any(|[cx, cy, r]| (fx - cx).powi(2) + (fy - cy).powi(2) < r * r);
                let colour = if gland { [105, 65, 150] } else { [226, 150, 190] };
                image.put_pixel(corner.0 + x, corner.1 + y, Rgb(colour));
            }
        }
    }
    image
}

fn print_of_slide(image: &RgbImage, quality: u8) -> Option<Fingerprint> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tiff");
    let spec = PyramidSpec { tile: 128, quality, levels: vec![1, 4], mpp: Some(Mpp(4.0)), ..PyramidSpec::default() };
    write_pyramid(&path, image, &spec).unwrap();
    Fingerprint::of_slide(&Slide::open(&path).unwrap(), None, &TissueParams::default()).unwrap()
}

fn print_of(image: &RgbImage) -> Option<Fingerprint> {
    Fingerprint::of_image(image).unwrap()
}

/// As slides are compared, which is stricter than for images.
fn compare(a: &Option<Fingerprint>, b: &Option<Fingerprint>) -> Option<Match> {
    a.as_ref().unwrap().compare(b.as_ref().unwrap(), &Criteria::SLIDES)
}

#[test]
fn a_biopsy_is_known_again_wherever_and_however_it_lies_on_the_glass() {
    let original = print_of_slide(&biopsy(1, (900, 400), (50, 80)), 80);
    let elsewhere = biopsy(1, (1300, 700), (520, 410));
    let brighter = |image: &RgbImage| {
        let mut copy = image.clone();
        copy.iter_mut().for_each(|value| *value = (f32::from(*value) * 1.04).min(255.0) as u8);
        copy
    };
    for (name, image) in [
        ("none", elsewhere.clone()),
        // What undoes a clockwise quarter turn is a counter-clockwise one.
        ("rotate_90", imageops::rotate90(&elsewhere)),
        ("rotate_270", imageops::rotate270(&elsewhere)),
        ("rotate_180", brighter(&imageops::rotate180(&elsewhere))),
        ("flip_left_right", imageops::flip_horizontal(&elsewhere)),
        ("flip_top_bottom", imageops::resize(&imageops::flip_vertical(&elsewhere), 910, 490, FilterType::Triangle)),
    ] {
        let found = compare(&original, &print_of_slide(&image, 50)).unwrap_or_else(|| panic!("{name} is not found"));
        assert_eq!(found.orientation.name(), name);
        assert!(found.similarity > 0.8, "{name}: {}", found.similarity);
    }
}

#[test]
fn biopsies_of_the_same_shape_are_not_copies() {
    let prints: Vec<_> = (0..24).map(|seed| print_of_slide(&biopsy(seed, (900, 400), (50, 80)), 80)).collect();
    let files: Vec<PathBuf> = (0..24).map(|seed| PathBuf::from(format!("no such file {seed}"))).collect();
    assert_eq!(pairs(&files, &prints, &Criteria::SLIDES).unwrap(), []);
}

#[test]
fn blank_glass_is_too_plain_and_other_slides_without_tissue_are_compared_whole() {
    assert!(print_of_slide(&RgbImage::from_pixel(800, 600, GLASS), 80).is_none());
    let fluorescence = |image: &RgbImage| {
        let mut dark = image.clone();
        dark.pixels_mut().for_each(|p| *p = if *p == GLASS { Rgb([0; 3]) } else { Rgb([0, 0, 255 - p.0[1]]) });
        dark
    };
    let image = fluorescence(&biopsy(1, (900, 400), (50, 80)));
    let found = compare(&print_of_slide(&image, 80), &print_of_slide(&imageops::rotate180(&image), 60)).unwrap();
    assert_eq!(found.orientation.name(), "rotate_180");
}

#[test]
fn pairs_are_exact_or_near_and_do_not_depend_on_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let picture = |seed| imageops::crop_imm(&biopsy(seed, (700, 200), (0, 0)), 0, 40, 400, 120).to_image();
    let (first, second) = (picture(1), picture(2));
    let saved = |name: &str, image: &RgbImage| {
        let path = folder.path().join(name);
        image.save(&path).unwrap();
        (path, print_of(&read_image(&folder.path().join(name)).unwrap()))
    };
    let plain = RgbImage::from_pixel(64, 64, Rgb([9; 3]));
    let items = [
        saved("a.png", &first),
        saved("b.png", &second),
        saved("c.jpg", &imageops::rotate90(&first)),
        saved("d.png", &plain),
        saved("e.png", &second),
        saved("f.png", &plain),
        (folder.path().join("gone.png"), None),
    ];
    let found = |order: &[usize]| {
        let (files, prints): (Vec<_>, Vec<_>) = order.iter().map(|&at| items[at].clone()).unzip();
        pairs(&files, &prints, &Criteria::IMAGES).unwrap()
    };
    let forth = found(&[0, 1, 2, 3, 4, 5, 6]);
    let brief: Vec<_> = forth.iter().map(|pair| (pair.a, pair.b, pair.kind, pair.orientation.name())).collect();
    let expected = [(0, 2, Kind::Near, "rotate_90"), (1, 4, Kind::Exact, "none"), (3, 5, Kind::Exact, "none")];
    assert_eq!(brief, expected);
    let back = found(&[6, 5, 4, 3, 2, 1, 0]);
    let mut turned: Vec<_> =
        back.iter().map(|pair| (6 - pair.b, 6 - pair.a, pair.kind, pair.orientation.inverse().name())).collect();
    turned.sort_by_key(|pair| pair.0);
    assert_eq!(turned, expected);
    let error = pairs(&[&items[0].0], &[], &Criteria::IMAGES).unwrap_err();
    assert!(error.to_string().contains("1 files cannot have 0 fingerprints"), "{error}");
}

#[test]
fn padding_around_an_image_does_not_hide_it() {
    let image = imageops::crop_imm(&biopsy(3, (700, 200), (0, 0)), 100, 45, 200, 110).to_image();
    for colour in [[255; 3], [0; 3]] {
        let mut canvas = RgbImage::from_pixel(240, 150, Rgb(colour));
        imageops::replace(&mut canvas, &image, 31, 9);
        let found = compare(&print_of(&image), &print_of(&canvas)).unwrap();
        assert!(found.similarity > 0.99, "{}", found.similarity);
    }
}

#[test]
fn groups_are_chains_of_links() {
    assert_eq!(groups(7, [(5, 6), (1, 4), (4, 5), (2, 2)]), [0, 1, 2, 3, 1, 1, 1]);
    assert!(groups(0, []).is_empty());
}

proptest! {
    #[test]
    fn groups_are_what_can_be_reached(links in prop::collection::vec((0usize..20, 0usize..20), 0..25)) {
        let found = groups(20, links.iter().copied());
        let mut reached: Vec<usize> = (0..20).collect();
        for _ in 0..20 {
            for &(a, b) in &links {
                let least = reached[a].min(reached[b]);
                (reached[a], reached[b]) = (least, least);
            }
        }
        prop_assert_eq!(found, reached);
    }
}

/// Real tissue: tiles of colorectal H&E, 224 px.
#[test]
fn altered_copies_of_real_tiles_are_found_and_other_tiles_are_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/patches_crc5/test");
    if !root.is_dir() {
        eprintln!("skipped: {} is not there", root.display());
        return;
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .flat_map(|class| fs::read_dir(class.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let images: Vec<RgbImage> = files.iter().map(|file| read_image(file).unwrap()).collect();
    let prints: Vec<_> = images.iter().map(print_of).collect();
    assert_eq!((prints.len(), prints.iter().flatten().count()), (200, 200));
    assert_eq!(pairs(&files, &prints, &Criteria::IMAGES).unwrap(), []);
    let altered = |image: &RgbImage| {
        let image = imageops::resize(&imageops::rotate270(image), 180, 180, FilterType::Triangle);
        let image = imageops::crop_imm(&image, 4, 2, 173, 175).to_image();
        jpeg::decode(&jpeg::encode(&imageops::brighten(&image, 12), 60, ColorModel::YCbCr).unwrap()).unwrap()
    };
    let missed: Vec<_> = images
        .iter()
        .zip(&prints)
        .zip(&files)
        .filter(|((image, print), _)| {
            let copy = print_of(&altered(image)).unwrap();
            print
                .as_ref()
                .unwrap()
                .compare(&copy, &Criteria::IMAGES)
                .is_none_or(|found| found.orientation.name() != "rotate_270")
        })
        .map(|(_, file)| file)
        .collect();
    // Some textures are so regular that a shift of two per cent moves the low frequencies.
    assert!(missed.len() <= 4, "{missed:?}");
}
