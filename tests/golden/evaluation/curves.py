"""Reference ROC and precision-recall curves for evaluation/src/metric/ranking.rs, from scikit-learn.

    python3 tests/golden/evaluation/curves.py        # writes curves.json beside this file

Scores are coarse float32, so that several items share a threshold.
"""

import json
import pathlib

import numpy as np
from sklearn import metrics

random = np.random.default_rng(5)
cases = []
for items, classes, steps in [(4, 2, 3), (30, 3, 6), (25, 3, 1000), (12, 4, 4)]:
    truth = random.integers(0, classes, items)
    scores = (random.integers(0, steps + 1, (items, classes)) / steps).astype(np.float32)
    curves = []
    for c in range(classes):
        positive = truth == c
        if not 0 < positive.sum() < items:
            curves.append(None)
            continue
        fpr, tpr, _ = metrics.roc_curve(positive, scores[:, c], drop_intermediate=False)
        precision, recall, _ = metrics.precision_recall_curve(positive, scores[:, c])
        curves.append({"roc": np.stack([fpr, tpr], 1).tolist(), "pr": np.stack([recall, precision], 1)[::-1].tolist()})
    cases.append({"classes": classes, "truth": truth.tolist(), "scores": scores.ravel().tolist(), "curves": curves})
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(cases))
