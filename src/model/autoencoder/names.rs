//! Foreign names of the same tensors: CompVis's (latent-diffusion, taming-transformers) and those of older diffusers
//! files, onto diffusers' present ones, which are ours; and the sizes of a network whose file does not state them.

use crate::config::{AutoencoderKind, AutoencoderSizes};
use crate::model::parameters::{Named, Values};
use anyhow::{Context, Result, ensure};

/// Tensors of any of the namings under ours. Of a diffusion model's checkpoint the first stage is taken; of an
/// autoencoder's what belongs to its loss (`loss.*`: discriminator, LPIPS, log-variance) is left. Any other name that is
/// not known stays as it is, to be found left over.
pub(super) fn ours(tensors: Named) -> Named {
    const FIRST_STAGE: &str = "first_stage_model.";
    let whole = tensors.keys().any(|name| name.starts_with(FIRST_STAGE));
    let tensors: Named = match whole {
        true => tensors.into_iter().filter_map(|(n, v)| Some((n.strip_prefix(FIRST_STAGE)?.to_owned(), v))).collect(),
        false => tensors,
    };
    let compvis = tensors.keys().any(|name| name.starts_with("encoder.down."));
    let levels = (0..).take_while(|i| tensors.contains_key(&format!("encoder.down.{i}.block.0.conv1.weight"))).count();
    tensors
        .into_iter()
        .filter(|(name, _)| !(compvis && name.starts_with("loss.")))
        .map(|(name, values)| {
            let new = if compvis { from_compvis(&name, levels) } else { from_older_diffusers(&name) };
            let new = new.unwrap_or(name);
            let values = as_matrix(&new, values);
            (new, values)
        })
        .collect()
}

/// A name of CompVis's; `None` for one it does not have. Its decoder counts levels from the shallow end.
fn from_compvis(name: &str, levels: usize) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let [side @ ("encoder" | "decoder"), rest @ ..] = parts.as_slice() else { return None };
    let level = |text: &str| text.parse::<usize>().ok();
    let inner = match rest {
        ["norm_out", part] => format!("conv_norm_out.{part}"),
        ["mid", "block_1", rest @ ..] => format!("mid_block.resnets.0.{}", resnet(rest)?),
        ["mid", "block_2", rest @ ..] => format!("mid_block.resnets.1.{}", resnet(rest)?),
        ["mid", "attn_1", rest @ ..] => format!("mid_block.attentions.0.{}", attention(rest)?),
        [way @ ("down" | "up"), i, rest @ ..] => {
            let i = level(i)?;
            let block = if *way == "up" { levels.checked_sub(i + 1)? } else { i };
            let rest = match rest {
                ["block", j, rest @ ..] => format!("resnets.{j}.{}", resnet(rest)?),
                ["attn", j, rest @ ..] => format!("attentions.{j}.{}", attention(rest)?),
                ["downsample", "conv", part] => format!("downsamplers.0.conv.{part}"),
                ["upsample", "conv", part] => format!("upsamplers.0.conv.{part}"),
                _ => return None,
            };
            format!("{way}_blocks.{block}.{rest}")
        }
        _ => return None,
    };
    Some(format!("{side}.{inner}"))
}

fn resnet(parts: &[&str]) -> Option<String> {
    match parts {
        ["nin_shortcut", part] => Some(format!("conv_shortcut.{part}")),
        [layer @ ("norm1" | "conv1" | "norm2" | "conv2"), part] => Some(format!("{layer}.{part}")),
        _ => None,
    }
}

fn attention(parts: &[&str]) -> Option<String> {
    let [layer, part] = parts else { return None };
    let layer = match *layer {
        "norm" => "group_norm",
        "q" | "query" => "to_q",
        "k" | "key" => "to_k",
        "v" | "value" => "to_v",
        "proj_out" | "proj_attn" => "to_out.0",
        _ => return None,
    };
    Some(format!("{layer}.{part}"))
}

