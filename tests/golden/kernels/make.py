#!/usr/bin/env python3
"""Writes kernels.json: a strided convolution with zeros on two sides, group normalisation with SiLU, layer
normalisation, GELU and softmax, with all gradients, in PyTorch (f64, so that only the tested side rounds). Inputs are those of `values` in
src/model/kernels/tests.rs. Run by `make golden`."""
import json
import pathlib

import torch
import torch.nn.functional as F


def values(count, phase):
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + phase)


def case(function, shapes):
    inputs = [values(torch.Size(s).numel(), i).view(s).requires_grad_() for i, s in enumerate(shapes)]
    y = function(*inputs)
    (y * values(y.numel(), 9.0).view(y.shape)).sum().backward()
    numbers = [y] + [i.grad for i in inputs]
    return [[round(v, 7) for v in n.flatten().tolist()] for n in numbers]


cases = {
    "convolution": case(lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 0, 1)), w, b, stride=2), [(2, 3, 6, 5), (4, 3, 3, 3), (4,)]),
    "group_norm_silu": case(lambda x, w, b: F.silu(F.group_norm(x, 2, w, b, 1e-6)), [(2, 4, 3, 5), (4,), (4,)]),
    "layer_norm": case(lambda x, w, b: F.layer_norm(x, (37,), w, b, 1e-6), [(5, 37), (37,), (37,)]),
    "gelu": case(lambda x, w, b: F.gelu(9 * x * w + b), [(5, 37), (37,), (37,)]),
    "softmax": case(lambda x, w, b: F.softmax(9 * x * w + b, -1), [(5, 37), (37,), (37,)]),
}
pathlib.Path(__file__).with_name("kernels.json").write_text(json.dumps(cases) + "\n")
