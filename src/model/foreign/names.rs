//! Names of the same tensors in timm, facebook's DINO and DINOv2, and transformers (before and since its version 5), onto
//! timm's, which are ours.
//!
//! | ours | facebook | transformers |
//! |---|---|---|
//! | `reg_token` | `register_tokens` | `embeddings.register_tokens` |
//! | `pos_embed` | `pos_embed` | `embeddings.position_embeddings` |
//! | `patch_embed.proj.*` | `patch_embed.proj.*` | `embeddings.patch_embeddings.projection.*` |
//! | `blocks.i.*` | `blocks.i.*`, in chunks `blocks.c.i.*` | `encoder.layer.i.*`, `layers.i.*` |
//! | `attn.qkv.*` | `attn.qkv.*` | `attention.attention.{query,key,value}.*`, `attention.{q,k,v}_proj.*` |
//! | `attn.proj.*` | `attn.proj.*` | `attention.output.dense.*`, `attention.o_proj.*` |
//! | `norm1.*`, `norm2.*` | the same | the same, or `layernorm_before.*`, `layernorm_after.*` |
//! | `ls1.gamma`, `ls2.gamma` | the same | `layer_scale1.lambda1`, `layer_scale2.lambda1` |
//! | `mlp.fc1.*`, `mlp.fc2.*` | the same | the same, or `intermediate.dense.*`, `output.dense.*` |
//! | the same, gated | `mlp.w12.*`, `mlp.w3.*` | `mlp.weights_in.*`, `mlp.weights_out.*`; `mlp.{gate,up,down}_proj.*` |
//! | `norm.*` | `norm.*` | `layernorm.*` |

use crate::model::parameters::{Named, Values};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;

/// What checkpoints put before the names of the encoder.
const WRAPPERS: [&str; 8] =
    ["module.", "_orig_mod.", "teacher.", "backbone.", "model.", "vit.", "dinov2.", "dinov2_with_registers."];

/// What is not the encoder: heads for pretraining and classes, and what stands for masked patches in training.
const LEFT_OUT: [&str; 10] = [
    "head.",
    "fc.",
    "classifier.",
    "dino_head.",
    "ibot_head.",
    "student.",
    "pooler.",
    "mask_token",
    "embeddings.mask_token",
    "masked_embed",
];

/// Tensors of any of the namings under ours. A name that is not known stays as it is, to be found left over.
///
/// # Errors
/// Two tensors of one name.
pub(super) fn ours(tensors: Named) -> Result<Named> {
    let mut parts: BTreeMap<Place, (String, Values)> = BTreeMap::new();
    for (theirs, values) in tensors {
        let name = unwrapped(&theirs);
        if LEFT_OUT.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let place = place(name).unwrap_or_else(|| Place::whole(name));
        if let Some((other, _)) = parts.get(&place) {
            anyhow::bail!("{other} and {theirs} are the same tensor ({}): which is meant cannot be told", place.name);
        }
        parts.insert(place, (theirs, values));
    }
    stacked(parts)
}

/// Where a tensor goes: the whole of a tensor of ours, or one of several that lie in it one after another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    name: String,
    part: usize,
    of: usize,
}

impl Place {
    fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), part: 0, of: 1 }
    }
}

/// Puts parts together along their first dimension. Where one is missing the others keep their names: they are reported
/// as left over, beside the tensor of ours that is missing.
fn stacked(parts: BTreeMap<Place, (String, Values)>) -> Result<Named> {
    let mut groups: BTreeMap<String, Vec<(Place, String, Values)>> = BTreeMap::new();
    for (place, (theirs, values)) in parts {
        groups.entry(place.name.clone()).or_default().push((place, theirs, values));
    }
    let mut out = Named::new();
    for (name, mut group) in groups {
        let (count, of) = (group.len(), group[0].0.of);
        if of == 1 && count == 1 {
            out.extend(group.pop().map(|(_, _, values)| (name, values)));
        } else if count == of && group.iter().all(|(place, ..)| place.of == of) {
            let rest = group[0].2.shape.get(1..).unwrap_or_default().to_vec();
            let same = group.iter().all(|(_, _, values)| values.shape.get(1..).unwrap_or_default() == rest);
            ensure!(same, "the tensors of {name} do not fit together: {:?}", shapes(&group));
            let rows = group.iter().map(|(_, _, values)| values.shape.first().copied().unwrap_or(1)).sum();
            let data = group.into_iter().flat_map(|(_, _, values)| values.data).collect();
            out.insert(name, Values { shape: [vec![rows], rest].concat(), data });
        } else {
            out.extend(group.into_iter().map(|(_, theirs, values)| (theirs, values)));
        }
    }
    Ok(out)
}

fn shapes(group: &[(Place, String, Values)]) -> Vec<(&str, &[usize])> {
    group.iter().map(|(_, theirs, values)| (theirs.as_str(), values.shape.as_slice())).collect()
}

/// A name without the wrappers before it.
fn unwrapped(name: &str) -> &str {
    match WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        Some(rest) => unwrapped(rest),
        None => name,
    }
}

/// Where a tensor of facebook's or of transformers goes; `None` for names of timm, which stay, and unknown ones.
fn place(name: &str) -> Option<Place> {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    let whole = |name: String| Some(Place::whole(name));
    match parts[..] {
        ["register_tokens"] | ["embeddings", "register_tokens"] => whole("reg_token".into()),
        ["embeddings", "cls_token"] => whole("cls_token".into()),
        ["embeddings", "position_embeddings"] => whole("pos_embed".into()),
        ["embeddings", "patch_embeddings", "projection", last] => whole(format!("patch_embed.proj.{last}")),
        ["layernorm", last] => whole(format!("norm.{last}")),
        ["blocks", chunk, block, ref rest @ ..] if number(chunk).is_some() && number(block).is_some() => {
            in_block(rest).map(|place| Place { name: format!("blocks.{block}.{}", place.name), ..place })
        }
        ["blocks" | "layers", block, ref rest @ ..] | ["encoder", "layer", block, ref rest @ ..] => {
            number(block)?;
            in_block(rest).map(|place| Place { name: format!("blocks.{block}.{}", place.name), ..place })
        }
        _ => None,
    }
}

