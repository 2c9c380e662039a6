"""Golden numbers of encoders from elsewhere, by timm and transformers.

    python tests/golden/encoders/make.py

writes, beside this file,
    <case>.safetensors, .pth, .pt or .bin   a tiny network with random weights, in the naming and the kind of file of its origin
    expected.safetensors                    images, and of every case and image the embedding and the tokens, f32
    cases.json                              how each file is described, and the images it is shown

Every network differs from the plain vision transformer in something that published encoders have: register tokens, with and
without positions; LayerScale; SwiGLU; positions resampled in three ways; poolings; names of facebook and transformers.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

HERE = Path(__file__).parent
SIZES = {14: [(42, 42), (56, 42)], 4: [(16, 16), (12, 20)], 8: [(24, 24), (16, 32)]}


def scramble(model):
    """Weights of a size that makes attention and gates far from trivial."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            scale = 0.3 if param.ndim > 1 else 0.2
            if name.endswith(("gamma", "lambda1")):
                centre, scale = 0.5, 0.3
            param.copy_(centre + scale * torch.randn_like(param))
    return model.eval()


def vit(patch, **more):
    base = dict(img_size=SIZES[patch][0][0], patch_size=patch, embed_dim=8, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True)
    return scramble(VisionTransformer(**{**base, **more}))


def swiglu(hidden):
    return dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=2 * hidden / 8)


def timm_tokens(model, image):
    """CLS and the patches after the last normalisation."""
    x = model.forward_features(image)
    return torch.cat([x[:, :1], x[:, model.num_prefix_tokens :]], 1)


def with_positions(model, rows, columns, **how):
    """DINOv2's resampling: bicubic, by the scale with an offset of 0.1, or by the sizes with antialiasing."""
    patches = model.pos_embed[:, 1:] if not model.no_embed_class else model.pos_embed
    side = int(patches.shape[1] ** 0.5)
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        grid = F.interpolate(grid, mode="bicubic", **how)
    assert grid.shape[2:] == (rows, columns)
    return grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)


def offset(rows, columns, side):
    return dict(scale_factor=((rows + 0.1) / side, (columns + 0.1) / side))


def facebook(state, gated):
    """DINOv2's names of timm's tensors."""
    names = {"reg_token": "register_tokens"} | ({"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"} if gated else {})
    renamed = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


class Golden:
    def __init__(self):
        self.expected, self.cases = {}, []
        for sizes in SIZES.values():
            for height, width in sizes:
                self.expected[f"image.{height}x{width}"] = torch.randn(2, 3, height, width)

    def add(self, name, file, network, patch, embed):
        images = [f"{height}x{width}" for height, width in SIZES[patch]]
        for image in images:
            with torch.no_grad():
                embedding, tokens = embed(self.expected[f"image.{image}"])
            self.expected[f"{name}.embedding.{image}"] = embedding
            self.expected[f"{name}.tokens.{image}"] = tokens
        self.cases.append({"encoder": {"name": name, "weights": file, "network": network}, "images": images})


