"""Golden numbers of the network and of one DINO step, by PyTorch and timm.

    python tests/golden/model/make.py

writes, beside this file,
    weights.safetensors   student and teacher of a tiny DINO network (timm's and DINO's names), f32
    step.safetensors      images and features; crops, loss, centre and every parameter after two steps
    teacher.pth           the same teacher as DINO's checkpoints hold it (for the import)

The ViT is timm's own `VisionTransformer`; interpolation of its position embedding, head, loss, clipping, the frozen last
layer and the parameter groups are transcribed from facebookresearch/dino@7c446df (`vision_transformer.py`,
`main_dino.py`, `utils.py`).
"""

import math
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

HERE = Path(__file__).parent
PATCH, SIZE, LOCAL, DIM, DEPTH, HEADS = 8, 32, 16, 16, 2, 2
HIDDEN, BOTTLENECK, OUT = 20, 12, 32
BATCH = 2
# One step per line: lr, weight decay, teacher momentum, teacher temperature, whether the last layer is trained.
STEPS = [(0.01, 0.04, 0.9, 0.04, False), (0.02, 0.2, 0.95, 0.05, True)]
CLIP = 0.3


def vit():
    return VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=0, class_token=True,
        global_pool="token", qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), dynamic_img_size=False,
    )


def positions(model, rows, columns):
    """interpolate_pos_encoding of DINO's VisionTransformer."""
    pos = model.pos_embed
    n = pos.shape[1] - 1
    if rows * columns == n and rows == columns:
        return pos
    side = int(math.sqrt(n))
    patches = F.interpolate(
        pos[:, 1:].reshape(1, side, side, DIM).permute(0, 3, 1, 2),
        scale_factor=((rows + 0.1) / side, (columns + 0.1) / side),
        mode="bicubic",
    )
    assert patches.shape[-2:] == (rows, columns)
    return torch.cat([pos[:, :1], patches.permute(0, 2, 3, 1).reshape(1, -1, DIM)], 1)


def tokens(model, images):
    """timm's modules, with DINO's position embedding."""
    rows, columns = images.shape[2] // PATCH, images.shape[3] // PATCH
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + positions(model, rows, columns)
    return model.norm(model.blocks(x))


class LastLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(OUT, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.empty(OUT, BOTTLENECK).uniform_(-1, 1) / math.sqrt(BOTTLENECK))

    def forward(self, x):
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        self.last_layer = LastLayer()

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, p=2))


class Dino(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = vit(), Head()

    def forward(self, *crops):
        return self.head(torch.cat([tokens(self.backbone, images)[:, 0] for images in crops]))


def groups(model):
    decayed, plain = [], []
    for name, param in model.named_parameters():
        if param.requires_grad:
            (plain if name.endswith(".bias") or param.ndim == 1 else decayed).append(param)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


def loss_of(student, teacher, center, temp, crops):
    soft = F.softmax((teacher - center) / temp, dim=-1).detach().chunk(2)
    views = (student / 0.1).chunk(crops)
    total, terms = 0, 0
    for i, target in enumerate(soft):
        for v, view in enumerate(views):
            if v != i:
                total = total + torch.sum(-target * F.log_softmax(view, dim=-1), dim=-1).mean()
                terms += 1
    return total / terms


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    student, teacher = Dino(), Dino()
    # Larger weights than the initialisation's, so that attention and gradients are far from trivial.
    for model in (student, teacher):
        with torch.no_grad():
            for name, param in model.named_parameters():
                if name.endswith("weight_g"):
                    continue
                scale = 0.3 if param.ndim > 1 else 0.1
                param.copy_(torch.randn_like(param) * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    save_file(
        {f"{part}.{k}": v.clone().contiguous() for part, m in (("student", student), ("teacher", teacher)) for k, v in m.state_dict().items()},
        HERE / "weights.safetensors",
    )
    torch.save({"student": {}, "teacher": {f"backbone.{k}": v for k, v in teacher.backbone.state_dict().items()}, "epoch": 1}, HERE / "teacher.pth")

    out = {}
    images = {"native": torch.randn(1, 3, SIZE, SIZE), "wide": torch.randn(1, 3, 20, 43)}
    for name, x in images.items():
        out[f"image.{name}"] = x
        with torch.no_grad():
            out[f"tokens.{name}"] = tokens(teacher.backbone, x)
    # timm's own forward agrees where nothing is interpolated.
    with torch.no_grad():
        own = teacher.backbone.forward_features(images["native"])
    assert torch.allclose(own, out["tokens.native"], atol=1e-5), (own - out["tokens.native"]).abs().max()

    out["crops.global"] = torch.randn(2 * BATCH, 3, SIZE, SIZE)
    out["crops.local"] = torch.randn(2 * BATCH, 3, LOCAL, LOCAL)
    center = torch.zeros(1, OUT)
    optimizer = torch.optim.AdamW(groups(student))
    losses = []
    for lr, decay, momentum, temp, train_last in STEPS:
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = lr
            if i == 0:
                group["weight_decay"] = decay
        with torch.no_grad():
            seen = teacher(out["crops.global"])
        loss = loss_of(student(out["crops.global"], out["crops.local"]), seen, center, temp, 4)
        center = center * 0.9 + seen.mean(0, keepdim=True) * 0.1
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        for param in student.parameters():
            if param.grad is not None:
                coefficient = CLIP / (param.grad.norm(2) + 1e-6)
                if coefficient < 1:
                    param.grad.mul_(coefficient)
        if not train_last:
            for name, param in student.named_parameters():
                if "last_layer" in name:
                    param.grad = None
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(student.parameters(), teacher.parameters()):
                theirs.mul_(momentum).add_((1 - momentum) * ours)
    out["losses"] = torch.tensor(losses)
    out["center"] = center.reshape(-1)
    for part, model in (("student", student), ("teacher", teacher)):
        out.update({f"{part}.{k}": v for k, v in model.state_dict().items()})
    save_file({k: v.clone().contiguous() for k, v in out.items()}, HERE / "step.safetensors")
    print(f"timm {timm.__version__}, torch {torch.__version__}: losses {losses}")


if __name__ == "__main__":
    main()
