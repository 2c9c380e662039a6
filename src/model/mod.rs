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

use crate::config::Precision;
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device};

/// That products can be computed in `precision` on `device`. `section` is where the configuration asks for it.
///
/// # Errors
/// A device that cannot, with the key.
pub fn require_precision(section: &str, precision: Precision, device: &Device) -> Result<()> {
    ensure!(
        precision == Precision::F32 || (!lies_in_host_memory(device) && device.supports_dtype(DType::BF16)),
        "{section}.precision = \"bf16\" needs an accelerator that computes in bf16 (--device); use \"f32\" here"
    );
    Ok(())
}

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
