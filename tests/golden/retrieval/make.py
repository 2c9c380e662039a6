"""Golden numbers of retrieval and copy detection.

    python tests/golden/retrieval/make.py

writes, beside this file,
    rankings.json              random rankings with right and junk images; AP and precisions of the revisited Oxford and Paris
                               protocol, and mAP@R of class labels
    truth_{2,3,4}.pkl          a ground truth as Python and numpy pickle it, by protocol
    truth.json                 the same as JSON, arrays as flat lists
    descriptors.safetensors    patch tokens with their GeM; features before and after whitening by PyTorch

The figures are written from the protocol's description (Radenović et al. 2018; Musgrave et al. 2020), rank by rank; the
whitening is DINO's copy detection in PyTorch. Needs numpy, torch and safetensors.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = Path(__file__).parent


def protocol(ranking, right, junk):
    """AP by trapezoids and precision at 1, 5 and 10, junk taken out."""
    seen, positives = 0, []
    for image in ranking:
        if image in right:
            positives.append(seen)
        if image in right or image not in junk:
            seen += 1
    area = 0.0
    for found, rank in enumerate(positives):
        before = 1.0 if rank == 0 else found / rank
        area += (before + (found + 1) / (rank + 1)) / (2 * len(right))
    at = []
    for k in (1, 5, 10):
        among = min(max(positives) + 1, k)
        at.append(sum(rank < among for rank in positives) / among)
    return area, at


def rankings(rng):
    cases, classes = [], []
    for number in range(48):
        size = int(rng.integers(4, 60))
        order = rng.permutation(size)
        n_right = int(rng.integers(1, max(2, size // 2)))
        kinds = rng.permutation(size)
        right, junk = kinds[:n_right], kinds[n_right:n_right + int(rng.integers(0, size - n_right + 1))]
        if number % 3 == 0:
            # Better than chance: the right ones tend to the front.
            order = np.array(sorted(order, key=lambda i: rng.random() - 0.8 * (i in right)))
        average, at = protocol(order.tolist(), set(right.tolist()), set(junk.tolist()))
        cases.append({"ranking": order.tolist(), "right": right.tolist(), "junk": junk.tolist(), "average": average, "at": at})
    for _ in range(24):
        hits = rng.random(int(rng.integers(3, 40))) < 0.5
        r = max(1, int(hits.sum()))
        first = hits[:r]
        precision = np.cumsum(first) / np.arange(1, len(first) + 1)
        classes.append({
            "right": hits.tolist(), "r": r, "map_at_r": float((precision * first).sum() / r),
            "r_precision": float(first.sum() / r), "first": float(hits[0]),
        })
    (HERE / "rankings.json").write_text(json.dumps({"cases": cases, "classes": classes}))


def truth(rng):
    shared = [3, 4]
    queries = []
    for i in range(5):
        queries.append({
            "easy": rng.integers(0, 300, 4).astype([np.int64, np.int32, ">i4", np.uint8, np.uint16][i]),
            "hard": [int(v) for v in rng.integers(0, 70000, 3)] + [-1 - i, 2**33],
            "junk": shared,
            "bbx": (rng.random(4) * 500).astype([np.float64, np.float32, ">f8", np.float64, np.float64][i]),
            "score": np.float64(0.25 * i), "rank": np.int32(-i), "empty": np.zeros(0, np.int64), "none": None,
            "flags": [True, False], "pair": (1, 2.5), "box": [0.5, 1e-3, 7.0, 3], "name": "Bär €",
        })
    data = {"imlist": [f"image_{i:06d}" for i in range(300)], "qimlist": [f"q{i}" for i in range(5)], "gnd": queries}
    for version in (2, 3, 4):
        with open(HERE / f"truth_{version}.pkl", "wb") as file:
            pickle.dump(data, file, protocol=version)
    (HERE / "truth.json").write_text(json.dumps(data, default=lambda v: v.tolist()))


def descriptors(rng):
    torch.manual_seed(7)
    tokens = torch.randn(3, 20, 12)
    gem = tokens.clamp(min=1e-6).permute(0, 2, 1)
    gem = F.avg_pool1d(gem.pow(4), 20).pow(1 / 4).squeeze(2)
    mixing = torch.randn(12, 12)
    train, database, queries = (torch.randn(n, 12) @ mixing + 0.5 for n in (50, 9, 4))
    mean = train.mean(dim=0, keepdim=True)
    covariance = train.T @ train / len(train)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=1e-5 * values.max())
    order = values.argsort(descending=True)
    projection = torch.diag(values[order].pow(-0.5)) @ vectors[:, order].T

    def whitened(features):
        return F.normalize((features - mean) @ projection.T, dim=1)

    save_file(
        {
            "tokens": tokens, "gem": gem.contiguous(), "train": train, "database": database, "queries": queries,
            "similarity": whitened(queries) @ whitened(database).T,
        },
        HERE / "descriptors.safetensors",
    )


if __name__ == "__main__":
    generator = np.random.default_rng(11)
    rankings(generator)
    truth(generator)
    descriptors(generator)
