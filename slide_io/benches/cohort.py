"""Memory and open files of `gensis tile` over many slides.

    cargo bench -p slide_io --bench reading -- make CMU-1-Small-Region.svs SLIDES
    python3 slide_io/benches/cohort.py target/release/gensis SLIDES OUT --count 500

Every slide of the folder is linked under many names until there are `count` of them, and tiled in one run while /proc is asked
ten times a second for resident memory and open files. Linux only; nothing but the standard library is needed.
"""

import argparse
import itertools
import os
import pathlib
import statistics
import subprocess
import time

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("gensis", type=pathlib.Path)
options.add_argument("slides", type=pathlib.Path)
options.add_argument("out", type=pathlib.Path, help="an empty or new folder: links in OUT/slides, the run in OUT/run")
options.add_argument("--count", type=int, default=500)
options = options.parse_args()

originals = sorted(path for path in options.slides.iterdir() if path.suffix in (".tiff", ".svs"))
assert originals, f"no .tiff or .svs in {options.slides}"
links = options.out / "slides"
links.mkdir(parents=True)
for number, original in zip(range(options.count), itertools.cycle(originals)):
    os.symlink(original.resolve(), links / f"slide_{number:04}{original.suffix}")

line = [options.gensis, "tile", "--slides", links, "--out", options.out / "run"]
start = time.monotonic()
with open(options.out / "log.txt", "wb") as log:
    program = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
    memory, files = [], []
    while program.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{program.pid}/status").read_text()
            resident = [row for row in status.splitlines() if row.startswith("VmRSS:")]
            memory += [int(row.split()[1]) / 1024 for row in resident]
            files.append(len(os.listdir(f"/proc/{program.pid}/fd")))
        except FileNotFoundError:
            pass
        time.sleep(0.1)
seconds = time.monotonic() - start
print(f"{options.count} links to {len(originals)} slides, exit code {program.returncode}, {seconds:.0f} s")
tenth = max(len(memory) // 10, 1)
medians = [statistics.median(memory[at : at + tenth]) for at in range(0, tenth * 10, tenth) if memory[at : at + tenth]]
print("resident MiB, medians of tenths of the run:", " ".join(f"{value:.0f}" for value in medians))
print(f"resident MiB at most {max(memory):.0f}, open files at most {max(files)}")
