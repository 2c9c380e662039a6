//! The readers on real slides, against each other, on written pyramids, and on files that lie.

#![allow(clippy::unwrap_used)]

mod agreement;
mod breadth;
mod damage;
mod layout;
mod limits;
mod lossless;
mod mutation;
mod real;
mod sample;
