"""Pillow's thumbnails of a drawn image: thumbnail_<width>x<height>_<longest side>.png beside this file.

    python3 tests/golden/retrieval/thumbnails.py

Needs numpy and Pillow. `src/data/thumbnail.rs` draws the same image.
"""

from pathlib import Path

import numpy as np
from PIL import Image

for width, height, longest in [(300, 200, 40), (257, 391, 60), (100, 90, 64), (96, 203, 50), (61, 60, 61)]:
    y, x = np.mgrid[:height, :width]
    drawn = np.stack([x * 7 + y * 3, x * x // 5 + y * 11, (x ^ y) * 5], -1) % 256
    image = Image.fromarray(drawn.astype(np.uint8))
    image.thumbnail((longest, longest), Image.LANCZOS)
    image.save(Path(__file__).with_name(f"thumbnail_{width}x{height}_{longest}.png"))