def main():
    torch.manual_seed(7)
    golden = Golden()

    # UNI2-h, H-optimus: registers, positions of the patches only, SwiGLU, LayerScale.
    model = vit(14, reg_tokens=4, no_embed_class=True, init_values=1e-5, **swiglu(12))
    save_file(model.state_dict(), HERE / "timm_registers.safetensors")
    # 9 rows of positions could also be those of CLS, registers and 4 patches.
    network = {"heads": 2, "positions": "patches"}
    golden.add("timm_registers", "timm_registers.safetensors", network, 14, lambda x: (model(x), timm_tokens(model, x)))

    # Virchow2: registers with positions, CLS beside the mean of the patches.
    virchow = vit(4, reg_tokens=2, init_values=1e-5, global_pool="", **swiglu(12))
    torch.save(virchow.state_dict(), HERE / "timm_all_positions.bin")

    def cls_mean(x):
        tokens = virchow(x)
        return torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1), timm_tokens(virchow, x)

    golden.add(
        "timm_all_positions", "timm_all_positions.bin", {"heads": 2, "pooling": "cls_mean", "positions": "all"}, 4, cls_mean
    )

    # The mean of the patches, normalised behind it; no bias of queries, keys and values; an old kind of file.
    mean = vit(8, global_pool="avg", qkv_bias=False)
    torch.save(mean.state_dict(), HERE / "timm_mean.pth", _use_new_zipfile_serialization=False)
    golden.add("timm_mean", "timm_mean.pth", {"heads": 2}, 8, lambda x: (mean(x), timm_tokens(mean, x)))

    # The same normalised before, and tokens normalised before the first block; half precision in the file.
    pre = vit(8, global_pool="avg", fc_norm=False, pre_norm=True)
    pre.load_state_dict({name: value.half().float() for name, value in pre.state_dict().items()})
    torch.save({"state_dict": {f"module.{n}": v.half() for n, v in pre.state_dict().items()}}, HERE / "timm_pre_norm.pt")
    golden.add(
        "timm_pre_norm", "timm_pre_norm.pt", {"heads": 2, "pooling": "mean"}, 8, lambda x: (pre(x), timm_tokens(pre, x))
    )

    # DINOv2 as its training leaves it: the teacher with its heads, blocks in chunks, w12 and w3, the offset of 0.1.
    dinov2 = vit(14, init_values=1e-5, **swiglu(12))
    chunked = {n.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): v for n, v in dinov2.state_dict().items()}
    teacher = {f"backbone.{n}": v for n, v in facebook(chunked, gated=True).items()}
    teacher |= {"backbone.mask_token": torch.randn(1, 8), "dino_head.mlp.0.weight": torch.randn(4, 8)}
    torch.save({"teacher": teacher}, HERE / "dinov2_training.pth")

    def dinov2_forward(x):
        rows, columns = x.shape[2] // 14, x.shape[3] // 14
        patches = dinov2.patch_embed(x).flatten(1, 2) + with_positions(dinov2, rows, columns, **offset(rows, columns, 3))
        cls = (dinov2.cls_token + dinov2.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = dinov2.norm(dinov2.blocks(torch.cat([cls, patches], 1)))
        return tokens[:, 0], tokens

    golden.add("dinov2_training", "dinov2_training.pth", {"heads": 2, "interpolation": "dino"}, 14, dinov2_forward)

    # DINOv2 with registers as its hub has it: CLS has a position and registers have none. timm has the position in CLS.
    registers = vit(4, reg_tokens=4, no_embed_class=True, init_values=1e-5)
    hub = facebook(registers.state_dict(), gated=False)
    position = torch.randn(1, 1, 8)
    hub["pos_embed"] = torch.cat([position, hub["pos_embed"]], 1)
    hub["cls_token"] = hub["cls_token"] - position
    hub["mask_token"] = torch.randn(1, 8)
    torch.save(hub, HERE / "dinov2_registers.pth")
    golden.add(
        "dinov2_registers",
        "dinov2_registers.pth",
        {"heads": 2, "registers": 4, "positions": "class_and_patches"},
        4,
        lambda x: (registers(x), timm_tokens(registers, x)),
    )

    # transformers, names since version 5, SwiGLU in two matrices.
    shape = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.Dinov2Config(image_size=16, patch_size=4, use_swiglu_ffn=True, **shape)
    swiglu_dinov2 = scramble(transformers.Dinov2Model(config))
    save_file({n: v.contiguous() for n, v in swiglu_dinov2.state_dict().items()}, HERE / "transformers_dinov2.safetensors")

    def last(model, x, drop=0, **more):
        tokens = model(x, **more).last_hidden_state
        return tokens[:, 0], torch.cat([tokens[:, :1], tokens[:, 1 + drop :]], 1)

    network = {"heads": 2, "interpolation": "bicubic"}
    golden.add("transformers_dinov2", "transformers_dinov2.safetensors", network, 4, lambda x: last(swiglu_dinov2, x))

    # The same with registers, as `save_pretrained` writes it.
    config = transformers.Dinov2WithRegistersConfig(image_size=16, patch_size=4, mlp_ratio=2, **shape)
    with_registers = scramble(transformers.Dinov2WithRegistersModel(config))
    saved = HERE / "saved"
    with_registers.save_pretrained(saved)
    (saved / "model.safetensors").rename(HERE / "transformers_registers.safetensors")
    network = {"heads": 2, "positions": "class_and_patches"}
    golden.add(
        "transformers_registers", "transformers_registers.safetensors", network, 4, lambda x: last(with_registers, x, 4)
    )

    # A classifier by transformers' ViT, whose eps is 1e-12 (Phikon).
    config = transformers.ViTConfig(image_size=24, patch_size=8, intermediate_size=16, **shape)
    classifier = scramble(transformers.ViTForImageClassification(config))
    classifier.save_pretrained(saved)
    (saved / "model.safetensors").rename(HERE / "transformers_vit.safetensors")
    (saved / "config.json").unlink()
    saved.rmdir()
    golden.add(
        "transformers_vit",
        "transformers_vit.safetensors",
        {"heads": 2, "interpolation": "bicubic", "norm_eps": 1e-12},
        8,
        lambda x: last(classifier.vit, x, interpolate_pos_encoding=True),
    )

    # DINO as its training leaves it, with the optimiser and the arguments of the command line.
    dino = vit(8)
    wrapped = {f"module.backbone.{n}": v for n, v in dino.state_dict().items()} | {"module.head.mlp.0.weight": torch.randn(4, 8)}
    checkpoint = {
        "student": {n: torch.zeros_like(v) for n, v in wrapped.items()},
        "teacher": {n.removeprefix("module."): v for n, v in wrapped.items()},
        "optimizer": torch.optim.AdamW(dino.parameters()).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=8, lr=5e-4, output_dir=Path("out")),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    torch.save(checkpoint, HERE / "dino_training.pth")

    def dino_forward(x):
        rows, columns = x.shape[2] // 8, x.shape[3] // 8
        patches = dino.patch_embed(x).flatten(1, 2) + with_positions(dino, rows, columns, **offset(rows, columns, 3))
        cls = (dino.cls_token + dino.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = dino.norm(dino.blocks(torch.cat([cls, patches], 1)))
        return tokens[:, 0], tokens

    golden.add("dino_training", "dino_training.pth", {"heads": 2, "interpolation": "dino"}, 8, dino_forward)

    save_file({name: value.detach().contiguous() for name, value in golden.expected.items()}, HERE / "expected.safetensors")
    (HERE / "cases.json").write_text(json.dumps(golden.cases, indent=1) + "\n")
    print(f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    for case in golden.cases:
        name = case["encoder"]["name"]
        sizes = [golden.expected[f"{name}.embedding.{image}"].abs().max().item() for image in case["images"]]
        print(name, [round(size, 2) for size in sizes])


if __name__ == "__main__":
    main()
