//! Embeddings to scores to tables.
//!
//! Everything here starts from stored embeddings and ends in one [`ResultTable`](table::ResultTable), a polars
//! data frame in long form. Knows patches only by `slide_io`'s [`PatchKey`](slide_io::PatchKey); knows no encoder.
//!
//! The flow through this crate, top to bottom:
//!
//! 1. [`EmbeddingTable`](embeddings::EmbeddingTable) for patches, [`Bag`](bag::Bag)s of patches for slides.
//! 2. [`split`]: folds, or the splits of a csv, with a validation part; no group in two of them.
//! 3. [`knn`] and [`linear`] probes on patches, [`mil`] on slides: scores per class; the last two on [`standard`] features.
//! 4. [`metric::Predictions`]: scores to figures; [`bootstrap`]: their intervals; [`paired`]: tests of
//!    two encoders, which [`comparison`] asks for on the slides that both have [`scored`].
//! 5. [`fid`]: how near generated images are to real ones, by their features.
//! 6. [`robustness`]: scores among some of ImageNet's classes, and ImageNet-C's errors.
//! 7. [`video`]: masks of a video carried from frame to frame by patch tokens, and their scores.
//! 8. [`retrieval`] and [`copies`]: the images of a place, a class or an original among many others.
//! 9. [`heatmap`]: what a head attends to, over a picture of the slide.
//! 10. [`table`]: the long table and its Parquet, CSV and Markdown files; [`spread`]: mean and deviation over folds and runs.
//! 11. [`summary`]: the tables of many runs in one, in Markdown and LaTeX.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod atomic_file;
pub mod bag;
pub mod bootstrap;
pub mod comparison;
pub mod copies;
mod device;
pub mod embeddings;
pub mod error;
pub mod fid;
pub mod heatmap;
pub mod knn;
pub mod linear;
pub mod metric;
pub mod mil;
pub mod paired;
pub mod retrieval;
pub mod robustness;
pub mod scored;
mod seed;
pub mod split;
pub mod spread;
pub mod standard;
pub mod summary;
pub mod table;
pub mod video;

pub use error::{Error, Result};
