#!/usr/bin/env python3
"""PyTorch's side of benches/kernels.rs, which starts it: `threads backward CASE` in, median seconds out, a line each."""
import statistics
import sys
import time

import torch
import torch.nn.functional as F

TURN = 0.1


def step(words, backward):
    n = list(map(int, words[1:]))
    x = torch.rand(n[:4], requires_grad=backward)
    shape = {"conv": lambda: (n[4], n[1], n[5], n[5]), "norm": lambda: (n[1],)}.get(words[0], lambda: (n[3],))()
    weight, bias = torch.rand(shape, requires_grad=backward), torch.rand(shape[0], requires_grad=backward)

    def forward():
        match words[0]:
            case "conv":
                return F.conv2d(x, weight, bias, stride=n[6], padding=n[7])
            case "norm":
                return F.silu(F.group_norm(x, n[4], weight, bias, 1e-6))
            case "gelu":
                return F.gelu(x)
            case "softmax":
                return F.softmax(x, -1)
            case "layer_norm":
                return F.layer_norm(x, n[3:], weight, bias, 1e-6)

    if not backward:
        def run():
            with torch.no_grad():
                forward()
        return run
    pull = torch.rand_like(forward())

    def run():
        torch.autograd.grad((forward() * pull).sum(), [x, weight, bias], allow_unused=True)
    return run


for line in sys.stdin:
    threads, backward, *words = line.split()
    torch.set_num_threads(int(threads))
    run = step(words, backward == "1")
    run()
    start, times = time.perf_counter(), []
    while len(times) < 3 or time.perf_counter() - start < TURN:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    print(statistics.median(times), flush=True)
