//! TIFFs that are not JPEG: OME sub-directories, flat images in strips, and sample kinds left to other readers.

use std::fs::File;
use std::path::Path;

use slide_io::{Error, Mpp, RgbImage, Slide};
use tiff::encoder::colortype::{CMYK8, ColorType, Gray8, Gray32Float, RGB8, RGB32};
use tiff::encoder::{Compression, DeflateLevel, TiffEncoder, TiffValue};

use crate::sample::{region, tissue};

#[test]
fn ome_tiff_with_levels_in_sub_directories() {
    let slide = Slide::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ome_subifds.tif")).unwrap();
    assert_eq!(slide.format(), "tiff (generic-tiff)");
    assert_eq!(slide.mpp(), Some(Mpp(0.5)));
    let downsamples: Vec<_> = slide.levels().iter().map(|level| level.downsample).collect();
    assert_eq!(downsamples, [1.0, 2.0, 4.0]);
    for level in 0..3_u32 {
        let (x0, y0) = (13, 29);
        let wanted = region(level as usize, i64::from(x0 << level), i64::from(y0 << level), 35, 19);
        for (x, y, pixel) in slide.read(&wanted).unwrap().enumerate_pixels() {
            let expected = [((x0 + x) << level) % 256, ((y0 + y) << level) % 256, level].map(|value| value as u8);
            assert_eq!(pixel.0, expected, "level {level} ({x}, {y})");
        }
    }
}

/// A flat TIFF in strips.
fn flat<C: ColorType>(path: &Path, width: u32, samples: &[C::Inner], compression: Compression)
where
    [C::Inner]: TiffValue,
{
    let mut encoder = TiffEncoder::new(File::create(path).unwrap()).unwrap().with_compression(compression);
    let height = (samples.len() / width as usize / C::BITS_PER_SAMPLE.len()) as u32;
    encoder.write_image::<C>(width, height, samples).unwrap();
}

#[test]
fn flat_images_in_strips_are_slides_of_one_level() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flat.tif");
    let source = tissue(301, 1007, 12);
    let deflate = Compression::Deflate(DeflateLevel::default());
    let all = [Compression::Uncompressed, Compression::Lzw, deflate, Compression::Packbits];
    for (number, compression) in all.into_iter().enumerate() {
        flat::<RGB8>(&path, 301, &source, compression);
        let slide = Slide::open(&path).unwrap();
        assert_eq!(slide.levels().len(), 1);
        assert!(slide.read(&region(0, 0, 0, 301, 1007)).unwrap() == source, "compression {number}");
    }
    let gray: Vec<u8> = source.pixels().map(|pixel| pixel.0[0]).collect();
    flat::<Gray8>(&path, 301, &gray, Compression::Lzw);
    let read = Slide::open(&path).unwrap().read(&region(0, 0, 0, 301, 1007)).unwrap();
    assert!(read == RgbImage::from_fn(301, 1007, |x, y| image::Rgb([source.get_pixel(x, y).0[0]; 3])));
}

/// As scientific software writes an image by default.
#[test]
fn one_strip_is_read_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flat.tif");
    let write = |image: &RgbImage| {
        let mut encoder = TiffEncoder::new(File::create(&path).unwrap()).unwrap();
        let mut strips = encoder.new_image::<RGB8>(image.width(), image.height()).unwrap();
        strips.rows_per_strip(image.height()).unwrap();
        strips.write_data(image.as_raw()).unwrap();
    };
    let source = tissue(701, 1007, 12);
    write(&source);
    let slide = Slide::open_as(&path, "tiff").unwrap();
    assert!(slide.read(&region(0, 0, 0, 701, 1007)).unwrap() == source);
    let part = slide.read(&region(0, 20, 490, 30, 40)).unwrap();
    assert!(part == image::imageops::crop_imm(&source, 20, 490, 30, 40).to_image());
    // Nobody wrote the second half: black to the last bit, and no picture.
    let mut torn = source.clone();
    torn.iter_mut().skip(701 * 499 * 3).for_each(|value| *value = 0);
    write(&torn);
    let slide = Slide::open_as(&path, "tiff").unwrap();
    assert!(slide.read(&region(0, 0, 0, 701, 400)).is_ok());
    let error = slide.read(&region(0, 0, 999, 10, 5)).unwrap_err().to_string();
    assert!(error.contains("a hole in the file"), "{error}");
}

#[test]
fn channels_stored_one_after_the_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("channels.ome.tif");
    let mut encoder = TiffEncoder::new(File::create(&path).unwrap()).unwrap();
    for channel in 0..3 {
        let mut image = encoder.new_image::<Gray8>(40, 30).unwrap();
        let description = r#"<OME><Image><Pixels SizeC="3" SizeX="40" SizeY="30"/></Image></OME>"#;
        let tag = tiff::tags::Tag::ImageDescription;
        image.encoder().write_tag(tag, if channel == 0 { description } else { "" }).unwrap();
        image.write_data(&[channel; 1200]).unwrap();
    }
    let error = Slide::open_as(&path, "tiff").unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("its 3 channels are images of their own"), "{error}");
}

#[test]
fn other_samples_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flat.tif");
    let refusal = || {
        let error = Slide::open(&path).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        error.to_string()
    };
    flat::<RGB32>(&path, 10, &[1000; 300], Compression::Uncompressed);
    let text = refusal();
    assert!(text.contains("tiff: level 0: samples of [32, 32, 32] bits"), "{text}");
    assert!(text.to_lowercase().contains("openslide"), "the other reader is named too: {text}");
    flat::<Gray32Float>(&path, 10, &[0.5; 100], Compression::Uncompressed);
    assert!(refusal().contains("samples of [32] bits"));
    flat::<CMYK8>(&path, 10, &[100; 400], Compression::Uncompressed);
    assert!(refusal().contains("4 samples of photometric kind 5 are not read natively"));
}
