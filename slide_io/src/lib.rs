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
//! ```
//! use slide_io::patch::{SlideGrid, SlidePatches};
//! use slide_io::pyramid::{PyramidSpec, write_pyramid};
//! use slide_io::{Grid, GridSpec, Mpp, PatchSource, Rgb, RgbImage, Slide, TissueMask, TissueParams};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A slide of 1024 px at 0.25 µm/px, with a square of something pink on glass.
//! let pink = |x: u32, y: u32| (256..768).contains(&x) && (256..768).contains(&y);
//! let image = RgbImage::from_fn(1024, 1024, |x, y| Rgb(if pink(x, y) { [200, 90, 160] } else { [245; 3] }));
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("slide.tiff");
//! write_pyramid(&path, &image, &PyramidSpec { mpp: Some(Mpp(0.25)), ..PyramidSpec::default() })?;
//!
//! let slide = Slide::open(&path)?;
//! let mpp = slide.mpp().expect("the file says it");
//! let tissue = TissueMask::compute(&slide, mpp, &TissueParams::default())?;
//! // Patches of 64 px at 0.5 µm/px are squares of 128 px of level 0.
//! let spec = GridSpec { mpp: Mpp(0.5), size: 64, stride: 64, min_tissue: 0.5 };
//! let grid = Grid::new(slide.size(), mpp, &spec, &tissue)?;
//! assert_eq!((grid.side_level0, grid.kept()), (128.0, 16));
//!
//! let of_slide = SlideGrid { id: "slide".into(), path, mpp, label: None, spec, origins: grid.origins };
//! let patches = SlidePatches::new(vec![of_slide], vec![])?;
//! let middle = patches.read(5)?;
//! assert_eq!((middle.image.dimensions(), middle.key.item.as_str()), ((64, 64), "slide"));
//! assert!(middle.image.get_pixel(32, 32).0[1] < 100);
//! # Ok(())
//! # }
//! ```
//!
//! Units: positions are level-0 pixels, sizes are pixels of the level they are read from, scales are µm/px.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
pub mod atomic_file;
pub mod contact_sheet;
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
pub use format::PLAUSIBLE_MPP;
pub use geometry::{Level, Mpp, Point, Region, Size};
pub use grid::{Grid, GridSpec};
pub use listing::files_below;
pub use manifest::{Cohort, SlideRecord};
pub use mask::Mask;
pub use pack::{PackSpec, PackedPatches};
pub use patch::{Patch, PatchKey, PatchSource, SlidePatches};
pub use quality::{DropReason, QualityParams};
pub use slide::Slide;
pub use tissue::{Overview, TissueMask, TissueMethod, TissueParams};
pub use walk::Walk;

pub use image::{Rgb, RgbImage};

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
