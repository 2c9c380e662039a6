//! Files to pixels: whole-slide images become patches at an exact µm/px.
//!
//! The flow through this crate, top to bottom:
//!
//! 1. [`Cohort`](manifest::Cohort): which slides there are, with labels, groups and splits from a csv.
//! 2. [`Slide::open`](slide::Slide::open): one ordered table of formats, the native TIFF reader first, OpenSlide after it.
//! 3. [`TissueMask`](tissue::TissueMask): where the tissue is, at low resolution.
//! 4. [`Grid`](grid::Grid): where the patches are, at an exact µm/px; [`quality`] drops those under ink, folds and blur.
//! 5. [`h5`]: coordinates and features files in the layout of TRIDENT and CLAM.
//! 6. [`SlidePatches`](patch::SlidePatches) and [`ImageFolder`](folder::ImageFolder): patches for training and
//!    embedding behind one trait, [`PatchSource`](patch::PatchSource); a [`Walk`](walk::Walk) reads a whole slide with
//!    every stored tile decoded once, and [`stain::Normalized`] gives patches the stain of a reference.
//! 7. [`pack`]: the patches of a slide in one file, for training that reads them many times; [`torch`]: features as a
//!    PyTorch tensor.
//!
//! Beside it: [`regions`] and [`label_mask`], what people drew; [`duplicates`], which slides or images show the same
//! thing, so that no split separates them.
//!
//! Units: positions are level-0 pixels, sizes are pixels of the level they are read from, scales are µm/px.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
pub mod atomic_file;
pub mod duplicates;
pub mod error;
pub mod folder;
pub mod format;
pub mod geometry;
pub mod grid;
pub mod h5;
pub mod jpeg;
pub mod label_mask;
mod listing;
pub mod manifest;
pub mod mask;
mod mask_file;
pub mod pack;
pub mod patch;
pub mod pyramid;
pub mod quality;
pub mod regions;
pub mod slide;
pub mod stain;
pub mod thumbnail;
pub mod tissue;
pub mod torch;
pub mod walk;

pub use error::{Error, Result};
pub use folder::ImageFolder;
pub use geometry::{Level, Mpp, Point, Region, Size};
pub use grid::{Grid, GridSpec};
pub use manifest::{Cohort, SlideRecord};
pub use mask::Mask;
pub use pack::{PackSpec, PackedPatches};
pub use patch::{Patch, PatchKey, PatchSource, SlidePatches};
pub use quality::{DropReason, QualityParams};
pub use slide::Slide;
pub use tissue::{Overview, TissueMask, TissueMethod, TissueParams};
pub use walk::Walk;

pub use image::{Rgb, RgbImage};
