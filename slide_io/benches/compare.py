"""slide_io beside openslide-python, cuCIM and tifffile, in one run: every 256 x 256 patch of level 0, as RGB in memory.

    cargo bench -p slide_io --bench reading --no-run          (prints the path of the benchmark)
    python3 slide_io/benches/compare.py BENCHMARK SLIDE...

Readers take turns, so that a busy moment of the machine does not fall on one of them; medians of `--rounds`.
Needs: pip install openslide-python openslide-bin cucim-cu12 tifffile imagecodecs numpy
"""

import argparse, json, statistics, subprocess, sys, time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SIDE = 256


def grid(width, height):
    return [(x, y) for y in range(0, height - SIDE + 1, SIDE) for x in range(0, width - SIDE + 1, SIDE)]


def openslide_reader(path):
    import openslide

    slide = openslide.OpenSlide(path)
    return slide.dimensions, lambda x, y: np.asarray(slide.read_region((x, y), 0, (SIDE, SIDE)).convert("RGB"))


def cucim_reader(path):
    from cucim import CuImage

    # Its cache of decoded tiles, at the size that serves it best here: two rows of tiles and more.
    CuImage.cache("per_process", memory_capacity=1024)
    slide = CuImage(path)
    height, width = slide.shape[:2]
    return (width, height), lambda x, y: np.asarray(slide.read_region((x, y), (SIDE, SIDE), 0))


READERS = {"openslide-python": openslide_reader, "cucim (CPU)": cucim_reader}


def patches_per_second(open_reader, path, threads):
    (width, height), read = open_reader(path)
    cells = grid(width, height)
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for patch in pool.map(lambda cell: read(*cell), cells) if threads > 1 else (read(*cell) for cell in cells):
            assert patch.shape == (SIDE, SIDE, 3)
    return len(cells) / (time.perf_counter() - start)


def tifffile_tiles(path):
    """Stored tiles decoded once each, as 256 px patches a second."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        start = time.perf_counter()
        count = 0
        for tile, _, _ in page.segments(maxworkers=1):
            count += tile.shape[-3] * tile.shape[-2] / SIDE**2
        return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark")
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for slide in arguments.slides:
        name, results = Path(slide).name, defaultdict(list)
        for _ in range(arguments.rounds):
            out = subprocess.run([arguments.benchmark, "read", slide], check=True, capture_output=True, text=True)
            for line in out.stdout.splitlines():
                found = json.loads(line)
                results["slide_io: " + found["what"], found["threads"]].append(found["per_second"])
            for reader in READERS:
                for threads in (1, 2):
                    # A process of its own: caches and thread pools start empty.
                    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import compare; " \
                           f"print(compare.patches_per_second(compare.READERS[{reader!r}], {slide!r}, {threads}))"
                    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
                    if out.returncode:
                        print(f"{reader} cannot read {name}: {out.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    else:
                        results[reader, threads].append(float(out.stdout.split()[-1]))
            try:
                results["tifffile, stored tiles", 1].append(tifffile_tiles(slide))
            except Exception as error:
                print(f"tifffile cannot read {name}: {error}", file=sys.stderr)
        print(f"\n{name}\n\n| reader | threads | per second, median | lowest | highest |\n|---|---|---|---|---|")
        for (reader, threads), rates in results.items():
            print(f"| {reader} | {threads or ''} | {statistics.median(rates):.1f} | {min(rates):.1f} | {max(rates):.1f} |")


if __name__ == "__main__":
    main()
