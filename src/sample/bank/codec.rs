//! An image or a latent to bytes and back.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use burn::tensor::f16;
use image::{ImageFormat, RgbImage};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use slide_io::jpeg::{self, ColorModel};

use super::{Decoder, Latent, Picture, Storage};

/// The one tensor of a stored latent.
const TENSOR: &str = "latent";

impl Storage {
    /// Extension of its files.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Jpeg { .. } => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Latents => "safetensors",
        }
    }

    pub(super) fn encode(self, picture: &Picture) -> Result<Vec<u8>> {
        match (self, picture) {
            (Self::Latents, Picture::Latent(latent)) => encode_latent(latent),
            (Self::Jpeg { quality }, Picture::Image(image)) => Ok(jpeg::encode(image, quality, ColorModel::YCbCr)?),
            (Self::Png, Picture::Image(image)) => encode_image(image, ImageFormat::Png),
            (Self::Webp, Picture::Image(image)) => encode_image(image, ImageFormat::WebP),
            _ => anyhow::bail!("an image cannot be stored as a latent, nor a latent as an image"),
        }
    }

    pub(super) fn decode(self, bytes: &[u8], decoder: Option<&dyn Decoder>) -> Result<RgbImage> {
        let lossless = |format| Ok(image::load_from_memory_with_format(bytes, format)?.into_rgb8());
        match self {
            Self::Jpeg { .. } => Ok(jpeg::decode(bytes)?),
            Self::Png => lossless(ImageFormat::Png),
            Self::Webp => lossless(ImageFormat::WebP),
            Self::Latents => {
                decoder.context("the bank holds latents, and no autoencoder was given")?.decode(&decode_latent(bytes)?)
            }
        }
    }
}

fn encode_image(image: &RgbImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

/// A safetensors file with one tensor, `[channels, height, width]` in half precision.
fn encode_latent(latent: &Latent) -> Result<Vec<u8>> {
    let halves: Vec<u8> = latent.values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
    let finite = latent.values.iter().all(|value| f16::from_f32(*value).is_finite());
    ensure!(finite, "a latent is not finite in half precision (65,504 is the largest number)");
    let view = TensorView::new(Dtype::F16, latent.shape.to_vec(), &halves)?;
    Ok(serialize([(TENSOR, view)], None)?)
}

fn decode_latent(bytes: &[u8]) -> Result<Latent> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let tensor = tensors.tensor(TENSOR)?;
    ensure!(tensor.dtype() == Dtype::F16, "a latent of {:?} numbers, not of F16", tensor.dtype());
    let shape = <[usize; 3]>::try_from(tensor.shape()).context("a latent has channels, height and width")?;
    let values = tensor.data().chunks_exact(2).map(|half| f16::from_le_bytes([half[0], half[1]]).to_f32()).collect();
    Ok(Latent { shape, values })
}
