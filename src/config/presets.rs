//! Encoders that others have published, as plain data: what a file of each must hold, and how its images were made.
//!
//! Facts are those of the model cards and configuration files named in `source`; the sizes are checked against timm and
//! transformers (`tests/golden/encoders/presets.py`). Weights are never fetched: they come from a file of the user's, under
//! the licence of whoever trained them.

use super::network::{MlpKind, Network, Pooling, PositionResampling, Positions, VIT_S16};

/// A published encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// What `[[encoders]]` calls it.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// The network.
    pub network: Network,
    /// Short side after resizing, px.
    pub resize: u32,
    /// Side of the centre crop, px.
    pub crop: u32,
    /// Mean of the normalisation, RGB.
    pub mean: [f32; 3],
    /// Standard deviation of the normalisation, RGB.
    pub std: [f32; 3],
    /// Scale of the patches it was made for, µm/px; none for encoders of photographs.
    pub mpp: Option<f64>,
    /// Where the facts are from.
    pub source: &'static str,
}

/// Mean of ImageNet's pixels, RGB.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Their standard deviation.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Of Bioptimus's slides.
const BIOPTIMUS: ([f32; 3], [f32; 3]) = ([0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517]);

const VIT_B16: Network = Network { dim: 768, heads: 12, hidden: 3072, ..VIT_S16 };
const VIT_L16: Network = Network { dim: 1024, depth: 24, heads: 16, hidden: 4096, ..VIT_S16 };

/// DINOv2's form of a network: patches of 14 px, positions for 518 px, LayerScale.
const fn dinov2(network: Network) -> Network {
    Network { patch: 14, image_size: 518, layer_scale: true, ..network }
}

/// The same with four registers, whose positions are resampled otherwise.
const fn with_registers(network: Network) -> Network {
    Network { registers: 4, interpolation: PositionResampling::Antialias, ..network }
}

/// A pathology encoder that timm builds: made for 224 px, LayerScale.
const fn timm(network: Network) -> Network {
    Network { image_size: 224, layer_scale: true, interpolation: PositionResampling::Antialias, ..network }
}

/// DINOv2's giant, with SwiGLU.
const VIT_G14: Network =
    Network { dim: 1536, depth: 40, heads: 24, hidden: 4096, mlp: MlpKind::Swiglu, ..dinov2(VIT_S16) };
const H_OPTIMUS: Network = Network { registers: 4, positions: Positions::Patches, ..timm(VIT_G14) };
const VIRCHOW: Network = Network {
    patch: 14,
    dim: 1280,
    depth: 32,
    heads: 16,
    hidden: 3416,
    mlp: MlpKind::Swiglu,
    pooling: Pooling::ClsMean,
    ..timm(VIT_S16)
};

const DINO: &str = "github.com/facebookresearch/dino: vision_transformer.py, eval_knn.py";
const DINOV2: &str = "github.com/facebookresearch/dinov2: MODEL_CARD.md, hub/backbones.py";

/// An encoder of photographs: short side 256 px, centre 224.
const fn photographs(name: &'static str, title: &'static str, network: Network, source: &'static str) -> Preset {
    let (mean, std) = (IMAGENET_MEAN, IMAGENET_STD);
    Preset { name, title, network, resize: 256, crop: 224, mean, std, mpp: None, source }
}

/// An encoder of tissue at 0.5 µm/px: patches of 224 px as they are.
const fn tissue(name: &'static str, title: &'static str, network: Network, source: &'static str) -> Preset {
    Preset { resize: 224, mpp: Some(0.5), ..photographs(name, title, network, source) }
}

