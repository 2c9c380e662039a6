"""Reference numbers for the heads of evaluation/src/mil, from PyTorch in float64.

    python3 tests/golden/evaluation/heads.py        # writes <head>.safetensors beside this file

Each file: the weights before (float32, widened for the computation), three bags with logits, attention and loss, the gradient
of the mean loss, and the weights after one step of Adam. The networks are written down here from the papers' equations;
parameters have the names of the Rust modules.
"""

import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

DIM, HIDDEN, ATTENTION, CLASSES = 12, 10, 6, 3
LR, WEIGHT_DECAY = 2e-4, 1e-2
BAGS = [(7, 0), (30, 2), (19, 1)]


def ce(logits, label):
    return F.cross_entropy(logits, torch.full((len(logits),), label))


class Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(DIM, HIDDEN)
        self.classify = nn.Linear(HIDDEN, CLASSES)

    def loss(self, x, label):
        return ce(self(x)[0], label)


class Mean(Pool):
    def forward(self, x):
        h = F.relu(self.embed(x))
        return self.classify(h.mean(0, keepdim=True)), torch.full((len(x),), 1 / len(x))


class Max(Pool):
    def forward(self, x):
        h = F.relu(self.embed(x))
        pooled, _ = h.max(0, keepdim=True)
        largest = (h == pooled).double()
        return self.classify(pooled), (largest / largest.sum(0)).mean(1)


class Clam(nn.Module):
    """mahmoodlab/CLAM with subtyping and the smooth SVM instance loss (tau 1, alpha 1)."""

    def __init__(self, branches):
        super().__init__()
        self.branches = branches
        self.clam = nn.ModuleDict({
            "embed": nn.Linear(DIM, HIDDEN),
            "attend": nn.Linear(HIDDEN, ATTENTION),
            "gate": nn.Linear(HIDDEN, ATTENTION),
            "score": nn.Linear(ATTENTION, branches),
            "classify": nn.Linear(HIDDEN, CLASSES),
            "examples": nn.Linear(HIDDEN, 2 * CLASSES),
        })

    def attended(self, x):
        h = F.relu(self.clam["embed"](x))
        gated = torch.tanh(self.clam["attend"](h)) * torch.sigmoid(self.clam["gate"](h))
        return h, F.softmax(self.clam["score"](gated).T, dim=1)

    def output(self, h, a):
        pooled = a @ h
        if self.branches == 1:
            logits = self.clam["classify"](pooled)
            return logits, a[0]
        weight, bias = self.clam["classify"].weight, self.clam["classify"].bias
        logits = torch.stack([weight[c] @ pooled[c] + bias[c] for c in range(CLASSES)])[None]
        return logits, a[logits.argmax()]

    def forward(self, x):
        return self.output(*self.attended(x))

    def loss(self, x, label):
        h, a = self.attended(x)
        k = min(8, len(x))
        total = 0.0
        for c in range(CLASSES):
            branch = a[0] if self.branches == 1 else a[c]
            scores = self.clam["examples"](h)[:, 2 * c : 2 * c + 2]
            top, bottom = torch.topk(branch, k)[1], torch.topk(-branch, k)[1]
            if c == label:
                chosen, targets = torch.cat([scores[top], scores[bottom]]), [1] * k + [0] * k
            else:
                chosen, targets = scores[top], [0] * k
            total = total + smooth_top1_svm(chosen, torch.tensor(targets))
        return 0.7 * ce(self.output(h, a)[0], label) + 0.3 * total / CLASSES


def smooth_top1_svm(scores, targets):
    """tau log sum_j exp((alpha [j != y] + s_j - s_y) / tau) with tau = alpha = 1."""
    margin = 1.0 - F.one_hot(targets, 2)
    return torch.logsumexp(scores + margin - scores.gather(1, targets[:, None]), dim=1).mean()


class Dsmil(nn.Module):
    def __init__(self):
        super().__init__()
        self.instance = nn.Linear(DIM, CLASSES)
        self.query = nn.Linear(DIM, 128)
        self.value = nn.Linear(DIM, DIM)
        self.classify = nn.Linear(CLASSES * DIM, CLASSES)  # Conv1d(C, C, kernel D) over [1, C, D]

    def streams(self, x):
        c = self.instance(x)
        q, v = self.query(x), self.value(x)
        a, pooled = [], []
        for k in range(CLASSES):
            attention = F.softmax(q @ q[c[:, k].argmax()] / math.sqrt(128), dim=0)
            a.append(attention)
            pooled.append(attention @ v)
        kernel = self.classify.weight.view(CLASSES, CLASSES, DIM)
        logits = F.conv1d(torch.stack(pooled)[None], kernel, self.classify.bias).view(1, CLASSES)
        return c.max(0, keepdim=True)[0], logits, a[logits.argmax()]

    def forward(self, x):
        _, logits, attention = self.streams(x)
        return logits, attention

    def loss(self, x, label):
        critical, logits, _ = self.streams(x)
        return ce(critical, label) / 2 + ce(logits, label) / 2


HEADS, WIDTH = 8, 16


