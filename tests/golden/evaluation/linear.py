"""Reference numbers for evaluation/src/linear, from scikit-learn and PyTorch.

    python3 tests/golden/evaluation/linear.py        # writes linear.json beside this file
"""

import json
import pathlib
import warnings

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

CLASSES, DIM, TRAIN, TEST = 4, 6, 90, 25


def numbers(array):
    """The shortest decimals that give the same 32-bit numbers."""
    return [float(np.format_float_positional(v)) for v in np.asarray(array, np.float32).ravel()]


rng = np.random.default_rng(0)
centres = rng.normal(size=(CLASSES, DIM))
# Unbalanced, with features of very different scales and a large common part, as those of a briefly trained encoder.
labels = rng.choice(CLASSES, TRAIN + TEST, p=[0.4, 0.3, 0.2, 0.1])
scale, shift = 10.0 ** rng.uniform(-2, 1, DIM), rng.normal(size=DIM)
features = ((centres[labels] + rng.normal(size=(TRAIN + TEST, DIM))) * scale + shift).astype(np.float32)
x, y, test_x = features[:TRAIN], labels[:TRAIN], features[TRAIN:]
assert set(y) == set(range(CLASSES))


def regression(rows, l2):
    # Newton's method: 64 bits, to the optimum.
    model = LogisticRegression(C=1 / (l2 * len(rows)), solver="newton-cg", tol=1e-12, max_iter=10_000)
    return model.fit(rows.astype(np.float64), y)


def logistic(l2):
    plain = regression(x, l2)
    scaler = StandardScaler().fit(x.astype(np.float64))
    standardised = regression(scaler.transform(x.astype(np.float64)), l2)
    # The weights of the same map of the features as they are.
    weight = standardised.coef_ / scaler.scale_
    scaled_test = scaler.transform(test_x.astype(np.float64))

    def fit(weight, probabilities):
        return {"weight": weight.ravel().tolist(), "probabilities": probabilities.ravel().tolist()}

    return {
        "l2": l2,
        "plain": fit(plain.coef_, plain.predict_proba(test_x.astype(np.float64))),
        "standardised": fit(weight, standardised.predict_proba(scaled_test)),
    }


def sgd():
    """Some steps of DINO's optimiser: SGD with momentum 0.9 and no weight decay, batches of unequal size."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(DIM, CLASSES)
    layer.weight.data.normal_(mean=0.0, std=0.01)
    layer.bias.data.zero_()
    start = numbers(layer.weight.detach().numpy())
    optimiser = torch.optim.SGD(layer.parameters(), 0.05, momentum=0.9, weight_decay=0)
    steps = []
    for step in range(7):
        lr = 0.05 * (1 - step / 10)
        optimiser.param_groups[0]["lr"] = lr
        rows = rng.choice(TRAIN, 16 if step < 6 else 5, replace=False)
        loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps.append({"rows": rows.tolist(), "lr": lr, "loss": loss.item()})
    end = {"weight": numbers(layer.weight.detach().numpy()), "bias": numbers(layer.bias.detach().numpy())}
    return {"momentum": 0.9, "start": start, "steps": steps, **end}


def schedule():
    """DINO's learning rates: lr · batch / 256, annealed once an epoch."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.001 * 128 / 256)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7, eta_min=0)
    rates = []
    for _ in range(7):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return {"lr": 0.001, "batch": 128, "rates": rates}


warnings.filterwarnings("ignore")
golden = {
    "classes": CLASSES,
    "dim": DIM,
    "x": numbers(x),
    "y": y.tolist(),
    "test_x": numbers(test_x),
    "scale": x.astype(np.float64).std(0).tolist(),
    "logistic": [logistic(l2) for l2 in (1.0, 0.1, 0.01, 0.001)],
    "sgd": sgd(),
    "schedule": schedule(),
}
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(golden) + "\n")
print(f"scikit-learn {sklearn.__version__}, PyTorch {torch.__version__}: {path.stat().st_size} bytes")
