//! Patches to batches: from a [`PatchSource`](slide_io::PatchSource) to normalised tensors' worth of pixels.
//!
//! | file | job |
//! |---|---|
//! | [`color`] | Pillow's 8-bit colour operations and flips, byte for byte |
//! | [`blur`] | Pillow's Gaussian blur, byte for byte |
//! | [`crop`] | where a random crop lies, and Pillow's bicubic resize |
//! | [`stain`] | amounts of haematoxylin, eosin and DAB changed at random |
//! | [`attack`] | strongly altered copies, for copy detection |
//! | [`shift`] | changes of stain, focus, compression, light and scale, to measure robustness by |
//! | [`augment`] | DINO's recipe: one patch in, two global and some local crops out |
//! | [`order`] | which patch comes when, and the random numbers that belong to it |
//! | [`prefetch`] | decode and augment on threads ahead of the consumer, delivered in order |
//! | [`loader`] | [`CropLoader`] and [`SquareLoader`] for training, [`EvalLoader`] for embedding |
//! | [`latents`] | latents and embeddings of a data set, stored for the diffusion model |
//! | [`normalize`] | bytes to normalised floats, channel-major |
//!
//! Everything random about a patch comes from `order::item_rng(seed, epoch, index)`, so neither the number of threads nor
//! the place where a run was resumed changes a byte.

pub mod attack;
pub mod augment;
pub mod blur;
pub mod color;
pub mod crop;
pub mod latents;
pub mod loader;
pub mod normalize;
pub mod order;
pub mod prefetch;
pub mod shift;
pub mod stain;
pub mod thumbnail;

#[cfg(test)]
mod golden;

pub use loader::{
    Batches, CropBatch, CropLoader, EvalLoader, ImageBatch, Interpolations, MixedBatch, MultiCrop, ProbeBatch,
    ProbeCrops, ReadFailure, SquareBatch, SquareLoader, Squares, Synthetics, TrainingLoader, Treatment,
};
