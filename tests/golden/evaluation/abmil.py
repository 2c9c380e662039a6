"""Reference numbers for the gated ABMIL head of evaluation/src/mil, from PyTorch.

    python3 tests/golden/evaluation/abmil.py          # writes abmil.json beside this file

Forward (logits, attention, loss) of three bags, then three Adam steps on their mean loss.
"""

import json
import pathlib

import numpy as np
import torch
from torch import nn

DIM, HIDDEN, ATTENTION, CLASSES = 12, 10, 6, 3
LR, WEIGHT_DECAY = 2e-4, 1e-2


class GatedAbmil(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(DIM, HIDDEN)
        self.attend = nn.Linear(HIDDEN, ATTENTION)
        self.gate = nn.Linear(HIDDEN, ATTENTION)
        self.score = nn.Linear(ATTENTION, 1)
        self.classify = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        h = torch.relu(self.embed(x))
        a = self.score(torch.tanh(self.attend(h)) * torch.sigmoid(self.gate(h)))
        a = torch.softmax(a.T, dim=1)
        return self.classify(a @ h), a[0]


def plain(tensor):
    array = tensor.detach().numpy()
    exact = lambda x: float(np.format_float_positional(x))
    return [[exact(x) for x in row] for row in array] if array.ndim == 2 else [exact(x) for x in array]


def weights(model):
    return {
        name: {"weight": plain(layer.weight), "bias": plain(layer.bias)} for name, layer in model.named_children()
    }


torch.manual_seed(0)
torch.set_num_threads(1)
model = GatedAbmil()
# Larger than the default, so that attention is far from uniform.
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(2)
bags = [(torch.randn(n, DIM), label) for n, label in [(7, 0), (4, 2), (9, 1)]]
golden = {"lr": LR, "weight_decay": WEIGHT_DECAY, "before": weights(model), "bags": [], "steps": []}
for x, label in bags:
    logits, attention = model(x)
    loss = nn.functional.cross_entropy(logits, torch.tensor([label]))
    golden["bags"].append(
        {
            "features": plain(x),
            "label": label,
            "logits": plain(logits[0]),
            "attention": plain(attention),
            "loss": loss.item(),
        }
    )
optimiser = torch.optim.Adam(model.parameters(), lr=LR, betas=(0.5, 0.9), weight_decay=WEIGHT_DECAY)
for _ in range(3):
    optimiser.zero_grad()
    for x, label in bags:
        (nn.functional.cross_entropy(model(x)[0], torch.tensor([label])) / len(bags)).backward()
    smallest = min(p.grad.abs().min().item() for p in model.parameters())
    optimiser.step()
    golden["steps"].append(weights(model))
    print(f"smallest gradient {smallest:.1e}")

path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(golden) + "\n")
print(f"torch {torch.__version__}: {path.stat().st_size} bytes")
