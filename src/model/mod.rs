//! The networks: the vision transformer that becomes the encoder, DINO's projection head, and their files.

pub mod layers;
pub mod parameters;
pub mod projection;
pub mod random;
pub mod vit;
pub mod weights;

pub use projection::{Dino, DinoHead};
pub use vit::{StochasticDepth, Vit};
pub use weights::{Encoder, EncoderConfig};