/// All of them.
pub const PRESETS: [Preset; 21] = [
    photographs("dino_vits16", "DINO ViT-S/16", VIT_S16, DINO),
    photographs("dino_vits8", "DINO ViT-S/8", Network { patch: 8, ..VIT_S16 }, DINO),
    photographs("dino_vitb16", "DINO ViT-B/16", VIT_B16, DINO),
    photographs("dino_vitb8", "DINO ViT-B/8", Network { patch: 8, ..VIT_B16 }, DINO),
    photographs("dinov2_vits14", "DINOv2 ViT-S/14", dinov2(VIT_S16), DINOV2),
    photographs("dinov2_vitb14", "DINOv2 ViT-B/14", dinov2(VIT_B16), DINOV2),
    photographs("dinov2_vitl14", "DINOv2 ViT-L/14", dinov2(VIT_L16), DINOV2),
    photographs("dinov2_vitg14", "DINOv2 ViT-g/14", VIT_G14, DINOV2),
    photographs("dinov2_vits14_reg", "DINOv2 ViT-S/14, registers", with_registers(dinov2(VIT_S16)), DINOV2),
    photographs("dinov2_vitb14_reg", "DINOv2 ViT-B/14, registers", with_registers(dinov2(VIT_B16)), DINOV2),
    photographs("dinov2_vitl14_reg", "DINOv2 ViT-L/14, registers", with_registers(dinov2(VIT_L16)), DINOV2),
    photographs("dinov2_vitg14_reg", "DINOv2 ViT-g/14, registers", with_registers(VIT_G14), DINOV2),
    tissue(
        "phikon",
        "Phikon, iBOT ViT-B/16",
        Network { norm_eps: 1e-12, interpolation: PositionResampling::Bicubic, ..VIT_B16 },
        "huggingface.co/owkin/phikon: model card; eps of transformers' ViTConfig",
    ),
    tissue(
        "phikon_v2",
        "Phikon-v2, DINOv2 ViT-L/16",
        Network { layer_scale: true, interpolation: PositionResampling::Bicubic, ..VIT_L16 },
        "huggingface.co/owkin/phikon-v2: model card",
    ),
    tissue(
        "uni",
        "UNI, DINOv2 ViT-L/16",
        timm(VIT_L16),
        "huggingface.co/MahmoodLab/UNI: model card (vit_large_patch16_224, init_values 1e-5, dynamic_img_size)",
    ),
    tissue(
        "uni2_h",
        "UNI2-h, DINOv2 ViT-H/14, SwiGLU, 8 registers",
        Network { depth: 24, registers: 8, ..H_OPTIMUS },
        "huggingface.co/MahmoodLab/UNI2-h: model card (timm_kwargs)",
    ),
    tissue(
        "virchow",
        "Virchow, DINOv2 ViT-H/14, SwiGLU",
        VIRCHOW,
        "huggingface.co/paige-ai/Virchow: model card (CLS and mean of the patch tokens)",
    ),
    tissue(
        "virchow2",
        "Virchow2, DINOv2 ViT-H/14, SwiGLU, 4 registers",
        Network { registers: 4, positions: Positions::All, ..VIRCHOW },
        "huggingface.co/paige-ai/Virchow2: model card (CLS and mean of the patch tokens), config.json",
    ),
    Preset {
        mean: BIOPTIMUS.0,
        std: BIOPTIMUS.1,
        ..tissue(
            "h_optimus_0",
            "H-optimus-0, DINOv2 ViT-g/14, SwiGLU, 4 registers",
            H_OPTIMUS,
            "huggingface.co/bioptimus/H-optimus-0: model card",
        )
    },
    Preset {
        mean: BIOPTIMUS.0,
        std: BIOPTIMUS.1,
        ..tissue(
            "h_optimus_1",
            "H-optimus-1, DINOv2 ViT-g/14, SwiGLU, 4 registers",
            H_OPTIMUS,
            "huggingface.co/bioptimus/H-optimus-1: model card",
        )
    },
    Preset {
        resize: 256,
        ..tissue(
            "gigapath",
            "Prov-GigaPath's tile encoder, DINOv2 ViT-g/16, SwiGLU",
            Network { patch: 16, ..timm(VIT_G14) },
            "huggingface.co/prov-gigapath/prov-gigapath: model card, config.json (patch_size 16)",
        )
    },
];

/// The preset of a name.
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}
