#!/usr/bin/env python3
"""PyTorch's side of benches/knn.rs, which starts it: an empty line in, the seconds of one search out.

DINO's eval_knn.py: normalised rows, a block of queries times all references, topk. The references are cut into blocks too,
whose best are merged, since 50,000 queries times a million references do not fit in memory.
"""
import sys
import time

import torch

references, queries, dim, k = map(int, sys.argv[1:])
torch.manual_seed(0)
train, test = torch.rand(references, dim) * 2 - 1, torch.rand(queries, dim) * 2 - 1


def search(query_block=512, reference_block=32768):
    best, rows = [], torch.nn.functional.normalize(train)
    for block in torch.nn.functional.normalize(test).split(query_block):
        found = None
        for first in range(0, references, reference_block):
            part = rows[first : first + reference_block]
            values, index = (block @ part.T).topk(min(k, len(part)))
            index += first
            if found is not None:
                values, index = torch.cat([found[0], values], 1), torch.cat([found[1], index], 1)
                values, order = values.topk(k)
                index = index.gather(1, order)
            found = values, index
        best.append(found)
    return torch.cat([values for values, _ in best])


with torch.no_grad():
    for _ in sys.stdin:
        start = time.perf_counter()
        search()
        print(time.perf_counter() - start, flush=True)
