"""Writes ome_subifds.tif: a BigTIFF in OME layout whose reduced levels are sub-directories, with deflated, predicted tiles.

Pixel (x, y) of level k is (x * 2**k % 256, y * 2**k % 256, k), which the test recomputes. Needs numpy and tifffile.
"""
from pathlib import Path

import numpy as np
import tifffile


def level(k: int) -> np.ndarray:
    y, x = np.mgrid[0 : 192 >> k, 0 : 256 >> k] << k
    return np.stack([x % 256, y % 256, np.full_like(x, k)], axis=-1).astype(np.uint8)


options = {"tile": (64, 64), "compression": "zlib", "predictor": True, "photometric": "rgb", "planarconfig": "contig"}
with tifffile.TiffWriter(Path(__file__).with_name("ome_subifds.tif"), bigtiff=True, ome=True) as tiff:
    tiff.write(level(0), subifds=2, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", metadata={"axes": "YXS"}, **options)
    for k in (1, 2):
        tiff.write(level(k), subfiletype=1, **options)
