#!/usr/bin/env python3
"""Makes the small HDF5 files of this folder with h5py, laid out as TRIDENT (IO.save_h5, IO.coords_to_h5) and CLAM
(save_hdf5, compute_w_loader) lay theirs out. The tests of slide_io read them: files of other tools, not of our own writer.

usage: python3 make_h5.py   (writes beside itself; needs h5py, numpy)
"""
import pathlib

import h5py
import numpy as np

HERE = pathlib.Path(__file__).parent


def save(name, assets, attributes):
    with h5py.File(HERE / name, "w") as f:
        for key, value in assets.items():
            d = f.create_dataset(key, shape=value.shape, maxshape=(None,) + value.shape[1:],
                                 chunks=(1,) + value.shape[1:], dtype=value.dtype)
            d[:] = value
            for k, v in attributes.get(key, {}).items():
                d.attrs[k] = "None" if v is None else v


coords = np.array([[0, 512], [512, 512], [70000, 1024]], np.int64)
trident = dict(patch_size=256, patch_size_level0=512, level0_magnification=40, target_magnification=20, overlap=0,
               name="TCGA-XX", savetodir="/job/20x_256px_0px_overlap", level0_width=80000, level0_height=60000)
save("trident_patches.h5", {"coords": coords}, {"coords": trident})
batch = dict(trident, patch_size_level0=512.0, target_magnification=20.0, overlap=32, name=None, savetodir=None)
save("trident_batch_empty_patches.h5", {"coords": np.zeros((0, 2), np.int64)}, {"coords": batch})
save("trident_features.h5",
     {"features": np.arange(6, dtype=np.float32).reshape(3, 2) / 2, "coords": coords},
     {"features": dict(name="TCGA-XX", savetodir="/job", encoder="uni_v1"), "coords": trident})
pair = np.array([[100, 200], [1124, 200]])
clam = dict(patch_size=256, patch_level=1, downsample=(4.0, 4.0), downsampled_level_dim=(20000, 15000),
            level_dim=(20000, 15000), name="slide_1", save_path="/results/patches")
save("clam_patches.h5", {"coords": pair.astype(np.int64)}, {"coords": clam})
save("clam_features.h5", {"features": np.arange(1, 7, dtype=np.float32).reshape(2, 3), "coords": pair.astype(np.int32)}, {})
