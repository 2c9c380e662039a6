use std::fs;
use std::fs::File;

use image::{GrayImage, ImageBuffer, Luma, Rgb};
use proptest::prelude::*;
use tiff::encoder::colortype::{ColorType, Gray8, RGB8};
use tiff::encoder::{Compression, DeflateLevel, TiffEncoder, TiffValue};
use tiff::tags::Tag;

use super::*;
use crate::pyramid::{PyramidSpec, write_pyramid};

/// A label for every pixel: stripes and blocks of all of Radboud's.
fn label(x: u32, y: u32) -> u8 {
    ((x / 7 + y / 5 * 2) % 6) as u8
}

/// A mask as PANDA has it: the label in the red channel, zeros beside it.
fn panda(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([label(x, y), 0, 0]))
}

/// Writes a lossless TIFF in strips.
fn strips<C: ColorType>(path: &Path, width: u32, height: u32, samples: &[C::Inner], compression: Compression)
where
    [C::Inner]: TiffValue,
{
    let mut encoder = TiffEncoder::new(File::create(path).unwrap()).unwrap().with_compression(compression);
    encoder.write_image::<C>(width, height, samples).unwrap();
}

/// Writes an uncompressed TIFF in tiles of 64 px; those for which `stored` is false have no bytes.
fn tiles(path: &Path, image: &RgbImage, stored: impl Fn(usize) -> bool) {
    const TILE: u32 = 64;
    let mut encoder = TiffEncoder::new(File::create(path).unwrap()).unwrap();
    let mut directory = encoder.image_directory().unwrap();
    let (mut offsets, mut lengths) = (Vec::new(), Vec::new());
    for row in 0..image.height().div_ceil(TILE) {
        for column in 0..image.width().div_ceil(TILE) {
            let pixel = |x: u32, y: u32| {
                let inside = x < image.width() && y < image.height();
                if inside { image.get_pixel(x, y).0 } else { [99; 3] }
            };
            let bytes: Vec<u8> =
                (0..TILE * TILE).flat_map(|i| pixel(column * TILE + i % TILE, row * TILE + i / TILE)).collect();
            let bytes = if stored(offsets.len()) { &bytes[..] } else { &[] };
            offsets.push(u32::try_from(directory.write_data(bytes).unwrap()).unwrap());
            lengths.push(bytes.len() as u32);
        }
    }
    directory.write_tag(Tag::ImageWidth, image.width()).unwrap();
    directory.write_tag(Tag::ImageLength, image.height()).unwrap();
    directory.write_tag(Tag::BitsPerSample, &[8u16; 3][..]).unwrap();
    directory.write_tag(Tag::SamplesPerPixel, 3u16).unwrap();
    directory.write_tag(Tag::Compression, 1u16).unwrap();
    directory.write_tag(Tag::PhotometricInterpretation, 2u16).unwrap();
    directory.write_tag(Tag::TileWidth, TILE).unwrap();
    directory.write_tag(Tag::TileLength, TILE).unwrap();
    directory.write_tag(Tag::TileOffsets, &offsets[..]).unwrap();
    directory.write_tag(Tag::TileByteCounts, &lengths[..]).unwrap();
    directory.finish().unwrap();
}

/// The shares by counting: every pixel of the slide in 10 x 10 parts, for positions and sides in tenths.
fn counted(slide: Size, x: i64, y: i64, side_tenths: i64, value: impl Fn(i64, i64) -> u8) -> Vec<f64> {
    let mut counts = [0u32; 6];
    for j in y * 10..y * 10 + side_tenths {
        for i in x * 10..x * 10 + side_tenths {
            let (column, row) = (i.div_euclid(10), j.div_euclid(10));
            if (0..slide.width.into()).contains(&column) && (0..slide.height.into()).contains(&row) {
                counts[usize::from(value(column, row))] += 1;
            }
        }
    }
    let whole: u32 = counts.iter().sum();
    counts.iter().map(|&count| f64::from(count) / f64::from(whole)).collect()
}

fn close(found: &[f32], expected: &[f64]) -> bool {
    // Rounded once, to single precision.
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6)
}

