#!/usr/bin/env python3
"""PyTorch's column for `gensis doctor --selftest`: the same DINO step, timed the same way.

ViT-S/16 with stochastic depth 0.1 in the student, two 224 px and eight 96 px crops, projection head 2048-2048-256-K, AdamW,
per-tensor clipping, EMA teacher, centring. As in gensis the crops lie in host memory (here pinned) and are copied to the
device in every step, and loss, entropy and norm of the centre are read back in every step. Attention is PyTorch's
scaled_dot_product_attention.

Prints images/s and the memory that the allocator has reserved on the device (what gensis shows as well; nothing on the
CPU) every 50 steps, and one JSON line per setting at the end. The median leaves out the first reading, which holds the
warming up, as gensis's does.

usage: selftest_peer.py [--device cuda|cpu] [--steps 300] [--every 50] [--batch 32] [--prototypes 65536]
                        [--precision f32 bf16] [--compile off on]
needs: torch
"""
import argparse
import copy
import gc
import json
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, dim, heads, drop_path):
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def survivors(self, branch):
        """DINO's DropPath: a sample loses the branch with probability `drop_path`, the others' is scaled up."""
        if self.drop_path == 0 or not self.training:
            return branch
        keep = 1 - self.drop_path
        drawn = keep + torch.rand(branch.shape[0], 1, 1, dtype=branch.dtype, device=branch.device)
        return branch.div(keep) * drawn.floor()

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        x = x + self.survivors(attended)
        return x + self.survivors(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class Dino(nn.Module):
    def __init__(self, prototypes, dim=384, depth=12, heads=6, patch=16, image=224, drop_path=0.1):
        super().__init__()
        self.grid = image // patch
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, 1 + self.grid**2, dim) * 0.02)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(Block(dim, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256))
        self.last = nn.Parameter(torch.randn(prototypes, 256) * 0.02)

    def features(self, x):
        x = self.embed(x)
        b, c, h, w = x.shape
        pos = self.pos
        if h != self.grid:
            grid = pos[:, 1:].view(1, self.grid, self.grid, c).permute(0, 3, 1, 2)
            scale = (h + 0.1) / self.grid
            grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
            pos = torch.cat([pos[:, :1], grid.permute(0, 2, 3, 1).reshape(1, h * w, c)], 1)
        x = torch.cat([self.cls.expand(b, -1, -1), x.flatten(2).transpose(1, 2)], 1) + pos
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def forward(self, *crops):
        x = torch.cat([self.features(c) for c in crops])
        return F.normalize(self.mlp(x), dim=1) @ F.normalize(self.last, dim=1).t()


def measure(args, precision, compiled):
    device = torch.device(args.device)
    if device.type == "cuda":
        # Else this setting would seem to need what the one before it has reserved.
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    student = Dino(args.prototypes).to(device)
    # In evaluation mode nothing is dropped: only the student has stochastic depth.
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    run_student = torch.compile(student) if compiled else student
    run_teacher = torch.compile(teacher) if compiled else teacher
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.04}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4 * args.batch / 256)
    centre = torch.zeros(1, args.prototypes, device=device)
    b = args.batch
    host = [torch.randn(2 * b, 3, 224, 224), torch.randn(8 * b, 3, 96, 96)]
    if device.type == "cuda":
        host = [crops.pin_memory() for crops in host]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    rates, memory, mark, losses = [], [], time.time(), []
    for step in range(1, args.steps + 1):
        globals_, locals_ = (crops.to(device, non_blocking=True, copy=True) for crops in host)
        with autocast:
            with torch.no_grad():
                raw = run_teacher(globals_)
            logits = run_student(globals_, locals_)
        raw, log_p = raw.float(), F.log_softmax(logits.float() / 0.1, 1).split(b)
        soft = F.softmax((raw - centre) / 0.04, 1)
        targets = soft.split(b)
        terms = [-(t * s).sum(1).mean() for i, t in enumerate(targets) for j, s in enumerate(log_p) if i != j]
        loss = torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            entropy = -(soft * soft.clamp(min=1e-30).log()).sum(1).mean()
            centre = 0.9 * centre + 0.1 * raw.mean(0, keepdim=True)
            # One transfer, which waits for the device as gensis does.
            told = torch.stack([loss, entropy, centre.norm()]).tolist()
        for p in student.parameters():
            p.grad.mul_((3.0 / (p.grad.norm() + 1e-6)).clamp(max=1.0))
        optimizer.step()
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters()):
                t.lerp_(s, 0.004)
        if step % args.every == 0 or step == args.steps:
            losses.append(told[0])
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory.append(torch.cuda.memory_reserved() / 2**20)
            now = time.time()
            rates.append(b * (step % args.every or args.every) / (now - mark))
            mark = now
            print(f"{precision} compile={compiled} step {step}: {rates[-1]:.2f} images/s, loss {losses[-1]:.4f}"
                  + (f", {memory[-1]:.0f} MiB" if memory else ""), flush=True)
    # Of an even number the faster of the middle two, as gensis takes it.
    warm = sorted(rates[1:] or rates)
    return {"peer": f"torch {torch.__version__}", "precision": precision, "compile": compiled, "batch": b,
            "prototypes": args.prototypes, "images_per_s": warm[len(warm) // 2], "memory_mib": memory, "losses": losses}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--every", type=int, default=50)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--prototypes", type=int, default=65536)
    p.add_argument("--precision", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    p.add_argument("--compile", nargs="+", default=["off", "on"], choices=["off", "on"])
    args = p.parse_args()
    results = [measure(args, precision, compiled == "on") for precision in args.precision for compiled in args.compile]
    for result in results:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
