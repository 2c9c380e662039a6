//! Images in class folders: the layout of ImageNet, and a flat folder of unlabelled images.
//!
//! ```text
//! <root>/<class>/**/<image>      the class index is the rank of the class folder's name
//! <root>/<image>                 no classes
//! ```
//!
//! Class folders that are all named by whole numbers sort as numbers (ImageNetV2: `2` before `10`). An empty class folder
//! keeps its rank. Hidden files and files that are neither JPEG nor PNG are passed over; EXIF orientation is ignored, as
//! torchvision does.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::png::PngDecoder;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, RgbImage};
use turbojpeg::{Colorspace, Decompressor, PixelFormat};

use crate::error::{Error, Result};
use crate::listing::{self, Kind};
use crate::patch::{Patch, PatchKey, PatchSource};

/// Largest image that is decoded: 268 million pixels, 800 MB.
const MAX_PIXELS: usize = 1 << 28;

/// Images in class folders (ImageNet layout), or a flat folder of unlabelled ones.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    files: Vec<File>,
    classes: Vec<String>,
}

#[derive(Clone, Debug)]
struct File {
    /// Path below the root, with `/` on every system.
    key: String,
    label: Option<u32>,
}

impl ImageFolder {
    /// Lists the images under `root`, sorted by class and path. Nothing is decoded yet.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed; [`Error::Usage`] if there is no such folder, no image in it, or images lie
    /// beside class folders.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        if !root.is_dir() {
            return Err(Error::Usage(format!("{}: there is no such folder of images", root.display())));
        }
        let mut loose = Vec::new();
        let mut classes = Vec::new();
        for (path, kind) in listing::below(root, 1)? {
            match kind {
                Kind::Folder => classes.push(listing::relative(root, &path)),
                // A link to its own folder holds no other images.
                Kind::Closed => {}
                Kind::File | Kind::Dangling if is_image(&path) => loose.push(listing::relative(root, &path)),
                Kind::File | Kind::Dangling => {}
            }
        }
        sort_names(&mut classes);
        let mut files = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            // One that cannot be listed is reported as an image that cannot be read.
            let folder = root.join(class);
            let images = listing::files(&folder, is_image).unwrap_or_else(|_| vec![folder]);
            let file = |path: PathBuf| File { key: listing::relative(root, &path), label: Some(label as u32) };
            files.extend(images.into_iter().map(file));
        }
        match (files.is_empty(), loose.is_empty()) {
            (true, true) => Err(Error::Usage(format!(
                "{}: no JPEG or PNG images, neither here nor in class folders below",
                root.display()
            ))),
            (false, false) => Err(Error::Usage(format!(
                "{}: {} lies beside class folders; move it into one of them, or away",
                root.display(),
                loose[0]
            ))),
            (true, false) => {
                let files = loose.into_iter().map(|key| File { key, label: None }).collect();
                Ok(Self { root: root.to_owned(), files, classes: Vec::new() })
            }
            (false, true) => Ok(Self { root: root.to_owned(), files, classes }),
        }
    }

    /// The same images with the class indices of `classes`: a test folder that lacks a class then agrees with its training
    /// folder.
    ///
    /// # Errors
    /// [`Error::Usage`] for a class that is not among them.
    pub fn with_classes(mut self, classes: &[String]) -> Result<Self> {
        let rank = |name: &String| classes.iter().position(|class| class == name).map(|rank| rank as u32);
        let ranks: Vec<u32> = self
            .classes
            .iter()
            .map(|name| {
                rank(name).ok_or_else(|| {
                    Error::Usage(format!("{}: class {name} is not among the training classes", self.root.display()))
                })
            })
            .collect::<Result<_>>()?;
        for file in &mut self.files {
            file.label = file.label.map(|label| ranks[label as usize]);
        }
        self.classes = classes.to_vec();
        Ok(self)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl PatchSource for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn key(&self, index: usize) -> PatchKey {
        PatchKey { item: self.files[index].key.clone(), origin: None }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.files[index].label
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn read(&self, index: usize) -> Result<Patch> {
        let image = read_image(&self.root.join(&self.files[index].key))?;
        Ok(Patch { key: self.key(index), image, label: self.files[index].label })
    }
}

/// The two parts of a data set that is split by folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitFolders {
    /// `train/`.
    pub train: PathBuf,
    /// `test/`, or else `val/`, `valid/` or `validation/`.
    pub test: PathBuf,
}

