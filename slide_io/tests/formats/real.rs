//! Every real slide opens, or is refused with a reason a user can act on.

use slide_io::format::openslide_version;
use slide_io::{Error, Mpp, Slide};

use crate::sample::{name, real_files, region};

#[test]
fn every_real_file_opens_or_is_refused_with_a_reason() {
    let has_openslide = openslide_version().is_some();
    let reads_dicom = openslide_version().is_some_and(|version| !version.starts_with('3'));
    for path in real_files() {
        let file = name(&path);
        match Slide::open(&path) {
            Ok(slide) => {
                let sizes: Vec<_> =
                    slide.levels().iter().map(|l| format!("{}x{}", l.size.width, l.size.height)).collect();
                let (mpp, magnification) = (slide.mpp(), slide.magnification());
                let associated = slide.associated_names();
                eprintln!("{file}: {} {sizes:?} {mpp:?} {magnification:?} {associated:?}", slide.format());
                for level in 0..slide.levels().len() {
                    let patch = slide.read(&region(level, 0, 0, 200, 100)).unwrap();
                    assert_eq!(patch.dimensions(), (200, 100));
                }
                for name in associated {
                    let image = slide.read_associated(&name).unwrap();
                    let first = *image.get_pixel(0, 0);
                    assert!(image.width() > 16 && image.pixels().any(|pixel| *pixel != first), "{file} {name}");
                }
                assert!(slide.read_associated("nothing").is_err());
                assert!(!file.contains("broken"));
            }
            Err(error) => {
                let text = error.to_string();
                eprintln!("{file}: refused: {text}");
                if file.contains("broken") {
                    assert!(matches!(error, Error::BadFile { .. }) && text.contains("not a slide"), "{text}");
                } else if !has_openslide {
                    assert!(text.contains("cargo feature `openslide`"), "{text}");
                } else {
                    assert!(file.ends_with(".dcm") && !reads_dicom, "{text}");
                    assert!(text.contains("DICOM needs OpenSlide >= 4.0; this is 3."), "{text}");
                }
            }
        }
    }
}

#[test]
fn aperio_metadata_of_a_real_slide() {
    let Some(path) = real_files().into_iter().find(|path| name(path) == "CMU-1-Small-Region.svs") else { return };
    let slide = Slide::open(&path).unwrap();
    assert_eq!(slide.format(), "tiff (aperio)");
    assert_eq!(slide.mpp(), Some(Mpp(0.499)));
    assert_eq!(slide.magnification(), Some(20.0));
    assert_eq!(slide.associated_names(), ["thumbnail", "label", "macro"]);
    for (key, value) in [("aperio.MPP", "0.4990"), ("aperio.Filename", "CMU-1"), ("openslide.vendor", "aperio")] {
        assert_eq!(slide.properties()[key], value);
    }
    let sizes = ["thumbnail", "label", "macro"].map(|name| slide.read_associated(name).unwrap().dimensions());
    assert_eq!(sizes, [(574, 768), (387, 463), (1280, 431)]);
}
