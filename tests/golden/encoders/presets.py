"""Names and shapes of the tensors of published encoders, by timm and transformers, without weights.

    python tests/golden/encoders/presets.py

writes presets.json beside this file: of every preset of `src/config/presets.rs` the number of parameters of the network that
its model card builds, and the shapes of all tensors outside the blocks and of the first block, which all blocks share. What a
card says beyond a name of timm (arguments of create_model, model_args of its config.json) is repeated here.
"""

import json
from pathlib import Path

import timm
import torch
import transformers
from timm.layers import SwiGLUPacked

HERE = Path(__file__).parent
SWIGLU = dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU)
UNI2_H = dict(
    img_size=224, patch_size=14, depth=24, num_heads=24, init_values=1e-5, embed_dim=1536, mlp_ratio=2.66667 * 2,
    no_embed_class=True, reg_tokens=8, dynamic_img_size=True, **SWIGLU,
)
VIRCHOW = dict(img_size=224, init_values=1e-5, mlp_ratio=5.3375, global_pool="", dynamic_img_size=True, **SWIGLU)
GIGAPATH = dict(
    img_size=224, in_chans=3, patch_size=16, embed_dim=1536, depth=40, num_heads=24, init_values=1e-5, mlp_ratio=5.33334
)
TIMM = {
    "dino_vits16": ("vit_small_patch16_224", {}),
    "dino_vits8": ("vit_small_patch8_224", {}),
    "dino_vitb16": ("vit_base_patch16_224", {}),
    "dino_vitb8": ("vit_base_patch8_224", {}),
    "dinov2_vits14": ("vit_small_patch14_dinov2", {}),
    "dinov2_vitb14": ("vit_base_patch14_dinov2", {}),
    "dinov2_vitl14": ("vit_large_patch14_dinov2", {}),
    "dinov2_vitg14": ("vit_giant_patch14_dinov2", {}),
    "uni": ("vit_large_patch16_224", dict(img_size=224, patch_size=16, init_values=1e-5, dynamic_img_size=True)),
    "uni2_h": ("vit_giant_patch14_224", UNI2_H),
    "virchow": ("vit_huge_patch14_224", VIRCHOW),
    "virchow2": ("vit_huge_patch14_224", VIRCHOW | dict(reg_tokens=4)),
    "h_optimus_0": ("vit_giant_patch14_reg4_dinov2", dict(img_size=224, init_values=1e-5, dynamic_img_size=False)),
    "h_optimus_1": ("vit_giant_patch14_reg4_dinov2", dict(img_size=224, init_values=1e-5, dynamic_img_size=False)),
    "gigapath": ("vit_giant_patch14_dinov2", GIGAPATH),
}
# With registers facebook's files differ from timm's in one row: the position of CLS, which timm has added to CLS.
REGISTERS = {
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2",
    "dinov2_vitl14_reg": "vit_large_patch14_reg4_dinov2",
    "dinov2_vitg14_reg": "vit_giant_patch14_reg4_dinov2",
}


def summary(model, source, prefix, more_positions=0):
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    parameters = sum(value.numel() for value in model.state_dict().values())
    kept, blocks = {}, {}
    for name, shape in shapes.items():
        if name.startswith(prefix):
            block, rest = name.removeprefix(prefix).split(".", 1)
            blocks.setdefault(int(block), {})[rest] = shape
        else:
            kept[name] = shape
    assert all(block == blocks[0] for block in blocks.values())
    kept |= {f"{prefix}0.{rest}": shape for rest, shape in blocks[0].items()}
    if more_positions:
        kept["pos_embed"][1] += more_positions
        parameters += more_positions * kept["pos_embed"][2]
    return {"source": source, "parameters": parameters, "depth": len(blocks), "tensors": kept}


def main():
    out = {}
    with torch.device("meta"):
        for preset, (name, arguments) in TIMM.items():
            model = timm.create_model(name, num_classes=0, **arguments)
            out[preset] = summary(model, f"timm {name}", "blocks.")
        for preset, name in REGISTERS.items():
            model = timm.create_model(name, num_classes=0)
            out[preset] = summary(model, f"timm {name}, CLS with a position", "blocks.", more_positions=1)
        phikon = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
        out["phikon"] = summary(phikon, "transformers ViTModel", "layers.")
        config = transformers.Dinov2Config(
            image_size=224, patch_size=16, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16
        )
        # Of the mask token only training makes use.
        phikon_v2 = summary(transformers.Dinov2Model(config), "transformers Dinov2Model", "encoder.layer.")
        phikon_v2["parameters"] -= phikon_v2["tensors"]["embeddings.mask_token"][1]
        out["phikon_v2"] = phikon_v2
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(out.items())]
    (HERE / "presets.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"timm {timm.__version__}, transformers {transformers.__version__}")
    for name, value in sorted(out.items()):
        print(f"{name:20} {value['parameters'] / 1e6:9.1f} M")


if __name__ == "__main__":
    main()