class Nystrom(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.residual = nn.Parameter(torch.randn(HEADS, 1, 33, 1) / 33)

    def forward(self, x):
        n, m, d = len(x), WIDTH // 2, WIDTH // HEADS
        padding = (m - n % m) % m
        x = torch.cat([torch.zeros(padding, WIDTH), x])
        # [heads, n, d]
        q, k, v = (part.reshape(len(x), HEADS, d).transpose(0, 1) for part in self.qkv(x).chunk(3, dim=-1))
        q = q * d**-0.5
        landmarks = lambda t: torch.stack([piece.mean(1) for piece in t.chunk(m, dim=1)], dim=1)
        ql, kl = landmarks(q), landmarks(k)
        first = torch.softmax(q @ kl.mT, dim=-1)
        second = torch.softmax(ql @ kl.mT, dim=-1)
        third = torch.softmax(ql @ k.mT, dim=-1)
        z = second.mT / (second.abs().sum(-1).max() * second.abs().sum(-2).max())
        one = torch.eye(m)
        for _ in range(6):
            xz = second @ z
            z = 0.25 * z @ (13 * one - xz @ (15 * one - xz @ (7 * one - xz)))
        mixed = first @ z @ third @ v + F.conv2d(v[None], self.residual, padding=(16, 0), groups=HEADS)[0]
        out = self.out(mixed.transpose(0, 1).reshape(len(x), WIDTH))
        return out[-n:], (first @ z @ third).mean(0)[padding, padding:]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = Nystrom()

    def forward(self, x):
        y, row = self.attention(self.norm(x))
        return x + y, row


class Ppeg(nn.Module):
    def __init__(self):
        super().__init__()
        for name, size in ("seven", 7), ("five", 5), ("three", 3):
            setattr(self, name, nn.Parameter(torch.randn(WIDTH, 1, size, size) / size))
        self.biases = nn.Parameter(torch.randn(3, WIDTH) / 5)

    def forward(self, x, side):
        grid = x[1:].T.reshape(1, WIDTH, side, side)
        y = grid
        for kernel, bias, padding in zip((self.seven, self.five, self.three), self.biases, (3, 2, 1)):
            y = y + F.conv2d(grid, kernel, bias, padding=padding, groups=WIDTH)
        return torch.cat([x[:1], y[0].flatten(1).T])


class TransMil(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(DIM, WIDTH)
        self.class_token = nn.Parameter(torch.randn(1, WIDTH))
        self.first = Layer()
        self.position = Ppeg()
        self.second = Layer()
        self.norm = nn.LayerNorm(WIDTH)
        self.classify = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        n = len(x)
        h = F.relu(self.embed(x))
        side = math.ceil(math.sqrt(n))
        h = torch.cat([self.class_token, h, h[: side * side - n]])
        h, _ = self.first(h)
        h = self.position(h, side)
        h, row = self.second(h)
        row = row.clamp(min=0)
        own = row[1 : n + 1].clone()
        own[: side * side - n] += row[n + 1 :]
        return self.classify(self.norm(h[:1])), own / own.sum()

    def loss(self, x, label):
        return ce(self(x)[0], label)


def arrays(prefix, named):
    rename = lambda name: name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")
    return {f"{prefix}.{rename(name)}": value.detach().numpy().astype(np.float32) for name, value in named}


def write(name, model):
    torch.manual_seed(len(name))
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the default, so that attention is far from uniform (but where it already is, and would saturate).
            size = 0.7 if name == "dsmil" else 1.5
            parameter.copy_((parameter * size + 0.02 * torch.randn(parameter.shape)).float().double())
    out = arrays("before", model.named_parameters())
    out |= {"lr": np.float32([LR]), "weight_decay": np.float32([WEIGHT_DECAY])}
    optimiser = torch.optim.Adam(model.parameters(), lr=LR, betas=(0.5, 0.9), weight_decay=WEIGHT_DECAY)
    for index, (n, label) in enumerate(BAGS):
        x = torch.randn(n, DIM).float().double()
        logits, attention = model(x)
        loss = model.loss(x, label)
        (loss / len(BAGS)).backward()
        named = {"features": x, "label": torch.tensor([label]), "logits": logits, "attention": attention, "loss": loss.view(1)}
        out |= arrays(f"bag{index}", named.items())
    out |= arrays("gradient", ((key, parameter.grad) for key, parameter in model.named_parameters()))
    optimiser.step()
    out |= arrays("after", model.named_parameters())
    path = pathlib.Path(__file__).with_name(f"{name}.safetensors")
    save_file({key: np.ascontiguousarray(value) for key, value in out.items()}, path)
    print(f"{name}: {path.stat().st_size} bytes, attention up to {attention.max():.2f} of {n}")


torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
torch.manual_seed(0)
heads = {"mean": Mean(), "max": Max(), "clam_sb": Clam(1), "clam_mb": Clam(CLASSES), "dsmil": Dsmil(), "transmil": TransMil()}
for name, model in heads.items():
    write(name, model)
print(f"torch {torch.__version__}")
