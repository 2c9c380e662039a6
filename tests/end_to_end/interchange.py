"""Reads a run's files with h5py the way CLAM's and TRIDENT's scripts do, and writes such files for gensis to read.

    python3 interchange.py JOB_FOLDER CLAM_FOLDER OUT_FOLDER SLIDE        prints what it read as JSON

Called by `export.rs`, where python3 (or $GENSIS_PYTHON) has h5py.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

job, clam, out, slide = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]


def as_trident(path):
    """Coordinates with the attributes that its patcher needs to find the patches again."""
    with h5py.File(path, "r") as file:
        coords, attributes = file["coords"][:], dict(file["coords"].attrs)
    found = {name: int(attributes[name]) for name in ("patch_size", "patch_size_level0", "overlap", "level0_width")}
    magnifications = {name: float(attributes[name]) for name in ("level0_magnification", "target_magnification")}
    assert coords.dtype.kind == "i" and coords.shape[1] == 2, coords.dtype
    return {"coords": coords.tolist(), "name": str(attributes["name"])} | found | magnifications


def as_clam(path):
    """Coordinates as its dataset of a bag's patches reads them."""
    with h5py.File(path, "r") as file:
        dset = file["coords"]
        level, size = dset.attrs["patch_level"], dset.attrs["patch_size"]
        assert isinstance(int(level), int) and len(dset) == len(dset[:])
        return {"coords": dset[:].tolist(), "level": int(level), "size": int(size)}


def bag(path):
    with h5py.File(path, "r") as file:
        features, coords = file["features"][:], file["coords"][:]
    assert features.dtype == np.float32 and features.ndim == 2 and len(features) == len(coords)
    return {"shape": features.shape, "sum": float(features.astype(np.float64).sum())}


def write_clam(path):
    """As CLAM's create_patches_fp.py: integers, and the slide's name as bytes."""
    with h5py.File(path, "w") as file:
        dset = file.create_dataset("coords", data=np.array([[0, 0], [256, 512]], np.int64), maxshape=(None, 2))
        for name, value in {
            "patch_size": 256, "patch_level": 0, "downsample": np.array([1.0, 1.0]), "downsampled_level_dim": (4000, 3000),
            "level_dim": (4000, 3000), "name": "clam", "save_path": "x",
        }.items():
            dset.attrs[name] = value


def write_trident(path):
    """As TRIDENT: magnifications as floats, and what it does not know as the string None."""
    with h5py.File(path, "w") as file:
        dset = file.create_dataset("coords", data=np.array([[10, 20]], np.int64))
        for name, value in {
            "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40.0, "target_magnification": 20.0,
            "overlap": 0, "name": "trident", "savetodir": "None", "level0_width": 4000, "level0_height": 3000,
        }.items():
            dset.attrs[name] = value


def write_features(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.arange(6, dtype=np.float32).reshape(2, 3))
        file.create_dataset("coords", data=np.array([[0, 0], [256, 512]], np.int64))


write_clam(out / "clam.h5")
write_trident(out / "trident.h5")
write_features(out / "features.h5")
patches = job / "patches" / f"{slide}_patches.h5"
print(json.dumps({
    "trident": as_trident(patches), "clam": as_clam(patches), "exported": as_clam(clam / "patches" / f"{slide}.h5"),
    "features": bag(job / "features_dino" / f"{slide}.h5"), "bag": bag(clam / "h5_files" / f"{slide}.h5"),
}))
