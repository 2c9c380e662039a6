#!/usr/bin/env python3
"""Do images between two move from one to the other as α grows?

    python benches/interpolation.py RUN FOLDER [--pairs 20] [--strips 4]

draws pairs of images from different class folders of FOLDER, asks `gensis sample RUN --interpolate` for strips between
each, and prints how often a step of α came nearer to the first image, how often a whole strip did, and the
rank correlation of α with the place between the two: the cosine to the first less that to the second, of embeddings as they
condition. GENSIS names the program, target/release/gensis otherwise.
"""
import argparse
import csv
import os
import random
import subprocess
import tempfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run")
parser.add_argument("folder", type=Path)
parser.add_argument("--pairs", type=int, default=20)
parser.add_argument("--strips", type=int, default=4)
asked = parser.parse_args()
program = os.environ.get("GENSIS", "target/release/gensis")
classes = [sorted(p for p in d.rglob("*") if p.is_file()) for d in sorted(asked.folder.iterdir()) if d.is_dir()]
draw = random.Random(0)


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(i) for i in range(len(values))]


steps, whole, correlations, inner = [], [], [], []
for _ in range(asked.pairs):
    first, second = (draw.choice(images) for images in draw.sample(classes, 2))
    with tempfile.TemporaryDirectory() as empty:
        command = [program, "sample", asked.run, "--interpolate", first, second, "--count", str(asked.strips)]
        done = subprocess.run([*command, "--picture", f"{empty}/x.png"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    rows = list(csv.DictReader(done.stdout.splitlines()))
    for strip in range(asked.strips):
        cells = [(float(r["alpha"]), float(r["similarity_first"]) - float(r["similarity_second"]))
                 for r in rows if r["row"] == str(strip)]
        places = [place for _, place in sorted(cells)]
        rising = [a < b for a, b in zip(places, places[1:])]
        steps += rising
        inner += rising[1:-1]
        whole.append(all(rising))
        n, at = len(places), ranks(places)
        correlations.append(1 - 6 * sum((i - r) ** 2 for i, r in enumerate(at)) / (n * (n * n - 1)))


def mean(values):
    return sum(values) / len(values)


print(f"{asked.pairs} pairs, {asked.strips} strips each: {mean(steps):.3f} of the steps nearer ({mean(inner):.3f} between drawn images), "
      f"{mean(whole):.3f} of the strips throughout, rank correlation {mean(correlations):.3f}, at least {min(correlations):.3f}")