/// The parts of `root` if it holds `train/` and `test/` (or `val/`); `None` if it is one folder of images.
pub fn split_folders(root: &Path) -> Option<SplitFolders> {
    let train = root.join("train");
    let test =
        ["test", "val", "valid", "validation"].map(|name| root.join(name)).into_iter().find(|path| path.is_dir())?;
    train.is_dir().then_some(SplitFolders { train, test })
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png"))
}

/// Sorts class names: as numbers if all of them are, as text otherwise.
pub(crate) fn sort_names(names: &mut [String]) {
    if names.iter().all(|name| name.parse::<i64>().is_ok()) {
        names.sort_by_key(|name| (name.parse::<i64>().unwrap_or(0), name.clone()));
    } else {
        names.sort();
    }
}

/// Decodes a JPEG or PNG file as RGB: grey becomes three equal channels, CMYK is converted, alpha is dropped as Pillow's
/// `convert("RGB")` does. The content decides, not the extension.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::BadFile`] if it is damaged or cut short: never a part of an image.
pub fn read_image(path: &Path) -> Result<RgbImage> {
    read_with(path, DynamicImage::into_rgb8)
}

/// The same as `to_rgb` makes it.
pub(crate) fn read_with(path: &Path, to_rgb: impl Fn(DynamicImage) -> RgbImage) -> Result<RgbImage> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    match image::guess_format(&bytes) {
        Ok(ImageFormat::Jpeg) => decode_jpeg(&bytes, path),
        Ok(ImageFormat::Png) => decode_png(&bytes, path).map(to_rgb),
        _ if bytes.is_empty() => Err(Error::bad(path, "it is empty")),
        _ => Err(Error::bad(path, "it is neither JPEG nor PNG")),
    }
}

fn decode_png(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    let bad = |error: ImageError| Error::bad(path, error.to_string());
    let decoder = PngDecoder::new(Cursor::new(bytes)).map_err(bad)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width as usize, height as usize, path)?;
    DynamicImage::from_decoder(decoder).map_err(bad)
}

fn check_pixels(width: usize, height: usize, path: &Path) -> Result<()> {
    match width.saturating_mul(height) {
        0..=MAX_PIXELS => Ok(()),
        _ => Err(Error::limit(path, format!("{width}x{height} pixels are more than the limit of {MAX_PIXELS}"))),
    }
}

fn decode_jpeg(bytes: &[u8], path: &Path) -> Result<RgbImage> {
    let bad = |error: turbojpeg::Error| Error::bad(path, error.to_string());
    let mut decompressor = Decompressor::new().map_err(bad)?;
    let header = decompressor.read_header(bytes).map_err(bad)?;
    let (width, height) = (header.width, header.height);
    check_pixels(width, height, path)?;
    let cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if cmyk { PixelFormat::CMYK } else { PixelFormat::RGB };
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    let target = turbojpeg::Image { pixels: &mut pixels[..], width, pitch, height, format };
    match decompressor.decompress(bytes, target) {
        // Stray bytes between two segments: the whole image is there. A few files of ImageNet have them.
        Err(error) if error.to_string().contains("extraneous bytes") => {}
        decoded => decoded.map_err(bad)?,
    }
    if cmyk {
        pixels = rgb_of_cmyk(&pixels, has_adobe_marker(bytes));
    }
    Ok(RgbImage::from_raw(width as u32, height as u32, pixels).expect("three bytes per pixel were decoded"))
}

