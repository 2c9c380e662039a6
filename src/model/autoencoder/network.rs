//! Encoder and decoder around the bottleneck (Rombach et al. 2022, appendix E): images `[B, 3, H, W]` in [-1, 1] to
//! latents `[B, z, H / f, W / f]` and back.

use super::blocks::{Attention, Downsample, Maker, Middle, Resnet, Upsample, through};
use super::latent::Codebook;
use crate::config::AutoencoderSizes;
use crate::model::convolution::{Conv2d, GroupNorm, silu};
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// Resnets of an encoder's level; a decoder's has one more.
const BLOCKS: usize = 2;

/// The whole network.
#[derive(Module, Debug)]
pub struct Autoencoder {
    /// Images to the bottleneck.
    pub encoder: Encoder,
    /// And back.
    pub decoder: Decoder,
    /// 1 x 1, before the latents.
    pub quant_conv: Conv2d,
    /// 1 x 1, after them.
    pub post_quant_conv: Conv2d,
    /// Of the kinds that have one.
    pub quantize: Option<Codebook>,
}

/// Images to the bottleneck.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: Middle,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The bottleneck to images.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid_block: Middle,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    /// The last layer, at whose weight the discriminator's gradient is weighed against the reconstruction's.
    pub conv_out: Conv2d,
}

/// A level of the encoder.
#[derive(Module, Debug)]
pub struct DownBlock {
    resnets: Vec<Resnet>,
    attentions: Vec<Attention>,
    /// None at the last level.
    downsamplers: Vec<Downsample>,
}

/// A level of the decoder.
#[derive(Module, Debug)]
pub struct UpBlock {
    resnets: Vec<Resnet>,
    attentions: Vec<Attention>,
    /// None at the last level.
    upsamplers: Vec<Upsample>,
}

impl Autoencoder {
    /// With PyTorch's initialisation of every layer; `sizes` are checked, `seed` decides.
    pub fn new(sizes: &AutoencoderSizes, seed: u64, device: &Device) -> Self {
        let make = Maker { seed, groups: sizes.groups, device };
        let latent = sizes.latent_channels;
        let moments = if sizes.kind.has_codebook() { latent } else { 2 * latent };
        Self {
            encoder: Encoder::new(&make, sizes, moments),
            decoder: Decoder::new(&make, sizes),
            quant_conv: make.conv("quant_conv", moments, moments, 1),
            post_quant_conv: make.conv("post_quant_conv", latent, latent, 1),
            quantize: sizes.kind.has_codebook().then(|| Codebook::new(sizes.codebook, latent, seed, device)),
        }
    }

    /// What the encoder says of the latents: with a codebook the latents themselves, `[B, z, h, w]`; without one mean and
    /// log-variance of their distribution, `[B, 2 z, h, w]`.
    pub fn moments(&self, images: Tensor<4>) -> Tensor<4> {
        self.quant_conv.forward(self.encoder.forward(images))
    }

    /// What the decoder's last layer turns into images: `[B, z, h, w] -> [B, channels, H, W]`.
    pub fn before_last(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder.before_last(self.post_quant_conv.forward(latents))
    }

    /// Images of latents, which are quantised where that is wanted: `[B, z, h, w] -> [B, 3, H, W]`.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder.conv_out.forward(self.before_last(latents))
    }
}

impl Encoder {
    fn new(make: &Maker, sizes: &AutoencoderSizes, output: usize) -> Self {
        let levels = sizes.ch_mult.len();
        let down_blocks = (0..levels)
            .map(|level| {
                let name = format!("encoder.down_blocks.{level}");
                let (input, width) = (sizes.width(level.saturating_sub(1)), sizes.width(level));
                let input = if level == 0 { sizes.channels } else { input };
                let attentions = if sizes.attention.contains(&(1 << level)) { BLOCKS } else { 0 };
                let halved = level + 1 < levels;
                DownBlock {
                    resnets: make.resnets(&name, input, width, BLOCKS),
                    attentions: make.attentions(&name, width, attentions),
                    downsamplers: halved
                        .then(|| Downsample::new(make, &format!("{name}.downsamplers.0"), width))
                        .into_iter()
                        .collect(),
                }
            })
            .collect();
        let width = sizes.width(levels - 1);
        Self {
            conv_in: make.conv("encoder.conv_in", 3, sizes.channels, 3),
            down_blocks,
            mid_block: Middle::new(make, "encoder.mid_block", width),
            conv_norm_out: make.norm(width),
            conv_out: make.conv("encoder.conv_out", width, output, 3),
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let x = self.down_blocks.iter().fold(self.conv_in.forward(images), |x, block| {
            let x = through(&block.resnets, &block.attentions, x);
            block.downsamplers.iter().fold(x, |x, layer| layer.forward(x))
        });
        self.conv_out.forward(silu(self.conv_norm_out.forward(self.mid_block.forward(x))))
    }
}

impl Decoder {
    fn new(make: &Maker, sizes: &AutoencoderSizes) -> Self {
        let levels = sizes.ch_mult.len();
        let deepest = sizes.width(levels - 1);
        let up_blocks = (0..levels)
            .map(|block| {
                let name = format!("decoder.up_blocks.{block}");
                let level = levels - 1 - block;
                let (input, width) = (sizes.width((level + 1).min(levels - 1)), sizes.width(level));
                let attentions = if sizes.attention.contains(&(1 << level)) { BLOCKS + 1 } else { 0 };
                UpBlock {
                    resnets: make.resnets(&name, input, width, BLOCKS + 1),
                    attentions: make.attentions(&name, width, attentions),
                    upsamplers: (level > 0)
                        .then(|| Upsample::new(make, &format!("{name}.upsamplers.0"), width))
                        .into_iter()
                        .collect(),
                }
            })
            .collect();
        Self {
            conv_in: make.conv("decoder.conv_in", sizes.latent_channels, deepest, 3),
            mid_block: Middle::new(make, "decoder.mid_block", deepest),
            up_blocks,
            conv_norm_out: make.norm(sizes.width(0)),
            conv_out: make.conv("decoder.conv_out", sizes.width(0), 3, 3),
        }
    }

    fn before_last(&self, latents: Tensor<4>) -> Tensor<4> {
        let x = self.mid_block.forward(self.conv_in.forward(latents));
        let x = self.up_blocks.iter().fold(x, |x, block| {
            let x = through(&block.resnets, &block.attentions, x);
            block.upsamplers.iter().fold(x, |x, layer| layer.forward(x))
        });
        silu(self.conv_norm_out.forward(x))
    }
}