/// The same for what follows the block's number; names of timm stay.
fn in_block(parts: &[&str]) -> Option<Place> {
    let whole = |name: String| Some(Place::whole(name));
    let part = |name: String, part: usize, of: usize| Some(Place { name, part, of });
    match *parts {
        ["attention", "attention", "query", last] | ["attention", "q_proj", last] => {
            part(format!("attn.qkv.{last}"), 0, 3)
        }
        ["attention", "attention", "key", last] | ["attention", "k_proj", last] => {
            part(format!("attn.qkv.{last}"), 1, 3)
        }
        ["attention", "attention", "value", last] | ["attention", "v_proj", last] => {
            part(format!("attn.qkv.{last}"), 2, 3)
        }
        ["attention", "output", "dense", last] | ["attention", "o_proj", last] => whole(format!("attn.proj.{last}")),
        ["layernorm_before", last] => whole(format!("norm1.{last}")),
        ["layernorm_after", last] => whole(format!("norm2.{last}")),
        ["layer_scale1", "lambda1"] => whole("ls1.gamma".into()),
        ["layer_scale2", "lambda1"] => whole("ls2.gamma".into()),
        ["intermediate", "dense", last] | ["mlp", "w12" | "weights_in", last] => whole(format!("mlp.fc1.{last}")),
        ["output", "dense", last] | ["mlp", "w3" | "weights_out" | "down_proj", last] => {
            whole(format!("mlp.fc2.{last}"))
        }
        // The half that passes through SiLU comes first.
        ["mlp", "gate_proj" | "fc1_g", last] => part(format!("mlp.fc1.{last}"), 0, 2),
        ["mlp", "up_proj" | "fc1_x", last] => part(format!("mlp.fc1.{last}"), 1, 2),
        ref other => whole(other.join(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_namings_become_ours() {
        for (theirs, ours, part) in [
            ("blocks.3.attn.qkv.weight", "blocks.3.attn.qkv.weight", 0),
            ("blocks.0.11.mlp.w12.bias", "blocks.11.mlp.fc1.bias", 0),
            ("blocks.7.mlp.w3.weight", "blocks.7.mlp.fc2.weight", 0),
            ("register_tokens", "reg_token", 0),
            ("encoder.layer.2.attention.attention.key.bias", "blocks.2.attn.qkv.bias", 1),
            ("encoder.layer.2.attention.output.dense.weight", "blocks.2.attn.proj.weight", 0),
            ("encoder.layer.10.layer_scale2.lambda1", "blocks.10.ls2.gamma", 0),
            ("encoder.layer.0.mlp.weights_in.weight", "blocks.0.mlp.fc1.weight", 0),
            ("encoder.layer.0.output.dense.bias", "blocks.0.mlp.fc2.bias", 0),
            ("encoder.layer.0.norm1.bias", "blocks.0.norm1.bias", 0),
            ("layers.4.attention.v_proj.weight", "blocks.4.attn.qkv.weight", 2),
            ("layers.4.layernorm_after.weight", "blocks.4.norm2.weight", 0),
            ("encoder.layer.1.mlp.up_proj.weight", "blocks.1.mlp.fc1.weight", 1),
            ("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight", 0),
            ("layernorm.bias", "norm.bias", 0),
        ] {
            let place = place(theirs).unwrap();
            assert_eq!((place.name.as_str(), place.part), (ours, part), "{theirs}");
        }
        for unknown in ["pos_embed", "cls_token", "norm.weight", "encoder.layer.x.norm1.bias", "surprise"] {
            assert_eq!(place(unknown), None);
        }
        assert_eq!(unwrapped("module.teacher.backbone.cls_token"), "cls_token");
    }

    fn values(shape: &[usize], first: f32) -> Values {
        let count = shape.iter().product::<usize>();
        Values { shape: shape.to_vec(), data: (0..count).map(|i| first + i as f32).collect() }
    }

    fn named(tensors: &[(&str, Values)]) -> Named {
        tensors.iter().map(|(name, values)| (name.to_string(), values.clone())).collect()
    }

    #[test]
    fn queries_keys_and_values_are_stacked_and_heads_left_out() {
        let layer = |name: &str| format!("vit.encoder.layer.0.attention.attention.{name}.weight");
        let [query, key, value] = ["query", "key", "value"].map(layer);
        let all = [
            (&*value, values(&[2, 2], 8.0)),
            (&*query, values(&[2, 2], 0.0)),
            (&*key, values(&[2, 2], 4.0)),
            ("vit.pooler.dense.bias", values(&[2], 0.0)),
            ("classifier.weight", values(&[3, 2], 0.0)),
        ];
        assert_eq!(ours(named(&all)).unwrap(), named(&[("blocks.0.attn.qkv.weight", values(&[6, 2], 0.0))]));
        let left: Vec<String> = ours(named(&all[1..])).unwrap().into_keys().collect();
        assert_eq!(left, [key.clone(), query.clone()], "two of three parts are left over under their own names");
    }

    #[test]
    fn two_tensors_of_one_name_are_an_error() {
        let twice = named(&[("backbone.cls_token", values(&[1], 0.0)), ("module.cls_token", values(&[1], 0.0))]);
        let error = ours(twice).unwrap_err().to_string();
        assert!(error.contains("backbone.cls_token") && error.contains("module.cls_token"), "{error}");
    }
}