#[test]
fn shares_are_counted_on_every_kind_of_lossless_mask() {
    let folder = tempfile::tempdir().unwrap();
    let (image, slide) = (panda(150, 130), Size::new(150, 130));
    let grey: Vec<u8> = image.pixels().map(|pixel| pixel.0[0]).collect();
    let at = |name: &str| folder.path().join(name);
    let deflate = Compression::Deflate(DeflateLevel::default());
    strips::<RGB8>(&at("lzw.tiff"), 150, 130, &image, Compression::Lzw);
    strips::<RGB8>(&at("deflate.tiff"), 150, 130, &image, deflate);
    strips::<Gray8>(&at("grey.tiff"), 150, 130, &grey, Compression::Lzw);
    tiles(&at("tiles.tiff"), &image, |_| true);
    image.save(at("rgb.png")).unwrap();
    GrayImage::from_raw(150, 130, grey).unwrap().save(at("grey.png")).unwrap();
    for name in ["lzw.tiff", "deflate.tiff", "grey.tiff", "tiles.tiff", "rgb.png", "grey.png"] {
        let mask = LabelMask::open(&at(name), slide, &RADBOUD).unwrap();
        assert_eq!((mask.factor, mask.labels()), (1, &RADBOUD[..]));
        for (x, y, side_tenths) in [(0, 0, 640), (37, 51, 643), (63, 64, 10), (120, 100, 455), (-20, -3, 300)] {
            let found = mask.fractions(Point::new(x, y), side_tenths as f64 / 10.0).unwrap();
            let expected = counted(slide, x, y, side_tenths, |x, y| label(x as u32, y as u32));
            assert!(close(&found, &expected), "{name} at ({x}, {y}): {found:?} {expected:?}");
        }
    }
}

#[test]
fn many_patches_are_the_same_as_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s_mask.tiff");
    tiles(&path, &panda(300, 200), |_| true);
    let mask = LabelMask::open(&path, Size::new(300, 200), &RADBOUD).unwrap();
    let origins: Vec<Point> = (0..60).map(|i| Point::new(i * 37 % 280, i * 53 % 190)).collect();
    let all = mask.all_fractions(&origins, 26.3).unwrap();
    for (origin, found) in origins.iter().zip(&all) {
        assert_eq!(found, &mask.fractions(*origin, 26.3).unwrap());
        assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert!(mask.all_fractions(&[], 26.3).unwrap().is_empty());
}

#[test]
fn a_mask_of_a_whole_fraction_of_the_slide_counts_by_area() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.png");
    // A quarter of 402 x 398, one side rounded down and one up.
    panda(100, 100).save(&path).unwrap();
    let slide = Size::new(402, 398);
    let mask = LabelMask::open(&path, slide, &RADBOUD).unwrap();
    assert_eq!(mask.factor, 4);
    for (x, y, side_tenths) in [(0, 0, 400), (33, 21, 653), (101, 202, 1137)] {
        let found = mask.fractions(Point::new(x, y), side_tenths as f64 / 10.0).unwrap();
        let expected = counted(Size::square(400), x, y, side_tenths, |x, y| label(x as u32 / 4, y as u32 / 4));
        assert!(close(&found, &expected), "at ({x}, {y}): {found:?} {expected:?}");
        assert_eq!(mask.all_fractions(&[Point::new(x, y)], side_tenths as f64 / 10.0).unwrap(), [found]);
    }
    for (slide, factor) in [((100, 100), Some(1)), ((200, 201), Some(2)), ((99, 100), None), ((402, 300), None)] {
        let found = LabelMask::open(&path, Size::new(slide.0, slide.1), &RADBOUD);
        assert_eq!(found.as_ref().ok().map(|mask| mask.factor), factor, "{slide:?}");
        if let Err(error) = found {
            let named = format!("it has 100 x 100 px, the slide {} x {}", slide.0, slide.1);
            assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(&named), "{error}");
        }
    }
}

