//! The networks: the vision transformer that becomes the encoder, DINO's projection head, the first stage of latent
//! diffusion, the U-Net, those that only judge (LPIPS, Inception), their files, and those of others.

pub mod autoencoder;
pub mod convolution;
pub mod diffusion;
pub mod discriminator;
pub mod foreign;
pub mod inception;
pub mod kernels;
pub mod layers;
pub mod noise;
pub mod parameters;
pub mod perceptual;
pub mod projection;
pub mod random;
pub mod unet;
pub mod vit;
pub mod weights;

pub use autoencoder::FirstStage;
pub use projection::{Dino, DinoHead};
pub use vit::{StochasticDepth, Vit};
pub use weights::{Encoder, EncoderConfig, Tokens};

use burn::tensor::Device;

/// Whether a tensor of `device` is memory of this process, so that it can be worked on in place and from any thread.
pub fn lies_in_host_memory(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return *device == Device::flex();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}
