//! A whole-slide image: open it, ask its levels and its scale, read regions of it from any thread.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::error::Result;
use crate::geometry::{Level, Mpp, Region, Size};

/// An open whole-slide image. Reading takes `&self`, so one slide serves many threads.
pub struct Slide {
    path: PathBuf,
}

impl Slide {
    /// Opens a slide through [`crate::format::FORMATS`], the first format that recognises the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { path: path.as_ref().to_owned() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which reader serves the file, with its vendor: `tiff (aperio)`, `openslide (hamamatsu)`.
    pub fn format(&self) -> String {
        unimplemented!()
    }

    /// The pyramid, finest first; never empty.
    pub fn levels(&self) -> &[Level] {
        unimplemented!()
    }

    /// Size of level 0.
    pub fn size(&self) -> Size {
        self.levels()[0].size
    }

    /// True µm/px of level 0 as the file states it; `None` where it does not.
    pub fn mpp(&self) -> Option<Mpp> {
        unimplemented!()
    }

    /// Nominal magnification (20, 40) where the file states it.
    pub fn magnification(&self) -> Option<f64> {
        unimplemented!()
    }

    /// Vendor properties, named as OpenSlide names them where it has a name.
    pub fn properties(&self) -> &BTreeMap<String, String> {
        unimplemented!()
    }

    /// Reads a region as RGB. Parts outside the slide are white; transparent pixels are composited on white.
    ///
    /// # Errors
    /// A tile that cannot be decoded is an error, never a blank area.
    pub fn read(&self, _region: &Region) -> Result<RgbImage> {
        unimplemented!()
    }

    /// Names of the associated images (`label`, `macro`, `thumbnail`).
    pub fn associated_names(&self) -> Vec<String> {
        unimplemented!()
    }

    /// Reads an associated image by name.
    pub fn read_associated(&self, _name: &str) -> Result<RgbImage> {
        unimplemented!()
    }
}
