"""Reference numbers for evaluation/src/paired.rs.

    python3 tests/golden/evaluation/paired.py       # writes paired.json beside this file

DeLong's test by its definition (DeLong, DeLong and Clarke-Pearson 1988): the kernel over all pairs of a positive and a negative,
with no ranks. With several items a group, Obuchowski's covariances (Biometrics 1997, section 3) of the two areas, term by term. The
paired permutation test by scipy, over every exchange. Scores are float32 so that both sides tie alike.
"""

import json
import math
import pathlib

import numpy as np
import scipy
from scipy import stats
from sklearn import metrics


def delong(positive, a, b, groups):
    if min(len(set(groups[positive])), len(set(groups[~positive]))) < 2:
        return None
    components = []
    for scores in (a, b):
        x, y = scores[positive][:, None], scores[~positive][None, :]
        psi = np.where(x > y, 1.0, np.where(x == y, 0.5, 0.0))
        components.append((psi.mean(), psi.mean(1), psi.mean(0)))
    (auc_a, v10_a, v01_a), (auc_b, v10_b, v01_b) = components
    assert abs(auc_a - metrics.roc_auc_score(positive, a)) < 1e-12
    clusters = np.unique(groups)
    if len(clusters) == len(groups):
        s10, s01 = np.cov([v10_a, v10_b]), np.cov([v01_a, v01_b])
        s = s10 / positive.sum() + s01 / (~positive).sum()
    else:
        s = obuchowski(positive, components, groups, clusters)
    contrast = np.array([1.0, -1.0])
    variance = float(contrast @ s @ contrast)
    z = (auc_a - auc_b) / math.sqrt(variance) if variance > 1e-18 else None
    p = 2 * stats.norm.sf(abs(z)) if z is not None else 1.0 if auc_a == auc_b else None
    return {"auc": [auc_a, auc_b], "variance": max(variance, 0.0) if z else 0.0, "z": z, "p": p}


def obuchowski(positive, components, groups, clusters):
    """Covariance matrix of the areas: S10 / M + S01 / N + (S11 + S11 transposed) / (M N)."""
    m, n, i = positive.sum(), (~positive).sum(), len(clusters)
    i10 = sum((groups[positive] == c).any() for c in clusters)
    i01 = sum((groups[~positive] == c).any() for c in clusters)
    s10, s01, s11 = (np.zeros((2, 2)) for _ in range(3))
    for c in clusters:
        x, y = groups[positive] == c, groups[~positive] == c
        ten = np.array([v10[x].sum() - x.sum() * auc for auc, v10, _ in components])
        one = np.array([v01[y].sum() - y.sum() * auc for auc, _, v01 in components])
        s10 += np.outer(ten, ten) * i10 / ((i10 - 1) * m)
        s01 += np.outer(one, one) * i01 / ((i01 - 1) * n)
        s11 += np.outer(ten, one) * i / (i - 1)
    return s10 / m + s01 / n + (s11 + s11.T) / (m * n)


METRICS = {
    "accuracy": lambda truth, scores: (scores.argmax(1) == truth).mean(),
    "macro_auc": lambda truth, scores: np.mean([
        metrics.roc_auc_score(truth == c, scores[:, c]) for c in range(scores.shape[1])
    ]),
}


def exact(truth, a, b):
    """scipy exchanges whole items: an item is its number in the two arrays, and its row is looked up by that."""
    rows = np.concatenate([a, b])
    n = len(truth)
    results = []
    for name, metric in METRICS.items():
        statistic = lambda x, y: metric(truth, rows[x.astype(int)]) - metric(truth, rows[y.astype(int)])
        test = stats.permutation_test(
            (np.arange(n), np.arange(n, 2 * n)), statistic, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        # scipy's two-sided p doubles the smaller tail; ours counts differences as large either way.
        p = (np.abs(test.null_distribution) >= abs(test.statistic) - 1e-12).mean()
        results.append([name, float(test.statistic), float(p)])
    return results


def case(name, classes, n, seed, *, signal=(1.0, 0.5), levels=0, missing=(), enumerate_=False, group=1):
    rng = np.random.default_rng(seed)
    present = [c for c in range(classes) if c not in missing]
    truth = np.array(present)[np.arange(n) % len(present)]
    shared = rng.normal(size=(n, classes))
    sets = []
    for strength in signal:
        logits = shared + rng.normal(size=(n, classes))
        logits[np.arange(n), truth] += strength
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        sets.append((np.round(scores * levels) / levels if levels else scores).astype(np.float32))
    a, b = sets
    # Groups of 1, 2, ... `group` items, and again; with three classes a group has items of several.
    sizes = np.resize(np.arange(1, group + 1), n)
    groups = np.repeat(np.arange(n), sizes)[:n]
    plain = lambda scores: [float(np.format_float_positional(s)) for s in scores.ravel()]
    return {
        "name": name,
        "classes": classes,
        "truth": truth.tolist(),
        **({"groups": [str(g) for g in groups]} if group > 1 else {}),
        "a": plain(a),
        "b": plain(b),
        "delong": [delong(truth == c, a[:, c], b[:, c], groups) for c in range(classes)],
        "exact": exact(truth, a, b) if enumerate_ else [],
    }


cases = [
    case("binary", 2, 80, 0),
    case("no difference", 2, 60, 1, signal=(0.7, 0.7)),
    case("three classes", 3, 90, 2),
    case("ties", 3, 75, 3, levels=5),
    case("a class without items", 4, 60, 4, missing=(2,)),
    case("one item of each class", 3, 3, 5),
    case("up to three slides a patient", 3, 90, 8, group=3),
    case("up to four slides a patient, ties", 2, 60, 9, levels=5, group=4),
    case("few items, binary", 2, 12, 6, signal=(2.5, 0.0), enumerate_=True),
    case("few items, three classes", 3, 11, 7, signal=(1.5, 0.5), levels=6, enumerate_=True),
]
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
print(f"scipy {scipy.__version__}: {len(cases)} cases, {path.stat().st_size} bytes")
for c in cases:
    print(c["name"], [d and round(d["p"], 4) for d in c["delong"]], c["exact"])
