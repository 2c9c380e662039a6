//! The golden numbers of an encoder of others: what DINO's network lacks, on a device.

use super::{Comparison, stored, tensor};
use crate::config::{ForeignEncoder, NetworkKeys, Positions};
use crate::model::foreign;
use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor, TensorData};

const WEIGHTS: &[u8] = include_bytes!("../../../tests/golden/encoders/timm_registers.safetensors");
const EXPECTED: &[u8] = include_bytes!("../../../tests/golden/encoders/expected.safetensors");

/// Register tokens, LayerScale and SwiGLU of timm, at the network's own size and at another, for which positions are
/// resampled with antialiasing.
///
/// Allowed: 5e-5 of embeddings up to 2.1, 2e-5 of their size: two blocks add some hundred products of size 1, each rounded
/// to 6e-8.
///
/// # Errors
/// A device that fails.
pub fn golden_encoders(device: &Device) -> Result<Vec<Comparison>> {
    // Of so few rows of positions the number alone does not say what they belong to.
    let positions = Some(Positions::Patches);
    let network = NetworkKeys { heads: Some(2), positions, ..NetworkKeys::default() };
    let described = ForeignEncoder { name: "timm_registers".into(), network, ..ForeignEncoder::default() };
    let (vit, _) = foreign::build(stored(WEIGHTS)?, &described, device)?;
    let golden = stored(EXPECTED)?;
    ["42x42", "56x42"]
        .iter()
        .map(|image| {
            let pixels = tensor(&golden, &format!("image.{image}"))?;
            let shape: [usize; 4] =
                pixels.shape.clone().try_into().map_err(|_| anyhow!("an image has 4 dimensions"))?;
            let input = Tensor::from_data(TensorData::new(pixels.data.clone(), shape), device);
            let found = vit.forward(input).try_into_vec_as::<f32>().map_err(|e| anyhow!("{e:?}"))?;
            let expected = tensor(&golden, &format!("timm_registers.embedding.{image}"))?;
            Ok(Comparison::of(format!("registers, LayerScale, SwiGLU, {image} px"), &found, &expected.data, 5e-5))
        })
        .collect()
}
