//! The bank: for every image of a data set some synthetic images of it and some between it and another one, made once by
//! the latent diffusion model, because making them anew in every epoch would cost far more than the training does.
//!
//! ```text
//! <bank>/00000.tar    the images of the first [bank.shard] images of the data set, 00000012_generative_0.jpg, ...
//! <bank>/00000.json   the header, and what lies where in the tar; written last, so that it vouches for it
//! <bank>/00001.tar    ...
//! ```
//!
//! | file | job |
//! |---|---|
//! | `header.rs` | everything a bank depends on; a bank of other settings is refused with both values named |
//! | `plan.rs` | which images are made: the secondary image, α and noise of each are hashes of seed, image and number |
//! | `codec.rs` | an image or a latent to bytes and back |
//! | `shard.rs` | one shard file and its index |
//! | `make.rs` | generating, encoding and writing, overlapped |
//! | `read.rs` | [`SyntheticBank`]: a [`PatchSource`](slide_io::PatchSource), and access by image, kind and number |
//!
//! A shard depends on nothing but the header and its number. So several machines can each make a [`Part`] of them, a run
//! that was killed continues at the first shard it did not finish, and the merged folder is byte for byte the one made at
//! once, as far as the generator computes the same on all of them.

mod codec;
mod header;
mod make;
mod plan;
mod read;
mod shard;
#[cfg(test)]
mod tests;

pub use header::{Header, Origin, Storage};
pub use make::{Busy, Made, Work};
pub use plan::{Kind, Part, Request, partner};
pub use read::{Stored, Synthetic, SyntheticBank};

use anyhow::Result;
use image::RgbImage;

/// Makes the images that are asked for: a diffusion model with its sampler, conditioned on the embeddings of the data set.
///
/// An image may depend on its request alone, not on those beside it.
pub trait Generator: Sync {
    /// One picture for each request, in their order, as the generator has them: latents, which [`decode`](Self::decode) makes
    /// images of beside the next batch, or images.
    ///
    /// # Errors
    /// Whatever keeps it from making them.
    fn generate(&self, requests: &[Request]) -> Result<Vec<Picture>>;

    /// The images of latents that it has made, in their order.
    ///
    /// # Errors
    /// A failing device; a generator that makes images has no latents.
    fn decode(&self, latents: &[Latent]) -> Result<Vec<RgbImage>>;
}

/// A picture on its way into a bank.
#[derive(Clone, Debug, PartialEq)]
pub enum Picture {
    /// In pixels.
    Image(RgbImage),
    /// Before the autoencoder.
    Latent(Latent),
}

/// An image in the space of an autoencoder, channel-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// `channels * height * width` values.
    pub values: Vec<f32>,
}

/// The decoder of an autoencoder, for banks of latents: called from several loader threads at a time.
pub trait Decoder: Send + Sync {
    /// The image of a latent.
    ///
    /// # Errors
    /// A latent of another shape than the autoencoder's.
    fn decode(&self, latent: &Latent) -> Result<RgbImage>;
}
