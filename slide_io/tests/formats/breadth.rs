//! Every kind of TIFF that the support matrix lists, against what tifffile decodes it to and against OpenSlide.

use std::path::{Path, PathBuf};

use slide_io::{Mpp, RgbImage, Slide};

use crate::layout::{Layout, Number};
use crate::sample::{name, region};

/// The files that `golden/make_breadth.py` wrote, sorted.
pub fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/breadth");
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|kind| kind == "tif")).collect();
    files.sort();
    files
}

fn file(name: &str) -> PathBuf {
    files().into_iter().find(|path| path.file_stem().unwrap() == name).expect(name)
}

/// What the file holds: the picture beside it, or the one that all share.
fn expected(path: &Path) -> RgbImage {
    let own = path.with_extension("png");
    let picture = if own.exists() { own } else { path.with_file_name("rgb.png") };
    slide_io::folder::read_image(&picture).unwrap()
}

fn whole(slide: &Slide) -> RgbImage {
    slide.read(&region(0, 0, 0, slide.size().width, slide.size().height)).unwrap()
}

fn worst(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// Equal to the last bit, but for JPEG 2000: two decoders round the sums of the irreversible wavelet differently (1), and
/// of YCbCr a chroma of one more or less moves blue by 1.77 (2).
fn tolerance(path: &Path) -> u8 {
    match name(path) {
        name if name.contains("ycbcr") && name.starts_with("jpeg2000") => 2,
        name if name.starts_with("jpeg2000") => 1,
        _ => 0,
    }
}

#[test]
fn every_kind_is_read_as_tifffile_reads_it() {
    let files = files();
    assert!(files.len() >= 38, "{} files", files.len());
    for path in files {
        let slide = Slide::open(&path).unwrap();
        assert!(slide.format().starts_with("tiff "), "{}: {}", name(&path), slide.format());
        let found = whole(&slide);
        let difference = worst(&found, &expected(&path));
        assert!(difference <= tolerance(&path), "{}: values differ by up to {difference}", name(&path));
        if name(&path).starts_with("jpeg") && !name(&path).contains("grey") {
            let picture = slide_io::folder::read_image(&path.with_file_name("rgb.png")).unwrap();
            let sum: u64 = found.iter().zip(picture.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let mean = sum as f64 / found.len() as f64;
            assert!(mean < 5.0, "{}: it is the picture but for what quality 90 loses: {mean}", name(&path));
        }
        // Parts are parts of the whole, across tiles and strips.
        for (x, y, width, height) in [(0, 0, 1, 1), (30, 30, 5, 5), (71, 55, 1, 1), (10, 19, 40, 20)] {
            let part = slide.read(&region(0, x, y, width, height)).unwrap();
            let same = image::imageops::crop_imm(&found, x as u32, y as u32, width, height).to_image();
            assert!(part == same, "{} at ({x}, {y})", name(&path));
        }
    }
}

/// OpenSlide's generic reader takes tiled files only, and through libtiff. JPEG 2000 it knows in Aperio's files alone. Two
/// kinds it reads otherwise: a fourth sample that the file says is unspecified it takes for alpha, and of grey with alpha
/// it forgets the alpha.
#[test]
#[cfg(feature = "openslide")]
fn what_openslide_reads_is_equal() {
    let mut equal = 0;
    for path in files() {
        let name = name(&path);
        let Ok(openslide) = Slide::open_as(&path, "openslide") else { continue };
        let difference = worst(&whole(&Slide::open_as(&path, "tiff").unwrap()), &whole(&openslide));
        match name.starts_with("unspecified") || name.starts_with("grey_alpha") {
            true => eprintln!("{name}: differs from OpenSlide by up to {difference}"),
            false => assert_eq!(difference, 0, "{name}"),
        }
        equal += usize::from(difference == 0);
    }
    assert!(equal >= 20, "{equal} files are equal");
}

/// As libtiff, and so OpenSlide, takes it.
#[test]
fn a_fourth_sample_of_which_nothing_is_said_is_alpha() {
    const EXTRA_SAMPLES: u16 = 338;
    let seed = file("alpha_multiplied_lzw_predicted_tiles");
    let mut layout = Layout::new(std::fs::read(&seed).unwrap());
    let at = layout.entry(0, EXTRA_SAMPLES).unwrap().at;
    // A tag that nobody knows.
    layout.put(Number { at, bytes: 2 }, 65_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("untold.tif");
    std::fs::write(&path, &layout.bytes).unwrap();
    for format in crate::sample::tiff_readers() {
        let slide = Slide::open_as(&path, format.name).unwrap();
        assert!(whole(&slide) == expected(&seed), "{}", format.name);
    }
}

#[test]
fn pyramids_by_directories_and_by_sub_directories() {
    for (kind, mpp) in [("directories", None), ("ome_sub_directories", Some(Mpp(0.25)))] {
        let slide = Slide::open(file(&format!("pyramid_{kind}"))).unwrap();
        let sizes: Vec<_> = slide.levels().iter().map(|level| (level.size.width, level.size.height)).collect();
        assert_eq!(sizes, [(72, 56), (36, 28)], "{kind}");
        assert_eq!(slide.mpp(), mpp, "{kind}: OME's PhysicalSizeX");
        let (large, small) = (whole(&slide), slide.read(&region(1, 0, 0, 36, 28)).unwrap());
        // Every other pixel, in JPEG 90 with halved chroma: alike on the whole, not equal.
        let differences = small.enumerate_pixels().map(|(x, y, pixel)| {
            let other = large.get_pixel(2 * x, 2 * y);
            (0..3).map(|color| u64::from(pixel.0[color].abs_diff(other.0[color]))).sum::<u64>()
        });
        let mean = differences.sum::<u64>() as f64 / (36.0 * 28.0 * 3.0);
        assert!(mean < 8.0, "{kind}: mean difference {mean}");
    }
}

/// Both vendors leave out tiles that hold nothing but glass.
#[test]
fn tiles_that_are_not_stored_are_background() {
    let philips = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/philips.tif");
    for (path, format) in [(file("aperio"), "tiff (aperio)"), (philips, "openslide (philips)")] {
        if format.starts_with("openslide") && slide_io::format::openslide_version().is_none() {
            assert!(Slide::open(&path).unwrap_err().to_string().contains("Philips files have rules of their own"));
            continue;
        }
        let slide = Slide::open(&path).unwrap();
        assert_eq!(slide.format(), format);
        let missing = slide.read(&region(0, 32, 0, 32, 32)).unwrap();
        assert!(missing.iter().all(|value| *value == 255), "{format}");
        let stored = slide.read(&region(0, 0, 0, 32, 32)).unwrap();
        assert!(stored.iter().all(|value| *value < 255), "{format}");
    }
}

#[test]
fn associated_images_of_an_aperio_slide() {
    let slide = Slide::open(file("aperio")).unwrap();
    assert_eq!((slide.mpp(), slide.magnification()), (Some(Mpp(0.499)), Some(20.0)));
    assert_eq!(slide.associated_names(), ["thumbnail", "label", "macro"]);
    let size = |name: &str| slide.read_associated(name).unwrap().dimensions();
    assert_eq!(["thumbnail", "label", "macro"].map(size), [(36, 28), (24, 40), (72, 20)]);
    let picture = slide_io::folder::read_image(&file("aperio").with_file_name("rgb.png")).unwrap();
    let mut label = image::imageops::crop_imm(&picture, 0, 0, 24, 40).to_image();
    label.pixels_mut().for_each(|pixel| pixel.0 = [pixel.0[0], pixel.0[0], pixel.0[1]]);
    assert!(slide.read_associated("label").unwrap() == label, "LZW with a predictor, without loss");
}
