"""Reference numbers for evaluation/src/metric, from scikit-learn; the calibration error beside torchmetrics' too.

    python3 tests/golden/evaluation/metrics.py        # writes metrics.json beside this file

Scores are float32 so that both sides rank the same numbers.
"""

import json
import math
import pathlib
import warnings

import numpy as np
import sklearn
import torch
import torchmetrics
from sklearn import metrics

warnings.filterwarnings("ignore")


def calibration_error(truth, predicted, probabilities):
    """Guo et al. (2017), equation 3, with 15 bins; scikit-learn has none."""
    confidence = probabilities.max(1)
    edges = np.arange(16) / 15
    error = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        bin_ = (confidence > low) & (confidence <= high)
        if bin_.any():
            error += bin_.mean() * abs((predicted[bin_] == truth[bin_]).mean() - confidence[bin_].mean())
    theirs = calibration_error_of_torchmetrics(probabilities, truth)
    assert abs(error - theirs) < 1e-6, (error, theirs)
    return error


def calibration_error_of_torchmetrics(probabilities, truth):
    """In single precision, and with bins that hold their lower edge instead of the upper one."""
    classes = probabilities.shape[1]
    ece = torchmetrics.functional.classification.multiclass_calibration_error
    return float(ece(torch.from_numpy(probabilities), torch.from_numpy(truth).long(), classes, n_bins=15, norm="l1"))


def brier(truth, probabilities):
    """By the formula, and by scikit-learn where it takes the rows (it wants them to sum to 1 more exactly)."""
    value = ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(1).mean()
    exact = probabilities / probabilities.sum(1, keepdims=True)
    labels = list(range(probabilities.shape[1]))
    theirs = metrics.brier_score_loss(truth, exact, labels=labels, scale_by_half=False)
    assert abs(value - theirs) < 1e-6, (value, theirs)
    return value


def reference(truth, scores, classes):
    predicted = scores.argmax(1)
    labels = list(range(classes))

    def auc(c):
        positive = truth == c
        return metrics.roc_auc_score(positive, scores[:, c]) if 0 < positive.sum() < len(truth) else math.nan

    def average_precision(c):
        positive = truth == c
        return metrics.average_precision_score(positive, scores[:, c]) if 0 < positive.sum() < len(truth) else math.nan

    probabilities = scores.astype(np.float64)
    calibrated = np.abs(probabilities.sum(1) - 1).max() <= 1e-3
    kappa = metrics.cohen_kappa_score(truth, predicted, labels=labels, weights="quadratic")
    values = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "macro_f1": metrics.f1_score(truth, predicted, average="macro", zero_division=0),
        "weighted_f1": metrics.f1_score(truth, predicted, average="weighted", zero_division=0),
        "macro_auc": np.nanmean([auc(c) for c in labels]),
        "macro_auprc": np.nanmean([average_precision(c) for c in labels]),
        "quadratic_kappa": kappa,
        "ece": calibration_error(truth, predicted, probabilities) if calibrated else math.nan,
        "brier": brier(truth, probabilities) if calibrated else math.nan,
    }
    if classes > 5:
        values["top5_accuracy"] = metrics.top_k_accuracy_score(truth, scores, k=5, labels=labels)
    return {
        "confusion": metrics.confusion_matrix(truth, predicted, labels=labels).ravel().tolist(),
        "values": {name: None if math.isnan(value) else float(value) for name, value in values.items()},
    }


def case(name, classes, n, seed, *, signal=1.0, missing=(), never_predicted=(), levels=0, sharpness=1.0):
    """Softmax scores with `signal` towards the truth; `levels` > 0 rounds them so that they tie and sum to about 1."""
    rng = np.random.default_rng(seed)
    present = [c for c in range(classes) if c not in missing]
    truth = rng.choice(present, n, p=rng.dirichlet(np.full(len(present), 3.0)))
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), truth] += signal
    logits[:, list(never_predicted)] -= 20
    logits *= sharpness
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if levels:
        scores = np.round(scores * levels) / levels
    scores = scores.astype(np.float32)
    numbers = {"truth": truth.tolist(), "scores": [float(np.format_float_positional(s)) for s in scores.ravel()]}
    return {"name": name, "classes": classes} | numbers | reference(truth, scores, classes)


cases = [
    case("binary", 2, 60, 0),
    case("three classes", 3, 80, 1),
    case("six grades", 6, 120, 2),
    case("no signal", 4, 90, 3, signal=0.0),
    case("perfect", 3, 30, 4, signal=50.0),
    case("ties", 3, 80, 5, levels=4),
    case("a class without items", 4, 70, 6, missing=(1,)),
    case("a class never predicted", 3, 70, 7, never_predicted=(2,)),
    case("a class neither true nor predicted", 5, 70, 8, missing=(3,), never_predicted=(3,)),
    case("one class only", 3, 10, 9, missing=(0, 2)),
    case("two items", 2, 2, 11),
    case("too sure", 4, 150, 12, signal=0.5, sharpness=4.0),
    case("twelve classes", 12, 200, 13),
]
# The worked numbers of the specification, as a check of this script itself.
assert abs(reference(np.array([0, 0, 1, 1, 2, 2]), np.eye(3)[[0, 1, 1, 1, 2, 0]], 3)["values"]["macro_f1"] - 0.6555556) < 1e-6

path = pathlib.Path(__file__).with_suffix(".json")
path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
print(f"scikit-learn {sklearn.__version__}: {len(cases)} cases, {path.stat().st_size} bytes")
