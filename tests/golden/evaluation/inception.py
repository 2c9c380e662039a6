"""Features of pytorch-fid's InceptionV3 with weights that a formula gives: inception.safetensors.

pip install torch torchvision pytorch-fid safetensors; made with torch 2.15, pytorch-fid 0.3.0. The formula takes the place of
the 95 MB of trained weights: every number is a multiple of the golden ratio, modulo 1, with a phase from its name.
"""

import math
from pathlib import Path

import numpy as np
import torch
from pytorch_fid import inception
from safetensors.torch import save_file


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    phase = sum((i + 1.0) * byte for i, byte in enumerate(name.encode())) * 0.001
    turn = (np.arange(math.prod(shape), dtype=np.float64) + 1.0) * 0.6180339887498949 + phase
    u = 2.0 * (turn - np.floor(turn)) - 1.0
    part = name.split(".")[-2:]
    match part:
        case ["conv", "weight"]:
            u = u * np.sqrt(6.0 / math.prod(shape[1:]))
        case ["bn", "weight"]:
            u = 1.0 + 0.2 * u
        case ["bn", "bias"]:
            u = 0.2 * u
        case ["bn", "running_mean"]:
            u = 0.1 * u
        case ["bn", "running_var"]:
            u = 1.0 + 0.5 * u
    return torch.from_numpy(u.astype(np.float32)).reshape(shape)


def drawn() -> dict[str, torch.Tensor]:
    """The state dictionary in place of the downloaded one."""
    model = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    model.Mixed_5b = inception.FIDInceptionA(192, pool_features=32)
    model.Mixed_5c = inception.FIDInceptionA(256, pool_features=64)
    model.Mixed_5d = inception.FIDInceptionA(288, pool_features=64)
    model.Mixed_6b = inception.FIDInceptionC(768, channels_7x7=128)
    model.Mixed_6c = inception.FIDInceptionC(768, channels_7x7=160)
    model.Mixed_6d = inception.FIDInceptionC(768, channels_7x7=160)
    model.Mixed_6e = inception.FIDInceptionC(768, channels_7x7=192)
    model.Mixed_7b = inception.FIDInceptionE_1(1280)
    model.Mixed_7c = inception.FIDInceptionE_2(2048)
    return {
        name: torch.zeros((), dtype=torch.int64) if name.endswith("num_batches_tracked") else weight(name, tuple(value.shape))
        for name, value in model.state_dict().items()
    }


inception.load_state_dict_from_url = lambda *_, **__: drawn()
network = inception.InceptionV3([3]).eval()
x, y = np.meshgrid(np.arange(52), np.arange(40))
pixels = np.stack([(x * 7 + y * 13 + c * 29 + x * y) % 256 for c in range(3)]).astype(np.float32) / 255
with torch.no_grad():
    features = network(torch.from_numpy(pixels)[None])[0].flatten()
print(features.shape, features.abs().max())
save_file({"features": features.contiguous()}, Path(__file__).with_name("inception.safetensors"))
