//! The file formats: one ordered table, one file per reader.
//!
//! [`FORMATS`] is tried from the top. A format that recognises a file but cannot read this one (an
//! [`Error::Unsupported`]) leaves it to the next; any other error is final. When none is left, the error names every
//! reason met on the way.
//!
//! # Adding a format in five steps
//!
//! | step | what | where |
//! |---|---|---|
//! | 1 | a file `format/<name>.rs` with a struct that holds the open file | beside `tiff.rs` |
//! | 2 | implement `Reader` for it: rectangles inside a level, from any thread | same file |
//! | 3 | `detect` (from the path and first bytes, cheap) and `open`, which fills `Info` | same file |
//! | 4 | a line in [`FORMATS`], before every format that would take its files less well | here |
//! | | its extensions in `EXTENSIONS`, by which a folder of slides is searched | `manifest/search.rs` |
//! | 5 | real or generated files in `tests/formats`: against another reader, cut short, damaged | tests |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use ::image::RgbImage;

use crate::error::{Error, Result};
use crate::geometry::{Level, Mpp, Size};

mod chunk;
mod directory;
mod image;
mod jpeg2000;
pub(crate) mod metadata;
mod openslide;
mod tiff;
mod tile_cache;

pub use metadata::PLAUSIBLE_MPP;
pub use openslide::openslide_version;

/// The formats in the order they are tried.
pub const FORMATS: &[Format] = &[
    Format { name: "tiff", detect: tiff::detect, open: tiff::open },
    #[cfg(feature = "openslide")]
    Format { name: "openslide", detect: openslide::detect, open: openslide::open },
    // Last: a MIRAX slide begins as a JPEG.
    Format { name: "image", detect: image::detect, open: image::open },
];

/// One way to read a slide.
pub struct Format {
    /// Name in messages and in [`Slide::format`](crate::slide::Slide::format).
    pub name: &'static str,
    /// Whether the file looks like one of these.
    detect: fn(&Path, &Head) -> bool,
    /// Opens it.
    open: fn(&Path) -> Result<Opened>,
}

/// An open file: what is known about it, and the means to read it.
pub(crate) struct Opened {
    pub info: Info,
    pub reader: Box<dyn Reader>,
}

/// What a reader knows about its file.
#[derive(Default)]
pub(crate) struct Info {
    /// As OpenSlide names it: `aperio`, `generic-tiff`, `hamamatsu`.
    pub vendor: String,
    pub levels: Vec<Level>,
    /// Of every level: how it is stored.
    pub storage: Vec<Storage>,
    pub mpp: Option<Mpp>,
    pub magnification: Option<f64>,
    pub properties: BTreeMap<String, String>,
    /// Names of the associated images.
    pub associated: Vec<String>,
}

/// How a level is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage {
    /// Pixels decoded at a time.
    pub tile: Size,
    /// How often its sides can be halved while it is decoded, at a fraction of the cost.
    pub halvings: u8,
    /// Whether a halving lies up to half a pixel off, as wavelets make it: good enough for a picture of the whole slide.
    pub shifts: bool,
}

/// A rectangle that lies wholly inside its level, in pixels of that level halved `halvings` times (rounded down).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub level: usize,
    pub halvings: u8,
    pub x: u32,
    pub y: u32,
    pub size: Size,
}

/// Reads pixels of one open file. Called from many threads at once, with no more halvings than [`Storage`] offers.
pub(crate) trait Reader: Send + Sync {
    /// The pixels of `area`, composited on white.
    fn read(&self, area: Area) -> Result<RgbImage>;

    /// Forgets a decoded tile of a level that will not be read again soon.
    fn release(&self, _level: usize, _halvings: u8, _column: u32, _row: u32) {}

    /// Whether a tile of a level begins and ends as it should, at the cost of two short reads; where it does not, the error of
    /// reading it.
    fn probe(&self, _level: usize, _column: u32, _row: u32) -> Result<()> {
        Ok(())
    }

    /// The stored JPEG of a tile as a complete stream that any decoder reads the right way; `None` where there is none.
    fn stored_jpeg(&self, _level: usize, _column: u32, _row: u32) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// The associated image `name`, one of [`Info::associated`].
    fn read_associated(&self, name: &str) -> Result<RgbImage>;
}

/// The first bytes of a file.
pub(crate) struct Head {
    bytes: Vec<u8>,
}

impl Head {
    /// Bytes read for detection: DICOM's mark ends at 132.
    const LENGTH: u64 = 256;

    fn of(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut bytes = Vec::new();
        file.take(Self::LENGTH).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        Ok(Self { bytes })
    }

    /// A TIFF or BigTIFF of either byte order.
    pub(crate) fn is_tiff(&self) -> bool {
        matches!(self.bytes.get(..4), Some(b"II\x2a\0" | b"MM\0\x2a" | b"II\x2b\0" | b"MM\0\x2b"))
    }

    fn is_dicom(&self) -> bool {
        self.bytes.get(128..132) == Some(b"DICM")
    }
}

/// Opens `path` with the first of [`FORMATS`] that can; `only` restricts the choice to the format of that name.
pub(crate) fn open(path: &Path, only: Option<&str>) -> Result<(&'static Format, Opened)> {
    let head = Head::of(path)?;
    if head.bytes.is_empty() {
        return Err(Error::bad(path, "it is empty (0 bytes)"));
    }
    let mut reasons = Vec::new();
    for format in FORMATS.iter().filter(|format| only.is_none_or(|name| name == format.name)) {
        if !(format.detect)(path, &head) {
            continue;
        }
        match (format.open)(path) {
            Ok(opened) => return Ok((format, opened)),
            Err(Error::Unsupported { what, .. }) => reasons.push(format!("{}: {what}", format.name)),
            Err(error) => return Err(error),
        }
    }
    match only {
        None => Err(refusal(path, &head, reasons)),
        Some(name) if reasons.is_empty() => {
            Err(Error::unsupported(path, format!("not recognised by the reader `{name}`")))
        }
        Some(_) => Err(Error::unsupported(path, reasons.join("; "))),
    }
}

/// Why no format took the file, in one sentence that says what to do.
fn refusal(path: &Path, head: &Head, mut reasons: Vec<String>) -> Error {
    let version = openslide_version();
    match &version {
        None => reasons.push("this build has no OpenSlide (cargo feature `openslide`)".to_owned()),
        Some(version) if head.is_dicom() && major(version) < 4 => {
            return Error::unsupported(path, format!("DICOM needs OpenSlide >= 4.0; this is {version}"));
        }
        Some(version) if reasons.iter().all(|reason| !reason.starts_with("openslide")) => {
            reasons.push(format!("OpenSlide {version} does not recognise it"));
        }
        Some(_) => {}
    }
    let reasons = reasons.join("; ");
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    if head.is_tiff() && extension == "ndpi" {
        return Error::bad(
            path,
            format!("it begins as a TIFF, but not as a whole NDPI: cut off or damaged? ({reasons})"),
        );
    }
    if head.is_tiff() || head.is_dicom() {
        return Error::unsupported(path, format!("no reader for it: {reasons}"));
    }
    let first: Vec<_> = head.bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let what = format!("not a slide: its first bytes ({}) belong to no known format; {reasons}", first.join(" "));
    match extension.to_str() {
        Some("svs" | "tif" | "tiff" | "ndpi" | "scn" | "bif") => Error::bad(path, what),
        _ => Error::unsupported(path, what),
    }
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
