#!/usr/bin/env python3
"""gensis beside timm: the same network with random weights, the same images, embeddings compared and timed in turns.

    python benches/encoders.py GENSIS IMAGES OUT NAME [--preset PRESET] [--rounds N] [ARGUMENT=VALUE ...]

builds timm's NAME with the arguments (numbers and booleans as Python writes them, `swiglu=True` for SwiGLUPacked with SiLU),
saves its weights below OUT, embeds the class folders of IMAGES with both, and prints images/s of every round and the largest
difference of an embedding over its largest number. With a preset the weights are read as that encoder's.
"""
import argparse
import ast
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

BATCH = 64


def build(name, arguments):
    torch.manual_seed(0)
    if arguments.pop("swiglu", False):
        arguments |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # As initialised LayerScale would hide the blocks.
            if parameter_name.endswith("gamma"):
                parameter.fill_(0.3)
    return model


class Folder(torch.utils.data.Dataset):
    def __init__(self, paths, mean, std):
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def by_timm(model, paths, cls_mean, mean, std):
    began, out = time.perf_counter(), []
    loader = torch.utils.data.DataLoader(Folder(paths, mean, std), BATCH)
    with torch.inference_mode():
        for images in loader:
            tokens = model.forward_features(images)
            embedding = tokens[:, 0]
            if cls_mean:
                embedding = torch.cat([embedding, tokens[:, model.num_prefix_tokens :].mean(1)], 1)
            out.append(embedding)
    return torch.cat(out).numpy(), len(paths) / (time.perf_counter() - began)


def by_gensis(program, images, run, encoder):
    shutil.rmtree(run, ignore_errors=True)
    entry = ", ".join(f"{key}={json.dumps(value)}" for key, value in encoder.items())
    command = [program, "embed", "--images", images, "--out", run, "--set", f"encoders=[{{{entry}}}]"]
    began = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    whole = time.perf_counter() - began
    table = pyarrow.parquet.read_table(next((Path(run) / "features").glob("*-train.parquet"))).to_pydict()
    return dict(zip(table["item"], table["embedding"])), whole, said


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "images", "out", "name"):
        parser.add_argument(name)
    parser.add_argument("--preset", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_intermixed_args()
    arguments = {key: ast.literal_eval(value) for key, value in (pair.split("=", 1) for pair in asked.arguments)}
    model = build(asked.name, arguments)
    Path(asked.out).mkdir(parents=True, exist_ok=True)
    weights = f"{asked.out}/weights.safetensors"
    save_file(model.state_dict(), weights)
    encoder = {"preset": asked.preset} if asked.preset else {"name": "timm"}
    encoder |= {"weights": weights, "resize": 224, "crop": 224}
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if asked.preset.startswith("h_optimus"):
        mean, std = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
    paths = sorted(path for path in Path(asked.images).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    print(f"{asked.name}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(paths)} images, torch {torch.__version__} on {torch.get_num_threads()} threads")
    for _ in range(asked.rounds):
        theirs, rate = by_timm(model, paths, asked.preset.startswith("virchow"), mean, std)
        ours, whole, said = by_gensis(asked.program, asked.images, f"{asked.out}/run", encoder)
        ours = np.array([ours[str(path.relative_to(asked.images))] for path in paths], np.float32)
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        line = next(line for line in said.splitlines() if re.match(r"embed: .*images, \d+ failure", line))
        print(f"timm {rate:.2f}/s; gensis {len(paths) / whole:.2f}/s with start and loading; {line}; difference {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
