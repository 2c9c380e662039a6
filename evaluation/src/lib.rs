//! Embeddings to scores to tables.
//!
//! Everything here starts from stored embeddings and ends in one [`ResultTable`](table::ResultTable), a polars
//! data frame in long form. Knows patches only through `slide_io`'s `PatchSource`; knows no encoder.

pub mod bootstrap;
pub mod embeddings;
pub mod error;
pub mod knn;
pub mod metric;
pub mod mil;
pub mod split;
pub mod table;

pub use error::{Error, Result};
