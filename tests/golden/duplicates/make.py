"""Writes the small pictures of this folder and cases.json: what Pillow, SciPy and imagehash make of them.

Run: python3 make.py   (needs imagehash, which brings numpy, pillow and scipy)

A case holds the picture's name, its 32 x 32 grey copy (Pillow, Lanczos), the 8 x 8 lowest frequencies of that copy's DCT
(SciPy, as imagehash.phash computes them), and imagehash.phash itself as a row-major string of 0 and 1.
"""

import json
import pathlib

import imagehash
import numpy as np
import PIL
import scipy
import scipy.fftpack
from PIL import Image

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(11)


def section(width, height, pieces):
    """Pink pieces with purple nuclei on glass."""
    y, x = np.mgrid[:height, :width].astype(float)
    image = np.full((height, width, 3), 243.0)
    for _ in range(pieces):
        cx, cy = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
        rx, ry = rng.uniform(0.1, 0.3) * width, rng.uniform(0.1, 0.3) * height
        image[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = [225, 160, 195]
    tissue = np.argwhere(image[..., 1] < 200)
    for cy, cx in tissue[rng.permutation(len(tissue))[:60]]:
        image[(x - cx) ** 2 + (y - cy) ** 2 < rng.uniform(2, 12)] = [95, 60, 140]
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def ramp(width, height):
    """Shading, an edge and a checkerboard: strong low and high frequencies."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x // 5 + y // 5) % 2 * 255], -1)
    image[height // 3:, width // 2:] //= 2
    return image.astype(np.uint8)


pictures = {
    "biopsy": section(120, 90, 3),
    "large": section(150, 130, 7),
    "small": section(24, 28, 2),
    "ramp": ramp(90, 70),
    "noise": rng.integers(0, 256, (33, 31, 3), dtype=np.uint8),
}
cases = []
for name, pixels in pictures.items():
    image = Image.fromarray(pixels)
    image.save(HERE / f"{name}.png", optimize=True)
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))
    frequencies = scipy.fftpack.dct(scipy.fftpack.dct(grey, axis=0), axis=1)[:8, :8]
    phash = imagehash.phash(image).hash
    assert ((frequencies > np.median(frequencies)) == phash).all()
    cases.append({
        "picture": name,
        "grey": grey.ravel().tolist(),
        "frequencies": [float(f"{value:.6f}") for value in frequencies.ravel()],
        "phash": "".join("01"[int(bit)] for bit in phash.ravel()),
    })
versions = {"imagehash": imagehash.__version__, "pillow": PIL.__version__, "scipy": scipy.__version__}
(HERE / "cases.json").write_text(json.dumps({"versions": versions, "cases": cases}) + "\n")
