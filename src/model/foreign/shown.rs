//! What tensors under our names show of their network.

use crate::config::{FinalNorm, MlpKind, Shown};
use crate::model::parameters::Named;
use anyhow::{Context, Result, ensure};

/// Reads the sizes off the tensors. Only the first block is looked at: one that differs is found when it is loaded.
///
/// # Errors
/// Tensors that are no vision transformer's.
pub(super) fn shown(tensors: &Named) -> Result<Shown> {
    let shape = |name: &str, dimensions: usize| {
        let values = tensors.get(name).with_context(|| format!("not a vision transformer: no tensor named {name}"))?;
        let shape = &values.shape;
        ensure!(shape.len() == dimensions && !shape.contains(&0), "not a vision transformer: {name} is {shape:?}");
        Ok::<_, anyhow::Error>(shape.clone())
    };
    let kernel = shape("patch_embed.proj.weight", 4)?;
    ensure!(
        kernel[1] == 3 && kernel[2] == kernel[3],
        "patch_embed.proj.weight is {kernel:?}: only square patches of RGB images are supported"
    );
    let positions = shape("pos_embed", 3)?;
    let [expanded, hidden] = [shape("blocks.0.mlp.fc1.weight", 2)?[0], shape("blocks.0.mlp.fc2.weight", 2)?[1]];
    let mlp = if expanded == 2 * hidden { MlpKind::Swiglu } else { MlpKind::Gelu };
    let has = |name: &str| tensors.contains_key(name);
    let depth = (0..).take_while(|i| has(&format!("blocks.{i}.norm1.weight"))).count();
    Ok(Shown {
        patch: kernel[2],
        dim: kernel[0],
        depth,
        hidden,
        mlp,
        registers: if has("reg_token") { shape("reg_token", 3)?[1] } else { 0 },
        layer_scale: has("blocks.0.ls1.gamma"),
        qkv_bias: has("blocks.0.attn.qkv.bias"),
        pre_norm: has("norm_pre.weight"),
        final_norm: match has("fc_norm.weight") && !has("norm.weight") {
            true => FinalNorm::Pooled,
            false => FinalNorm::Tokens,
        },
        rows: positions[1],
    })
}
