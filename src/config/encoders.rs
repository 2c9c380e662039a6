//! `[[encoders]]`: encoders that somebody else trained, each from a local file.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::network::{FinalNorm, MlpKind, Network, Pooling, PositionResampling, Positions};
use super::presets::{IMAGENET_MEAN, IMAGENET_STD, PRESETS, Preset, preset};

/// An encoder from elsewhere: a published one by its preset, or any vision transformer of timm, DINO, DINOv2 or
/// transformers, read off its file and described where the file says nothing. What is given here goes before the preset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForeignEncoder {
    /// In tables and paths (`features_<name>/`); left out, the preset's.
    pub name: String,
    /// A published encoder, as `gensis config encoders` lists them; left out for any other.
    pub preset: String,
    /// `.safetensors`, or `.pth`, `.pt`, `.bin`, `.ckpt` of PyTorch (read without running anything in them).
    pub weights: PathBuf,
    /// Short side after resizing, px; 0 takes patches as they are. Left out, `network.image_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<u32>,
    /// Side of the centre crop, px; 0 takes the whole. Left out, `network.image_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
    /// Mean of the normalisation, RGB in 0..1; left out, ImageNet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<[f32; 3]>,
    /// Its standard deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<[f32; 3]>,
    /// Scale of the patches it was made for, µm/px: a grid of another is warned of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mpp: Option<f64>,
    /// The network. Sizes that the file shows must be these where they are given.
    #[serde(skip_serializing_if = "NetworkKeys::is_empty")]
    pub network: NetworkKeys,
}

/// The keys of a [`Network`], each of which may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkKeys {
    /// See [`Network::patch`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<usize>,
    /// See [`Network::image_size`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// See [`Network::dim`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// See [`Network::depth`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// See [`Network::heads`]; left out, of 64 channels each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// See [`Network::hidden`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// See [`Network::mlp`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp: Option<MlpKind>,
    /// See [`Network::registers`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registers: Option<usize>,
    /// See [`Network::positions`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Positions>,
    /// See [`Network::layer_scale`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_scale: Option<bool>,
    /// See [`Network::qkv_bias`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qkv_bias: Option<bool>,
    /// See [`Network::pre_norm`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_norm: Option<bool>,
    /// See [`Network::final_norm`]; the file shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_norm: Option<FinalNorm>,
    /// See [`Network::norm_eps`]; left out, 1e-6 (transformers' ViT has 1e-12).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
    /// See [`Network::interpolation`]; left out, timm's `antialias`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<PositionResampling>,
    /// See [`Network::pooling`]; left out, `cls`, or `mean` where the file has an `fc_norm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
}

impl NetworkKeys {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the tensors of a file show of their network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown {
    /// See [`Network::patch`].
    pub patch: usize,
    /// See [`Network::dim`].
    pub dim: usize,
    /// See [`Network::depth`].
    pub depth: usize,
    /// See [`Network::hidden`].
    pub hidden: usize,
    /// See [`Network::mlp`].
    pub mlp: MlpKind,
    /// See [`Network::registers`].
    pub registers: usize,
    /// See [`Network::layer_scale`].
    pub layer_scale: bool,
    /// See [`Network::qkv_bias`].
    pub qkv_bias: bool,
    /// See [`Network::pre_norm`].
    pub pre_norm: bool,
    /// See [`Network::final_norm`].
    pub final_norm: FinalNorm,
    /// Rows of the position embedding.
    pub rows: usize,
}

/// How images reach an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// Short side after resizing, px; 0 takes patches as they are.
    pub resize: u32,
    /// Side of the centre crop, px; 0 takes the whole.
    pub crop: u32,
}

