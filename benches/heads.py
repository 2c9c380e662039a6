#!/usr/bin/env python3
"""Slide-level heads over features that do not fit in memory: gensis beside a plain PyTorch loop over the same files.

    benches/heads.py FOLDER --bags 10000 [--peer-bags 1000] [--gensis target/release/gensis]

makes FOLDER/features/*.h5 (bags of 500 x 384, once) and labels.csv, then runs gated ABMIL over five folds for one epoch each:
`gensis evaluate slide`, and the loop below (one bag at a time, gradients of 8 bags summed, as the defaults say). Both
train on 64 %, choose on 16 % and test on 20 % of the bags, five times. Needs torch, h5py, numpy.
"""
import argparse
import shutil
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import torch

PATCHES, DIM, CLASSES, FOLDS = 500, 384, 3, 5


def make(folder: Path, bags: int) -> None:
    features = folder / "features"
    features.mkdir(parents=True, exist_ok=True)
    rows = ["slide_id,case_id,label"]
    grid = np.stack(np.meshgrid(np.arange(25), np.arange(20)), -1).reshape(-1, 2).astype(np.int64) * 512
    for bag in range(bags):
        label = bag % CLASSES
        rows.append(f"s{bag:05d},p{bag:05d},{'abc'[label]}")
        path = features / f"s{bag:05d}.h5"
        if path.exists():
            continue
        values = np.random.default_rng(bag).standard_normal((PATCHES, DIM), dtype=np.float32)
        values[: PATCHES // 10, label] += 2.0
        part = path.with_suffix(".part")
        with h5py.File(part, "w") as file:
            file["features"], file["coords"] = values, grid
        part.rename(path)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


class Abmil(torch.nn.Module):
    def __init__(self, hidden: int = 384, attention: int = 256, dropout: float = 0.25):
        super().__init__()
        self.project = torch.nn.Sequential(torch.nn.Linear(DIM, hidden), torch.nn.ReLU(), torch.nn.Dropout(dropout))
        self.v = torch.nn.Sequential(torch.nn.Linear(hidden, attention), torch.nn.Tanh(), torch.nn.Dropout(dropout))
        self.u = torch.nn.Sequential(torch.nn.Linear(hidden, attention), torch.nn.Sigmoid(), torch.nn.Dropout(dropout))
        self.w, self.classify = torch.nn.Linear(attention, 1), torch.nn.Linear(hidden, CLASSES)

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        h = self.project(bag)
        attention = torch.softmax(self.w(self.v(h) * self.u(h)), 0)
        return self.classify((attention * h).sum(0, keepdim=True))


def read(path: Path) -> torch.Tensor:
    with h5py.File(path) as file:
        return torch.from_numpy(file["features"][:])


def loop(folder: Path, bags: int) -> float:
    files = sorted((folder / "features").glob("*.h5"))[:bags]
    order = np.random.default_rng(0).permutation(len(files))
    correct = total = 0
    for fold in range(FOLDS):
        test = order[fold::FOLDS]
        rest = np.setdiff1d(order, test)
        validation, train = rest[: len(rest) // 5], rest[len(rest) // 5 :]
        # Features on mean 0 and deviation 1 over the training part, as evaluate.slide.standardize has it.
        count, total_sum, squares = 0, torch.zeros(DIM, dtype=torch.float64), torch.zeros(DIM, dtype=torch.float64)
        for index in train:
            bag = read(files[index]).double()
            count, total_sum, squares = count + len(bag), total_sum + bag.sum(0), squares + bag.square().sum(0)
        mean = total_sum / count
        scale = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
        mean, scale = mean.float(), scale.float()
        model = Abmil()
        adam = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.9), weight_decay=1e-2)
        model.train()
        for number, index in enumerate(np.random.default_rng(fold).permutation(train)):
            loss = torch.nn.functional.cross_entropy(model((read(files[index]) - mean) / scale), torch.tensor([index % CLASSES]))
            (loss / 8).backward()
            if number % 8 == 7:
                adam.step()
                adam.zero_grad()
        model.eval()
        with torch.no_grad():
            for index in validation:
                model((read(files[index]) - mean) / scale)
            for index in test:
                correct += int(model((read(files[index]) - mean) / scale).argmax()) == index % CLASSES
                total += 1
    return correct / total


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--bags", type=int, default=10000)
    arguments.add_argument("--peer-bags", type=int, default=0, help="how many of them the PyTorch loop sees; 0: all")
    arguments.add_argument("--gensis", type=Path, default=Path("target/release/gensis"))
    options = arguments.parse_args()
    make(options.folder, options.bags)

    out = options.folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    settings = [f"evaluate.slide.features=['{options.folder / 'features'}']", "evaluate.slide.epochs=1", "evaluate.slide.bootstrap=10"]
    command = [options.gensis, "evaluate", "slide", "--slides", f"{options.folder}/features/*.h5", "--out", out]
    command += ["--labels", options.folder / "labels.csv", *(part for setting in settings for part in ("--set", setting))]
    start = time.perf_counter()
    process, memory = subprocess.Popen([str(part) for part in command]), 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        memory = max([memory, *map(int, peak)])
        time.sleep(0.1)
    ours = time.perf_counter() - start
    if process.returncode not in (0, 3):  # 3: more files than labels, from a larger run before
        raise SystemExit(process.returncode)
    start = time.perf_counter()
    peer_bags = min(options.peer_bags or options.bags, options.bags)
    accuracy = loop(options.folder, peer_bags)
    theirs = time.perf_counter() - start
    ours_per_s, theirs_per_s = options.bags * FOLDS / ours, peer_bags * FOLDS / theirs
    print(f"gensis  {options.bags} bags: {ours:.0f} s, {ours_per_s:.0f} bags/s, {memory / 1024:.0f} MiB at most")
    print(f"PyTorch {peer_bags} bags: {theirs:.0f} s, {theirs_per_s:.0f} bags/s, accuracy {accuracy:.3f}")
    print(f"gensis is {ours_per_s / theirs_per_s:.2f} times as fast")


main()
