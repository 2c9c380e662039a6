"""Writes stain.json, patch.png, macenko.png and reinhard.png: stain normalisation of a small drawn patch by numpy in
double precision, straight from the papers. Run: python3 make.py

Macenko et al., ISBI 2009, with the constants of Veta's implementation (glass 240, density 0.15, percentile 1, largest
amount at the 99th percentile), and with what slide_io does otherwise: amounts are not negative, their largest is that of
the tissue alone, and what is brighter than glass keeps its excess.

Reinhard et al., 2001, in Ruderman's l-alpha-beta with the natural logarithm, from and on tissue: the change fades out in
proportion to the mean density below 0.15.

With torchstain installed (pip install torchstain) the differences from its Macenko normaliser are printed too. With
torchstain 1.4.1 they were: stain colours 0.29 and 0.56 degrees apart, largest amounts 1.659 and 0.912 instead of 1.703 and
0.933, pixels 1.1 grey levels on average. They come from its density of v + 1 instead of v and from the glass in its largest
amounts: given the same densities, its own function finds the same colours to 4e-16.
"""

import json
import pathlib

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent
LIGHT, BETA, ALPHA = 240.0, 0.15, 1.0
MACENKO = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]), np.array([1.9705, 1.0308])
REINHARD = np.array([8.253, -0.126, 0.062]), np.array([0.508, 0.076, 0.024])
CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
AXES = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])


def draw(width=64, height=56):
    """Nuclei in pink stroma, with a lumen brighter than 240, a corner of dim glass and a black grain."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:height, :width].astype(float)
    haematoxylin = rng.uniform(0.08, 0.3, x.shape)
    eosin = 0.55 + 0.25 * np.sin(x / 4 + y / 7) + rng.normal(0, 0.06, x.shape)
    for _ in range(26):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, 4)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r * r
        haematoxylin = np.where(inside, rng.uniform(0.9, 1.6) + rng.normal(0, 0.1, x.shape), haematoxylin)
        eosin = np.where(inside, rng.uniform(0.1, 0.4), eosin)
    colours = np.array([[0.68, 0.66, 0.32], [0.16, 0.91, 0.36]])
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    amounts = np.stack([haematoxylin, eosin], -1).clip(0)
    image = 244 * np.exp(-(amounts @ colours)) + rng.normal(0, 1.5, (*x.shape, 3))
    image[(x - 50) ** 2 + (y - 12) ** 2 < 40] = [247, 244, 249]
    image[-6:, :8] = [226, 228, 224]
    image[30, 30] = 0
    return image.round().clip(0, 255).astype(np.uint8)


def density(pixels):
    return np.maximum(np.log(LIGHT / np.maximum(pixels.astype(float), 1)), 0)


def macenko_statistics(pixels):
    tissue = density(pixels)
    tissue = tissue[(tissue >= BETA).all(1)]
    _, vectors = np.linalg.eigh(np.cov(tissue.T))
    plane = vectors[:, :0:-1]
    angle = np.arctan2(*(tissue @ plane).T[::-1])
    middle = np.arctan2(*(tissue.mean(0) @ plane)[::-1])
    turned = (angle - middle + np.pi) % (2 * np.pi) - np.pi
    ends = np.percentile(turned, [ALPHA, 100 - ALPHA]) + middle
    colours = np.stack([np.cos(ends), np.sin(ends)], 1) @ plane.T
    colours = colours[np.argsort(-colours[:, 0])]
    amounts = np.linalg.lstsq(colours.T, tissue.T, rcond=None)[0]
    return colours, np.percentile(amounts, 99, axis=1), len(tissue)


def macenko(pixels):
    colours, strongest, _ = macenko_statistics(pixels)
    amounts = np.linalg.lstsq(colours.T, density(pixels).T, rcond=None)[0].clip(0)
    amounts *= (MACENKO[1] / strongest)[:, None]
    return np.maximum(pixels, LIGHT) * np.exp(-(amounts.T @ MACENKO[0]))


def lab(pixels):
    return np.log(np.maximum(pixels.astype(float), 1) @ CONES.T) @ AXES.T


def reinhard_statistics(pixels):
    tissue = density(pixels).mean(1) >= BETA
    return lab(pixels[tissue]).mean(0), lab(pixels[tissue]).std(0), int(tissue.sum())


def reinhard(pixels):
    mean, deviation, _ = reinhard_statistics(pixels)
    mapped = (lab(pixels) - mean) / deviation * REINHARD[1] + REINHARD[0]
    mapped = (np.exp(mapped @ np.linalg.inv(AXES).T) @ np.linalg.inv(CONES).T).clip(0, 255)
    weight = np.minimum(density(pixels).mean(1) / BETA, 1)[:, None]
    return pixels + weight * (mapped - pixels)


def compare_with_torchstain(patch, ours):
    try:
        from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer
    except ImportError:
        print("torchstain is not installed: no comparison")
        return
    theirs, _, _ = NumpyMacenkoNormalizer().normalize(patch, stains=False)
    fitted = NumpyMacenkoNormalizer()
    fitted.fit(patch)
    colours, strongest, _ = macenko_statistics(patch.reshape(-1, 3))
    apart = np.degrees(np.arccos(np.clip((fitted.HERef.T * colours).sum(1), -1, 1)))
    dense = (density(patch.reshape(-1, 3)) >= BETA).all(1)
    apart_pixels = np.abs(theirs.reshape(-1, 3).astype(float) - ours.reshape(-1, 3))
    print("torchstain: colours apart by", apart.round(2), "degrees; largest amounts", fitted.maxCRef.round(3), "here", strongest.round(3))
    print("torchstain: mean difference of tissue", apart_pixels[dense].mean().round(2), "of all", apart_pixels.mean().round(2))


patch = draw()
flat = patch.reshape(-1, 3)
out = {"made_by": f"numpy {np.__version__}"}
for name, statistics, normalise in (
    ("macenko", macenko_statistics, macenko),
    ("reinhard", reinhard_statistics, reinhard),
):
    first, second, tissue = statistics(flat)
    keys = ("colours", "strongest") if name == "macenko" else ("mean", "deviation")
    out[name] = {keys[0]: first.tolist(), keys[1]: second.tolist(), "tissue": tissue}
    result = (normalise(flat) + 0.5).clip(0, 255).astype(np.uint8).reshape(patch.shape)
    Image.fromarray(result).save(HERE / f"{name}.png")
    if name == "macenko":
        compare_with_torchstain(patch, result)
Image.fromarray(patch).save(HERE / "patch.png")
(HERE / "stain.json").write_text(json.dumps(out, indent=1) + "\n")
print(json.dumps(out))