/// Before diffusers 0.15 the layers of an attention were called `query`, `key`, `value` and `proj_attn`.
fn from_older_diffusers(name: &str) -> Option<String> {
    let (before, rest) = name.split_once(".attentions.")?;
    let (number, rest) = rest.split_once('.')?;
    let rest = attention(&rest.split('.').collect::<Vec<_>>())?;
    Some(format!("{before}.attentions.{number}.{rest}"))
}

/// CompVis's attention layers are convolutions of one pixel: matrices with two more dimensions.
fn as_matrix(name: &str, values: Values) -> Values {
    let layer = name.contains(".attentions.") && name.ends_with(".weight");
    match values.shape[..] {
        [output, input, 1, 1] if layer => Values { shape: vec![output, input], ..values },
        _ => values,
    }
}

/// The sizes of a network, read off its tensors. The number of `groups` is in none of them.
///
/// # Errors
/// Tensors that are not those of a first stage, or of one that is none of our kinds.
pub(super) fn sizes(tensors: &Named, groups: usize) -> Result<AutoencoderSizes> {
    let shape = |name: &str| {
        let values = tensors.get(name).with_context(|| format!("not a first stage: no tensor named {name}"))?;
        ensure!(values.shape.len() == if name.contains("embedding") { 2 } else { 4 }, "{name} is {:?}", values.shape);
        Ok::<_, anyhow::Error>(values.shape.clone())
    };
    let channels = shape("encoder.conv_in.weight")?[0];
    let name = |level| format!("encoder.down_blocks.{level}.resnets.0.conv1.weight");
    let levels = (0..).take_while(|&level| tensors.contains_key(&name(level))).count();
    ensure!(levels > 0, "not a first stage: no tensor named {}", name(0));
    let widths = (0..levels).map(|level| Ok(shape(&name(level))?[0])).collect::<Result<Vec<_>>>()?;
    ensure!(
        channels > 0 && widths.iter().all(|width| width.is_multiple_of(channels)),
        "the widths {widths:?} of its levels are not multiples of {channels}, that of its first layer"
    );
    let codebook = match tensors.keys().any(|name| name.starts_with("quantize.")) {
        true => shape("quantize.embedding.weight")?[0],
        false => 0,
    };
    let factor = 1 << (levels - 1);
    let kind = AutoencoderKind::of(codebook > 0, factor)
        .with_context(|| format!("it makes one latent of {factor} px; the first stages here make one of 4 or 8"))?;
    let has_attention =
        |level: usize| tensors.keys().any(|n| n.starts_with(&format!("encoder.down_blocks.{level}.att")));
    AutoencoderSizes {
        kind,
        channels,
        ch_mult: widths.iter().map(|width| width / channels).collect(),
        latent_channels: shape("post_quant_conv.weight")?[1],
        groups,
        attention: (0..levels).filter(|&level| has_attention(level)).map(|level| 1 << level).collect(),
        codebook,
    }
    .checked()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_compvis_become_ours() {
        for (theirs, ours) in [
            ("encoder.norm_out.bias", "encoder.conv_norm_out.bias"),
            ("encoder.down.2.block.1.nin_shortcut.weight", "encoder.down_blocks.2.resnets.1.conv_shortcut.weight"),
            ("encoder.down.0.downsample.conv.bias", "encoder.down_blocks.0.downsamplers.0.conv.bias"),
            ("encoder.mid.attn_1.proj_out.weight", "encoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.up.3.attn.2.norm.weight", "decoder.up_blocks.0.attentions.2.group_norm.weight"),
            ("decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
            ("decoder.mid.block_2.norm1.weight", "decoder.mid_block.resnets.1.norm1.weight"),
        ] {
            assert_eq!(from_compvis(theirs, 4).as_deref(), Some(ours));
        }
        for unknown in ["encoder.down.0.block.0.conv3.weight", "decoder.up.4.block.0.conv1.weight", "loss.logvar"] {
            assert_eq!(from_compvis(unknown, 4), None);
        }
        let old = "encoder.mid_block.attentions.0.proj_attn.bias";
        assert_eq!(from_older_diffusers(old).as_deref(), Some("encoder.mid_block.attentions.0.to_out.0.bias"));
    }
}
