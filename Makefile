# make demo    draw a small cohort of slides and run the whole experiment on it, on the CPU
# make test    format and lint checks, then every test
# Both install what is missing (Debian/Ubuntu packages), build, and are safe to repeat.

# A Rust that setup has just installed is not on the PATH of this shell yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help setup build demo test lint gpu-bin golden

help:
	@sed -n '1,3s/^# //p' Makefile
	@echo "make lint    formatting and clippy, warnings are errors"
	@echo "make gpu-bin one stripped binary for GPU machines: CUDA and wgpu, no OpenSlide, no HDF5"
	@echo "make golden  make the reference numbers of the tests again (needs Python, see tests/golden/README.md)"

setup:
	@scripts/setup.sh

build: setup
	@echo "== building gensis (the first time takes about ten minutes)"
	@cargo build --release --locked

demo: build
	@echo "== running the demo: 24 slides, 3 classes, 3 to 8 minutes on two idle cores"
	target/release/gensis demo --out demo-run

lint: setup
	@echo "== formatting"
	@cargo fmt --all --check
	@scripts/clippy.sh

test: lint
	@scripts/test.sh

gpu-bin: setup
	@scripts/gpu_bin.sh

golden:
	@for script in tests/golden/*/*.py slide_io/tests/golden/*.py; do echo "== $$script"; python3 "$$script" || exit 1; done
