#!/usr/bin/env python3
"""Do images between two move from one to the other as α grows?

    python benches/interpolation.py RUN FOLDER [PAIRS [STRIPS]]

draws PAIRS pairs of images (20) from different class folders of FOLDER, asks `gensis sample RUN --interpolate` for STRIPS
strips (4) between each, and prints how often a step of α came nearer to the first image, how often a whole strip did, and the
rank correlation of α with the place between the two: the cosine to the first less that to the second, of embeddings as they
condition. GENSIS names the program, target/release/gensis otherwise.
"""
import csv
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

run, folder, pairs, strips = (sys.argv[1:] + ["20", "4"][len(sys.argv) - 3 :])[:4]
program = os.environ.get("GENSIS", "target/release/gensis")
classes = [sorted(p for p in d.rglob("*") if p.is_file()) for d in sorted(Path(folder).iterdir()) if d.is_dir()]
draw = random.Random(0)


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(i) for i in range(len(values))]


steps, whole, correlations, inner = [], [], [], []
for _ in range(int(pairs)):
    first, second = (draw.choice(images) for images in draw.sample(classes, 2))
    with tempfile.TemporaryDirectory() as empty:
        command = [program, "sample", run, "--interpolate", first, second, "--count", strips, "--picture", f"{empty}/x.png"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = list(csv.DictReader(said.splitlines()))
    for strip in range(int(strips)):
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


print(f"{pairs} pairs, {strips} strips each: {mean(steps):.3f} of the steps nearer ({mean(inner):.3f} between drawn images), "
      f"{mean(whole):.3f} of the strips throughout, rank correlation {mean(correlations):.3f}, at least {min(correlations):.3f}")