#[test]
fn a_value_that_is_no_label_is_an_error_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.png");
    let mut image = panda(40, 40);
    image.put_pixel(17, 9, Rgb([77, 0, 0]));
    image.save(&path).unwrap();
    let mask = LabelMask::open(&path, Size::square(40), &RADBOUD).unwrap();
    // Patches that end at the pixel's border do not meet it.
    assert!(mask.fractions(Point::new(0, 0), 17.0).is_ok() && mask.fractions(Point::new(18, 0), 20.5).is_ok());
    let error = mask.fractions(Point::new(0, 0), 17.1).unwrap_err().to_string();
    assert!(error.contains("pixel (17, 9) has the value 77, which is none of 0, 1, 2, 3, 4, 5"), "{error}");
    assert!(!error.contains("JPEG"));
    assert!(mask.all_fractions(&[Point::new(0, 0), Point::new(10, 0)], 10.0).is_err());
    let both = LabelMask::open(&path, Size::square(40), &KAROLINSKA).unwrap();
    assert!(both.fractions(Point::new(0, 0), 30.0).unwrap_err().to_string().contains("has the value 3"));
}

#[test]
fn losses_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tiff");
    let slide = Size::square(256);
    let image = RgbImage::from_fn(256, 256, |x, _| Rgb([if x < 130 { 0 } else { 5 }, 0, 0]));
    write_pyramid(&path, &image, &PyramidSpec { levels: vec![1], tile: 256, ..PyramidSpec::default() }).unwrap();
    let error = LabelMask::open(&path, slide, &RADBOUD).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("losses"), "{error}");
}

#[test]
fn what_cannot_be_a_label_mask_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s_mask.tiff");
    let refusal = |labels: &[u8], what: &str| {
        let error = LabelMask::open(&path, Size::square(130), labels).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    tiles(&path, &panda(130, 130), |tile| tile != 4);
    refusal(&RADBOUD, "some of its tiles are not stored");
    ImageBuffer::from_pixel(130, 130, Luma([3u16])).save_with_format(&path, image::ImageFormat::Png).unwrap();
    refusal(&RADBOUD, "it has 16 bits");
    let breadth = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/breadth/{name}.tif"));
    for (name, what) in [("grey16_deflate_strips", "it has 16 bits"), ("palette_lzw_tiles", "colours of a palette")] {
        let error = LabelMask::open(&breadth(name), Size::new(72, 56), &RADBOUD).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    // The header says what matters: a palette of 8 bits.
    let mut bytes = fs::read(&path).unwrap();
    bytes[24..26].copy_from_slice(&[8, 3]);
    fs::write(&path, bytes).unwrap();
    refusal(&RADBOUD, "colours of a palette");
    fs::write(&path, b"II\x2a\0").unwrap();
    refusal(&RADBOUD, "the file is damaged");
    panda(130, 130).save_with_format(&path, image::ImageFormat::Png).unwrap();
    refusal(&[], "name each value once");
    refusal(&[0, 1, 0], "name each value once");
    let mask = LabelMask::open(&path, Size::square(130), &RADBOUD).unwrap();
    for (x, side) in [(130, 10.0), (-10, 10.0), (0, 0.0), (0, f64::NAN)] {
        assert!(matches!(mask.fractions(Point::new(x, 0), side), Err(Error::Usage(_))), "{x} {side}");
    }
    assert!(matches!(LabelMask::open(&folder.path().join("gone"), Size::square(1), &[0]), Err(Error::Io { .. })));
}

#[test]
fn the_mask_of_a_slide_is_found_or_unclear() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(for_slide(folder.path(), "a").unwrap(), None);
    fs::write(folder.path().join("a_mask.tiff"), "").unwrap();
    fs::write(folder.path().join("b.png"), "").unwrap();
    assert_eq!(for_slide(folder.path(), "a").unwrap(), Some(folder.path().join("a_mask.tiff")));
    assert_eq!(for_slide(folder.path(), "b").unwrap(), Some(folder.path().join("b.png")));
    fs::write(folder.path().join("a.tiff"), "").unwrap();
    assert!(for_slide(folder.path(), "a").unwrap_err().to_string().contains("a_mask.tiff and a.tiff"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn covered_pixels_add_up_to_the_patch(start in -50.0f64..150.0, length in 0.01f64..120.0, limit in 1u32..100) {
        let inside = (start + length).min(f64::from(limit)) - start.max(0.0);
        match Covered::new(start, length, limit) {
            None => prop_assert!(inside <= 0.0),
            Some(Covered { first, weights }) => {
                prop_assert!((weights.iter().sum::<f64>() - inside).abs() < 1e-9);
                prop_assert!(weights.iter().all(|weight| (0.0..=1.0).contains(weight)));
                prop_assert!(first as usize + weights.len() <= limit as usize);
            }
        }
    }
}
