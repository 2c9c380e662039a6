//! The readers on real slides, against each other, on written pyramids, and on files that lie.

#![allow(clippy::unwrap_used)]

mod agreement;
mod damage;
mod lossless;
mod real;
mod sample;
