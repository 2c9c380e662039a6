"""Writes cases.json: what Pillow and torchvision make of small images. Run: python3 make.py

Pixels are base64 of raw RGB bytes, row-major. Everything is exact 8-bit arithmetic, so the tests compare bytes; only the
resizes allow a difference of 1 (16-bit coefficients instead of Pillow's 22-bit ones).
"""

import base64
import hashlib
import json
import pathlib

import numpy as np
import PIL
import torch
import torchvision
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as T

rng = np.random.default_rng(7)


def tissue(width, height):
    """Pink stroma, purple nuclei, a white lumen, scanner noise."""
    y, x = np.mgrid[:height, :width].astype(float)
    image = np.array([226, 160, 196.0]) + 14 * np.sin(x / 3 + y / 5)[..., None]
    for _ in range(9):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(1.5, 3.5)
        inside = ((x - cx) ** 2 + (y - cy) ** 2 < r * r)[..., None]
        image = np.where(inside, np.array([92, 58, 138.0]), image)
    image = np.where(((x - 4) ** 2 + (y - 5) ** 2 < 14)[..., None], 245.0, image)
    return np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def edges(width, height):
    """Saturated colours, hard edges, ramps: where rounding, clipping and borders show."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 7 % 256], -1)
    image[3:9, 5:12] = [255, 0, 0]
    image[7:15, 9:14] = [0, 255, 255]
    image[10:, :3] = 255
    image[:3, -4:] = 0
    image[::4, 15] = [0, 0, 255]
    return image.astype(np.uint8)


IMAGES = {
    "tissue": tissue(24, 21),
    "edges": edges(21, 24),
    "noise": rng.integers(0, 256, (14, 15, 3), dtype=np.uint8),
    "column": rng.integers(0, 256, (9, 1, 3), dtype=np.uint8),
    "pixel": np.array([[[200, 100, 50]]], dtype=np.uint8),
}


def encode(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def apply(image, op, *args):
    if op == "blur":
        return image.filter(ImageFilter.GaussianBlur(radius=args[0]))
    if op == "solarize":
        return ImageOps.solarize(image)
    if op == "grayscale":
        return F.rgb_to_grayscale(image, num_output_channels=3)
    if op == "crop_resize":  # x, y, width, height, to width, to height
        x, y, w, h, tw, th = args
        return F.resized_crop(image, y, x, h, w, (th, tw), interpolation=T.InterpolationMode.BICUBIC)
    if op == "evaluation":  # resize, crop
        resize, crop = args
        if resize:
            image = F.resize(image, resize, interpolation=T.InterpolationMode.BICUBIC)
        return F.center_crop(image, crop) if crop else image
    return {
        "brightness": F.adjust_brightness,
        "contrast": F.adjust_contrast,
        "saturation": F.adjust_saturation,
        "hue": F.adjust_hue,
        "hflip": F.hflip,
        "vflip": F.vflip,
    }[op](image, *args)


# Factors are float32, as torchvision draws them.
def f32(*values):
    return [float(np.float32(v)) for v in values]


OPS = (
    [["brightness", f] for f in f32(0.6, 0.87, 1.0, 1.4)]
    + [["contrast", f] for f in f32(0.6, 0.93, 1.0, 1.4)]
    + [["saturation", f] for f in f32(0.0, 0.8, 1.13, 1.2)]
    + [["hue", f] for f in f32(-0.1, -0.003, 0.0, 0.05, 0.1, 0.5)]
    + [["blur", s] for s in (0.1, 0.5, 1.0, 1.4142, 1.4143, 2.0, 3.7)]
    + [["grayscale"], ["solarize"], ["hflip"], ["vflip"]]
)
CHAINS = [
    [["hflip"], ["hue", 0.07], ["contrast", 0.7], ["brightness", 1.3], ["saturation", 0.85], ["blur", 1.3]],
    [["vflip"], ["saturation", 1.2], ["brightness", 0.65], ["hue", -0.09], ["contrast", 1.35], ["blur", 0.4], ["solarize"]],
    [["brightness", 1.1], ["contrast", 1.25], ["hue", 0.02], ["saturation", 0.9], ["grayscale"], ["blur", 1.9]],
]
CHAINS = [[[op, *f32(*args)] for op, *args in chain] for chain in CHAINS]
RESIZES = [
    ["tissue", ["crop_resize", 3, 2, 17, 18, 8, 8]],
    ["tissue", ["crop_resize", 0, 0, 24, 21, 32, 32]],
    ["tissue", ["crop_resize", 9, 5, 12, 11, 12, 11]],
    ["tissue", ["crop_resize", 9, 5, 12, 11, 12, 16]],
    ["tissue", ["crop_resize", 23, 20, 1, 1, 4, 4]],
    ["edges", ["crop_resize", 1, 1, 19, 15, 7, 7]],
    ["edges", ["crop_resize", 4, 2, 9, 13, 24, 24]],
    ["edges", ["crop_resize", 0, 0, 21, 24, 3, 3]],
    ["noise", ["crop_resize", 2, 1, 12, 13, 9, 9]],
    ["noise", ["crop_resize", 0, 0, 15, 14, 28, 28]],
    ["tissue", ["evaluation", 12, 8]],
    ["edges", ["evaluation", 18, 15]],
    ["edges", ["evaluation", 0, 15]],
    ["edges", ["evaluation", 30, 0]],
]

cases = []
for name, ops in (
    [[name, [op]] for name in ("tissue", "edges") for op in OPS]
    + [["noise", [op]] for op in OPS if op[0] in ("saturation", "hue", "blur")]
    + [[name, [op]] for name in ("column", "pixel") for op in OPS if op[0] in ("blur", "contrast", "hflip", "vflip")]
    + [[name, chain] for name in ("tissue", "edges") for chain in CHAINS]
    + [[name, [op]] for name, op in RESIZES]
):
    image = Image.fromarray(IMAGES[name])
    for op in ops:
        image = apply(image, *op)
    cases.append({"image": name, "ops": ops, "size": image.size, "pixels": encode(np.asarray(image))})

# Over all 2^24 colours, first channel slowest: SHA-256 of the result's bytes.
every = np.stack(np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 3, indexing="ij"), -1).reshape(4096, 4096, 3)
sha = lambda image: hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
exhaustive = {
    "luma": sha(Image.fromarray(every).convert("L")),
    "rgb_to_hsv": sha(Image.fromarray(every).convert("HSV")),
    "hsv_to_rgb": sha(Image.frombytes("HSV", (4096, 4096), every.tobytes()).convert("RGB")),
}

# RandomResizedCrop: the size tried for a share of the area and a ratio, and the fallback where nothing fits.
sizes, fallbacks = [], []
for size in ([256, 256], [224, 224], [640, 427], [61, 97]):
    image = Image.new("RGB", size)
    for share, ratio in ((0.05, 0.75), (0.21, 1.0), (0.4, 1.333), (0.73, 0.9), (0.97, 1.01)):
        # The offset is random, the size is not.
        _, _, h, w = T.RandomResizedCrop.get_params(image, (share, share), (ratio, ratio))
        # Where nothing fitted torchvision fell back to the centre, and the size is no test of the rule.
        _, _, fallback_h, fallback_w = T.RandomResizedCrop.get_params(image, (5.0, 5.0), (ratio, ratio))
        if (w, h) == (fallback_w, fallback_h):
            continue
        sizes.append({"size": size, "share": share, "ratio": ratio, "crop": [w, h]})
for size in ([300, 100], [100, 300], [200, 180], [101, 41], [7, 1]):
    i, j, h, w = T.RandomResizedCrop.get_params(Image.new("RGB", size), (5.0, 5.0), (3 / 4, 4 / 3))
    fallbacks.append({"size": size, "rect": [j, i, w, h]})

ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, -1))
normalized = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(T.ToTensor()(ramp)).numpy()

out = {
    "made_by": f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}",
    "images": {name: {"size": a.shape[1::-1], "pixels": encode(a)} for name, a in IMAGES.items()},
    "exhaustive": exhaustive,
    "crop_sizes": sizes,
    "crop_fallbacks": fallbacks,
    "normalized_ramp": encode(normalized.astype("<f4")),
    "cases": cases,
}
lines = json.dumps(out).replace('{"image"', '\n{"image"').replace('"cases"', '\n"cases"').replace('"exhaustive"', '\n"exhaustive"')
pathlib.Path(__file__).with_name("cases.json").write_text(lines + "\n")
print(len(cases), "cases,", len(sizes), "crop sizes,", len(lines) // 1024, "KiB")