/// RGB as Pillow converts CMYK: (1 - ink)(1 - black). Adobe's files store 255 - ink.
fn rgb_of_cmyk(cmyk: &[u8], inverted: bool) -> Vec<u8> {
    let left = |ink: u8| u32::from(if inverted { ink } else { 255 - ink });
    cmyk.chunks_exact(4)
        .flat_map(|p| [p[0], p[1], p[2]].map(|ink| ((left(ink) * left(p[3]) + 127) / 255) as u8))
        .collect()
}

/// Whether a JPEG has Adobe's APP14 segment before its image data.
fn has_adobe_marker(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xEE => return bytes.get(at + 4..at + 9) == Some(b"Adobe"),
            0xDA => return false,
            0xFF => at += 1,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn png(path: &Path, colour: Rgb<u8>) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(4, 3, colour).save(path).unwrap();
    }

    fn listing(folder: &ImageFolder) -> Vec<(String, Option<u32>)> {
        (0..folder.len()).map(|i| (folder.key(i).item, folder.label(i))).collect()
    }

    #[test]
    fn classes_are_ranked_by_name() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        png(&at("n02/images/b.png"), Rgb([1, 2, 3]));
        png(&at("n02/a.PNG"), Rgb([4, 5, 6]));
        png(&at("n01/z.png"), Rgb([7, 8, 9]));
        png(&at("n01/.hidden.png"), Rgb([0; 3]));
        png(&at(".cache/x.png"), Rgb([0; 3]));
        fs::write(at("n01/boxes.txt"), "x").unwrap();
        fs::write(at("README"), "x").unwrap();
        fs::create_dir(at("n00")).unwrap();
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(folder.classes(), ["n00", "n01", "n02"]);
        let expected = [("n01/z.png", 1), ("n02/a.PNG", 2), ("n02/images/b.png", 2)];
        assert_eq!(listing(&folder), expected.map(|(key, label)| (key.to_owned(), Some(label))));
        let patch = folder.read(1).unwrap();
        assert_eq!(
            (patch.image.dimensions(), patch.image.get_pixel(3, 2).0, patch.label),
            ((4, 3), [4, 5, 6], Some(2))
        );
        assert_eq!(patch.key, folder.key(1));
    }

    #[test]
    fn numbered_classes_sort_as_numbers() {
        let root = tempfile::tempdir().unwrap();
        for class in ["10", "2", "0"] {
            png(&root.path().join(class).join("a.png"), Rgb([0; 3]));
        }
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(folder.classes(), ["0", "2", "10"]);
        assert_eq!(folder.key(2).item, "10/a.png");
    }

    #[test]
    fn a_flat_folder_has_no_labels() {
        let root = tempfile::tempdir().unwrap();
        png(&root.path().join("b.png"), Rgb([0; 3]));
        png(&root.path().join("a.png"), Rgb([0; 3]));
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(listing(&folder), [("a.png".to_owned(), None), ("b.png".to_owned(), None)]);
        assert!(folder.classes().is_empty());
    }

    #[test]
    fn unclear_folders_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let message = |path: &Path| ImageFolder::open(path).unwrap_err().to_string();
        assert!(message(root.path()).contains("no JPEG or PNG"));
        assert!(message(&root.path().join("gone")).contains("gone"));
        png(&root.path().join("a.png"), Rgb([0; 3]));
        png(&root.path().join("class/b.png"), Rgb([0; 3]));
        assert!(message(root.path()).contains("a.png lies beside class folders"));
    }

    #[test]
    fn a_test_folder_takes_the_classes_of_its_training_folder() {
        let root = tempfile::tempdir().unwrap();
        png(&root.path().join("c/x.png"), Rgb([0; 3]));
        let classes = ["a", "b", "c"].map(String::from);
        let folder = ImageFolder::open(root.path()).unwrap().with_classes(&classes).unwrap();
        assert_eq!((folder.label(0), folder.classes().len()), (Some(2), 3));
        let error = ImageFolder::open(root.path()).unwrap().with_classes(&classes[..2]).unwrap_err();
        assert!(error.to_string().contains("class c"));
    }

    #[test]
    fn split_folders_are_found() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("train")).unwrap();
        assert_eq!(split_folders(root.path()), None);
        fs::create_dir(root.path().join("val")).unwrap();
        assert_eq!(split_folders(root.path()).unwrap().test, root.path().join("val"));
        fs::create_dir(root.path().join("test")).unwrap();
        let split = split_folders(root.path()).unwrap();
        assert_eq!((split.train, split.test), (root.path().join("train"), root.path().join("test")));
    }

    fn jpeg(format: PixelFormat, pixel: &[u8]) -> Vec<u8> {
        let (width, height) = (32, 16);
        let pixels = pixel.repeat(width * height);
        let image = turbojpeg::Image { pixels: &pixels[..], width, pitch: width * format.size(), height, format };
        let subsamp = if format == PixelFormat::GRAY { turbojpeg::Subsamp::Gray } else { turbojpeg::Subsamp::None };
        turbojpeg::compress(image, 95, subsamp).unwrap().to_vec()
    }

    fn decoded(bytes: &[u8]) -> [u8; 3] {
        let image = decode_jpeg(bytes, Path::new("x.jpg")).unwrap();
        assert_eq!(image.dimensions(), (32, 16));
        image.get_pixel(9, 9).0
    }

    #[test]
    fn jpegs_of_every_colour_become_rgb() {
        let near = |got: [u8; 3], expected: [u8; 3]| {
            assert!(got.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 2), "{got:?} {expected:?}");
        };
        near(decoded(&jpeg(PixelFormat::RGB, &[200, 100, 50])), [200, 100, 50]);
        near(decoded(&jpeg(PixelFormat::GRAY, &[77])), [77; 3]);
        // 255 - ink, as Adobe stores it: left 200/255, 100/255, 50/255, black left 0.8.
        let adobe = jpeg(PixelFormat::CMYK, &[200, 100, 50, 204]);
        assert!(has_adobe_marker(&adobe));
        near(decoded(&adobe), [160, 80, 40]);
        let cmyk = [200, 100, 50, 204];
        assert_eq!(rgb_of_cmyk(&cmyk, true), [160, 80, 40]);
        assert_eq!(rgb_of_cmyk(&cmyk, false), [11, 31, 41]); // 55 * 51, 155 * 51, 205 * 51, over 255
        let start = adobe.windows(2).position(|w| w == [0xFF, 0xEE]).unwrap();
        assert!(!has_adobe_marker(&[&adobe[..start], &adobe[start + 16..]].concat()));
    }

    #[test]
    fn damaged_images_are_errors_and_never_parts() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.jpg");
        let message = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = read_image(&path).unwrap_err();
            assert!(matches!(error, Error::BadFile { .. }), "{error}");
            assert!(error.to_string().contains("x.jpg"));
            error.to_string()
        };
        let whole: Vec<u8> = jpeg(PixelFormat::RGB, &[200, 100, 50]);
        message(&whole[..whole.len() - 20]);
        message(&whole[..30]);
        assert!(message(b"").contains("empty"));
        assert!(message(b"GIF89a, say").contains("neither"));
        let mut png = Vec::new();
        RgbImage::from_fn(40, 40, |x, y| Rgb([x as u8, y as u8, 9]))
            .write_to(&mut Cursor::new(&mut png), ImageFormat::Png)
            .unwrap();
        message(&png[..png.len() / 2]);
        assert!(matches!(read_image(&root.path().join("gone.png")), Err(Error::Io { .. })));
    }

    #[test]
    fn stray_bytes_between_segments_do_no_harm() {
        let mut bytes = jpeg(PixelFormat::RGB, &[200, 100, 50]);
        let end = bytes.len() - 2;
        bytes.splice(end..end, [0x00, 0x11, 0x22]);
        assert_eq!(decoded(&bytes)[0].abs_diff(200) / 3, 0);
    }
}