impl ForeignEncoder {
    /// The preset it names.
    ///
    /// # Errors
    /// A name that none has, with the nearest.
    pub fn preset(&self) -> Result<Option<&'static Preset>> {
        if self.preset.is_empty() {
            return Ok(None);
        }
        let unknown = || {
            let likeness = |preset: &Preset| strsim::normalized_damerau_levenshtein(preset.name, &self.preset);
            let nearest = PRESETS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
            let meant = nearest.filter(|preset| likeness(preset) > 0.3);
            let meant = meant.map_or(String::new(), |preset| format!("; did you mean \"{}\"?", preset.name));
            format!("there is no preset \"{}\"{meant} (`gensis config encoders` lists all)", self.preset)
        };
        preset(&self.preset).with_context(unknown).map(Some)
    }

    /// Its name in tables and paths.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { &self.preset } else { &self.name }
    }

    /// # Errors
    /// A name, file or number that makes no sense.
    pub fn check(&self) -> Result<()> {
        let name = self.name();
        ensure!(!name.is_empty(), "an encoder needs a preset or a name");
        ensure!(
            name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !name.starts_with('.'),
            "\"{name}\" becomes part of paths: letters, digits, - _ and . may be in it"
        );
        let reserved = ["dino", "random", "pixels"].contains(&name) || name.starts_with("gen_dino");
        ensure!(!reserved, "\"{name}\" is the name of an encoder of one's own: choose another");
        ensure!(!self.weights.as_os_str().is_empty(), "{name} needs weights: the path of its file");
        self.preset().with_context(|| name.to_owned())?;
        if let Some(std) = self.std {
            ensure!(std.iter().all(|&s| s > 0.0 && s.is_finite()), "{name}: std must be above 0: {std:?}");
        }
        if let (Some(resize), Some(crop)) = (self.resize, self.crop) {
            ensure!(
                resize == 0 || crop <= resize,
                "{name}: crop must not exceed resize: it is cut out of the resized image"
            );
        }
        ensure!(self.mpp.is_none_or(|mpp| mpp > 0.0 && mpp.is_finite()), "{name}: mpp must be above 0 µm/px");
        Ok(())
    }

    /// Mean and standard deviation of the normalisation.
    pub fn normalisation(&self) -> Result<([f32; 3], [f32; 3])> {
        let (mean, std) = self.preset()?.map_or((IMAGENET_MEAN, IMAGENET_STD), |preset| (preset.mean, preset.std));
        Ok((self.mean.unwrap_or(mean), self.std.unwrap_or(std)))
    }

    /// Scale of the patches it was made for, µm/px, where that is known.
    pub fn mpp(&self) -> Result<Option<f64>> {
        Ok(self.mpp.or(self.preset()?.and_then(|preset| preset.mpp)))
    }

    /// How images reach it, where `network` is known.
    pub fn view(&self, network: &Network) -> Result<View> {
        let own = network.image_size as u32;
        let (resize, crop) = self.preset()?.map_or((own, own), |preset| (preset.resize, preset.crop));
        let view = View { resize: self.resize.unwrap_or(resize), crop: self.crop.unwrap_or(crop) };
        ensure!(
            view.resize == 0 || view.crop <= view.resize,
            "{}: the crop of {} px does not fit into the resized image of {} px: set both resize and crop",
            self.name(),
            view.crop,
            view.resize
        );
        Ok(view)
    }

    /// Everything that an embedding depends on but the weights themselves.
    pub fn description(&self) -> Result<Value> {
        let (mean, std) = self.normalisation()?;
        let preset = self.preset()?;
        Ok(json!({
            "preset": preset.map(|preset| json!({ "network": preset.network, "resize": preset.resize, "crop": preset.crop })),
            "network": self.network,
            "resize": self.resize,
            "crop": self.crop,
            "mean": mean,
            "std": std,
        }))
    }

    /// The network of a file that shows `shown`.
    ///
    /// # Errors
    /// What the file shows and what was asked for differ, all listed; what the file does not show and nobody says.
    pub fn network(&self, shown: &Shown) -> Result<Network> {
        let preset = self.preset()?.map(|preset| preset.network);
        let keys = &self.network;
        let Shown { patch, dim, depth, hidden, mlp, registers, layer_scale, qkv_bias, pre_norm, final_norm, rows } =
            *shown;
        let heads = match keys.heads.or(preset.map(|network| network.heads)) {
            Some(heads) => heads,
            None if dim.is_multiple_of(64) => dim / 64,
            None => bail!("a width of {dim} is not made of heads of 64 channels: say network.heads"),
        };
        let positions = match keys.positions.or(preset.map(|network| network.positions)) {
            Some(positions) => positions,
            None => shown.positions()?,
        };
        let norm_eps = keys.norm_eps.or(preset.map(|network| network.norm_eps));
        let interpolation = keys.interpolation.or(preset.map(|network| network.interpolation));
        let pooled = if final_norm == FinalNorm::Pooled { Pooling::Mean } else { Pooling::Cls };
        let pooling = keys.pooling.or(preset.map(|network| network.pooling));
        let network = Network {
            patch,
            image_size: 0,
            dim,
            depth,
            heads,
            hidden,
            mlp,
            registers,
            positions,
            layer_scale,
            qkv_bias,
            pre_norm,
            final_norm,
            norm_eps: norm_eps.unwrap_or(1e-6),
            interpolation: interpolation.unwrap_or(PositionResampling::Antialias),
            pooling: pooling.unwrap_or(pooled),
        };
        let prefix = network.prefix_positions();
        let grid = rows.saturating_sub(prefix).isqrt();
        let network = Network { image_size: grid * patch, ..network };
        self.agree(&network)?;
        ensure!(
            grid > 0 && grid * grid + prefix == rows,
            "pos_embed has {rows} rows, which with {prefix} not of patches is no square grid"
        );
        network.check()?;
        Ok(network)
    }

    /// # Errors
    /// What is asked for here, or else by the preset, and is not so in `network`.
    fn agree(&self, network: &Network) -> Result<()> {
        let of_preset = self.preset()?.map(|preset| json!(preset.network)).unwrap_or_default();
        let [given, of_preset, found] = [json!(self.network), of_preset, json!(network)];
        let expected = |key: &str| [&given[key], &of_preset[key]].into_iter().find(|value| !value.is_null()).cloned();
        let differ: Vec<String> = found
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, found)| Some((key, found, expected(key)?)))
            .filter(|(_, found, expected)| *found != expected)
            .map(|(key, found, expected)| format!("{key} {found}, not {expected}"))
            .collect();
        ensure!(differ.is_empty(), "the file holds another network than it should: {}", differ.join("; "));
        Ok(())
    }
}

impl Shown {
    /// Which tokens the rows of the position embedding belong to, told by which number of them leaves a square.
    fn positions(&self) -> Result<Positions> {
        let fits = |prefix: usize| {
            let patches = self.rows.saturating_sub(prefix);
            patches > 0 && patches.isqrt().pow(2) == patches
        };
        let all = (self.registers > 0).then_some((1 + self.registers, Positions::All));
        let ways = [Some((1, Positions::ClassAndPatches)), Some((0, Positions::Patches)), all];
        let fitting: Vec<Positions> =
            ways.into_iter().flatten().filter(|(prefix, _)| fits(*prefix)).map(|(_, positions)| positions).collect();
        match fitting[..] {
            [positions] => Ok(positions),
            [] => bail!("pos_embed has {} rows, which is no square grid with or without the other tokens", self.rows),
            _ => bail!("pos_embed has {} rows, which can mean several things: say network.positions", self.rows),
        }
    }
}

#[cfg(test)]
mod tests;
