//! Patches: the one interface behind which slides, image folders and stored synthetic images look the same.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::geometry::Point;

/// Where a patch comes from: a slide and a position, or an image file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PatchKey {
    /// The slide's id, or the image's path relative to its folder.
    pub item: String,
    /// Top left corner in level-0 pixels; `None` for an image file.
    pub origin: Option<Point>,
}

/// One patch with its label.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Where it comes from.
    pub key: PatchKey,
    /// Its pixels.
    pub image: RgbImage,
    /// Class index, where known.
    pub label: Option<u32>,
}

/// A finite, indexed, thread-safe collection of patches.
pub trait PatchSource: Send + Sync {
    /// Number of patches.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where patch `index` comes from, without reading it.
    fn key(&self, index: usize) -> PatchKey;

    /// Class of patch `index`, without reading it.
    fn label(&self, index: usize) -> Option<u32>;

    /// Names of the classes, by class index; empty where there are no labels.
    fn classes(&self) -> &[String];

    /// Reads and decodes patch `index`.
    fn read(&self, index: usize) -> Result<Patch>;
}

/// Patches of a cohort of slides, read from the slides themselves.
pub struct SlidePatches;
