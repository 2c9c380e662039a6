//! Encoders that somebody else trained, from a local file: `.safetensors`, or PyTorch's `.pth`, `.pt`, `.bin` and `.ckpt`,
//! whose pickles are parsed and never run.
//!
//! | file | job |
//! |---|---|
//! | [`names`] | names of timm, DINO, DINOv2 and transformers onto ours, which are timm's |
//! | [`shown`] | sizes of the network, read off the tensors |
//!
//! Loading is strict: a tensor that is missing, left over or of another shape is an error that names it. Only what belongs
//! to the training or to another head is left out, by a fixed list ([`names`]).

mod names;
mod shown;

use super::parameters::{self, Named, Values};
use super::vit::Vit;
use super::weights::{Encoder, EncoderConfig, read_pytorch, read_safetensors};
use crate::config::{FinalNorm, ForeignEncoder, Model, Network, NetworkKeys, PositionResampling};
use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use std::path::Path;

/// Where a checkpoint of PyTorch keeps the state dictionary, in the order of preference; a plain one has none of them.
const STATE_DICTIONARIES: [&str; 4] = ["teacher", "state_dict", "model", "student"];

/// Loads the encoder that `described` describes; `hash` is what its embeddings are known by. A file of ours says itself
/// what it is.
///
/// # Errors
/// A file that cannot be read; tensors that are missing, left over or of another shape, by name; a network other than the
/// described one. Nothing is loaded half-way.
pub fn load(described: &ForeignEncoder, hash: &str, device: &Device) -> Result<Encoder> {
    let path = &described.weights;
    let context = || format!("cannot load the encoder {} from {}", described.name(), path.display());
    let (tensors, metadata) = read(path, None).with_context(context)?;
    if metadata.is_some() {
        drop(tensors);
        return of_ours(described, hash, device).with_context(context);
    }
    let (vit, network) = build(tensors, described, device).with_context(context)?;
    let (mean, std) = described.normalisation()?;
    let config = EncoderConfig { model: model(&network), mean, std, origin: described.description()? };
    let view = Some(described.view(&network)?);
    Ok(Encoder { config, hash: hash.to_owned(), vit, view, device: device.clone() })
}

/// An encoder that another run trained.
fn of_ours(described: &ForeignEncoder, hash: &str, device: &Device) -> Result<Encoder> {
    let Encoder { config, vit, .. } = Encoder::load(&described.weights, device)?;
    let described_otherwise = described.preset()?.is_some()
        || described.network != NetworkKeys::default()
        || described.mean.is_some()
        || described.std.is_some();
    ensure!(
        !described_otherwise,
        "the file is gensis's and says itself what it holds: leave out preset, network, mean and std"
    );
    let view = match (described.resize, described.crop) {
        // As the encoders of this run see it.
        (None, None) => None,
        _ => Some(described.view(vit.network())?),
    };
    Ok(Encoder { config, hash: hash.to_owned(), vit, view, device: device.clone() })
}

/// An encoder of which nothing is known but its file (or the `tensors` of it): heads of 64 channels, positions resampled
/// as DINO's, ImageNet's normalisation.
pub(super) fn undescribed(path: &Path, tensors: Option<Named>, device: &Device) -> Result<Encoder> {
    let network = NetworkKeys { interpolation: Some(PositionResampling::Dino), ..NetworkKeys::default() };
    let described = ForeignEncoder { weights: path.to_owned(), network, ..ForeignEncoder::default() };
    let (tensors, _) = read(path, tensors)?;
    let (vit, network) = build(tensors, &described, device)?;
    let (mean, std) = described.normalisation()?;
    let origin = serde_json::json!({ "imported": true });
    Ok(Encoder::new(vit, EncoderConfig { model: model(&network), mean, std, origin }, device))
}

/// The described network filled with the tensors of a file.
pub(crate) fn build(tensors: Named, described: &ForeignEncoder, device: &Device) -> Result<(Vit, Network)> {
    let (tensors, network) = network_of(names::ours(tensors)?, described)?;
    Ok((parameters::import(Vit::zeros(&network, device), &tensors)?, network))
}

/// What of a network [`Model`] can say.
fn model(network: &Network) -> Model {
    let Network { patch, image_size, dim, depth, heads, .. } = *network;
    Model { arch: "custom".into(), patch, image_size, dim, depth, heads, drop_path: 0.0 }
}

/// Whether a file is PyTorch's, by its name.
pub(super) fn is_pytorch(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["pth", "pt", "bin", "ckpt"].iter().any(|known| extension == *known))
}

/// The tensors of a file, and our metadata if it has any; `tensors` are those of a safetensors file that was read before.
fn read(path: &Path, tensors: Option<Named>) -> Result<(Named, Option<serde_json::Value>)> {
    match tensors {
        Some(tensors) => Ok((tensors, None)),
        None if is_pytorch(path) => Ok((read_pytorch(path, &STATE_DICTIONARIES)?, None)),
        None => read_safetensors(path),
    }
}

/// The network of tensors under our names, and the tensors as [`Vit`] has them: biases that the network lacks are 0, and
/// the one normalisation at its end has one name, whatever it works on.
fn network_of(mut tensors: Named, described: &ForeignEncoder) -> Result<(Named, Network)> {
    let network = described.network(&shown::shown(&tensors)?)?;
    let Network { dim, depth, .. } = network;
    if network.final_norm == FinalNorm::Pooled {
        for part in ["weight", "bias"] {
            tensors.remove(&format!("fc_norm.{part}")).map(|values| tensors.insert(format!("norm.{part}"), values));
        }
    }
    let mut zeros = |name: String, length: usize| {
        tensors.entry(name).or_insert_with(|| Values { shape: vec![length], data: vec![0.0; length] });
    };
    if !network.qkv_bias {
        (0..depth).for_each(|block| zeros(format!("blocks.{block}.attn.qkv.bias"), 3 * dim));
    }
    if network.pre_norm {
        zeros("patch_embed.proj.bias".into(), dim);
    }
    Ok((tensors, network))
}

#[cfg(test)]
mod tests;
