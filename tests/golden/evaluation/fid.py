"""Reference numbers for evaluation/src/fid, from pytorch-fid (Fréchet distance) and torch-fidelity (KID, precision, recall).

    python3 tests/golden/evaluation/fid.py          # writes fid.json beside this file

Features are float32 with three decimals, so that their text is exact; the reference functions get them as float64.
KID is computed on subsets whose indices are written down too, since random generators differ.
"""

import json
import pathlib

import numpy as np
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import calculate_precision_recall_part

KERNEL = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}


def features(rng, n, dim, *, shift=0.0, scale=1.0, rank=None):
    mix = rng.normal(size=(rank or dim, dim))
    return np.round(rng.normal(size=(n, rank or dim)) @ mix * scale + shift, 3).astype(np.float32)


def case(name, real, generated, seed):
    rng = np.random.default_rng(seed)
    a, b = real.astype(np.float64), generated.astype(np.float64)
    statistics = [x for set_ in (a, b) for x in (set_.mean(0), np.cov(set_, rowvar=False))]
    size = min(len(a), len(b)) * 3 // 4
    subsets = [[rng.permutation(len(set_))[:size].tolist() for set_ in (a, b)] for _ in range(3)]
    precision, recall = calculate_precision_recall_part(torch.tensor(b), torch.tensor(a), 3, 16)
    plain = lambda x: [[float(f"{value:.3f}") for value in row] for row in x]
    return {
        "name": name,
        "real": plain(real),
        "generated": plain(generated),
        "mean": statistics[0].tolist(),
        "covariance": statistics[1].tolist(),
        "frechet": float(calculate_frechet_distance(*statistics)),
        "subsets": subsets,
        "discrepancy": [float(kernel_mmd(a[i], b[j], **KERNEL)) for i, j in subsets],
        "all": float(kernel_mmd(a[: len(b)], b[: len(a)], **KERNEL)),
        "precision": precision,
        "recall": recall,
    }


rng = np.random.default_rng(0)
same = features(rng, 40, 6)
cases = [
    case("shifted", features(rng, 70, 8), features(rng, 55, 8, shift=0.5), 1),
    case("narrower", features(rng, 60, 5), features(rng, 60, 5, scale=0.5), 2),
    case("fewer images than features", features(rng, 12, 20), features(rng, 14, 20, shift=0.2), 3),
    case("features on a plane", features(rng, 50, 10, rank=3), features(rng, 50, 10, rank=2), 4),
    case("the same images", same, same, 5),
    case("far apart", features(rng, 30, 4), features(rng, 30, 4, shift=50.0), 6),
    case("two halves of one set", same[:20], same[20:], 8),
]
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
print(f"{len(cases)} cases, {path.stat().st_size} bytes")
for c in cases:
    print(f"{c['name']}: {c['frechet']:.6g}, KID {c['all']:.6g}, precision {c['precision']:.3f}, recall {c['recall']:.3f}")
