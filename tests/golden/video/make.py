"""Golden numbers of video object segmentation.

    python tests/golden/video/make.py

writes, beside this file,
    measures.json           J and F of drawn masks, with OpenCV's dilation by scikit-image's disk
    frame.png resized.png   a frame, and what OpenCV makes of it
    propagation.safetensors frames, tokens of a tiny random ViT (timm), the first mask, and the soft and hard masks of the
                            following frames
and, where ../shared/data holds the samples, prints J and F of OSVOS's masks of bmx-trees against the annotation.

The measures are written from Perazzi et al. 2016 and checked against DAVIS's own evaluation; the propagation is the protocol
of DINO's video segmentation in PyTorch, over the whole affinity matrix. Needs torch, timm, safetensors, pillow, opencv-python
and scikit-image.
"""

import json
import math
from collections import deque
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from skimage.morphology import disk
from timm.models.vision_transformer import VisionTransformer
from torch import nn

HERE = Path(__file__).parent
SHARED = HERE.parents[3] / "shared" / "data"
PATCH, DIM = 4, 16
QUEUE, WINDOW, TOP_K, TEMPERATURE = 2, 2, 5, 0.1


def jaccard(predicted, truth):
    union = np.logical_or(predicted, truth).sum()
    return 1.0 if union == 0 else float(np.logical_and(predicted, truth).sum() / union)


def contour(mask):
    padded = np.pad(mask, ((0, 1), (0, 1)))
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    edge[-1, :-1] = (mask ^ right)[-1, :-1]
    edge[:-1, -1] = (mask ^ below)[:-1, -1]
    edge[-1, -1] = False
    return edge


def contour_accuracy(predicted, truth):
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    ours, theirs = contour(predicted), contour(truth)
    near = [cv2.dilate(edge.astype(np.uint8), disk(radius).astype(np.uint8)) > 0 for edge in (theirs, ours)]
    n_ours, n_theirs = ours.sum(), theirs.sum()
    if n_ours == 0 or n_theirs == 0:
        return 1.0 if n_ours == n_theirs else 0.0
    precision, recall = (ours & near[0]).sum() / n_ours, (theirs & near[1]).sum() / n_theirs
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def drawn_masks(rng):
    """Pairs of masks as smooth random fields above a threshold, and degenerate ones."""
    cases = []
    for height, width, sigma, threshold in [(60, 90, 6, 0.0), (48, 37, 3, 0.3), (33, 120, 8, -0.3), (200, 150, 15, 0.2)]:
        fields = [cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), sigma) for _ in range(2)]
        truth = fields[0] / fields[0].std() > threshold
        predicted = (0.8 * fields[0] / fields[0].std() + 0.4 * fields[1] / fields[1].std()) > threshold
        cases.append((predicted, truth))
    empty, full = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    return cases + [(empty, empty), (full, empty), (empty, full), (full, full)]


def measures(rng):
    cases = []
    for predicted, truth in drawn_masks(rng):
        text = ["".join("01"[int(v)] for v in mask.ravel()) for mask in (predicted, truth)]
        cases.append({
            "width": truth.shape[1], "predicted": text[0], "truth": text[1],
            "j": jaccard(predicted, truth), "f": contour_accuracy(predicted, truth),
        })
    values = rng.random(28)
    borders = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    quarters = [values[borders[i]:borders[i + 1] + 1] for i in range(4)]
    statistics = {
        "values": values.tolist(), "mean": values.mean(), "recall": (values > 0.5).mean(),
        "decay": quarters[0].mean() - quarters[3].mean(),
    }
    (HERE / "measures.json").write_text(json.dumps({"cases": cases, "statistics": statistics}))


def frame(rng):
    field = cv2.GaussianBlur(rng.standard_normal((61, 107, 3)), (0, 0), 1.5)
    image = np.clip(128 + 60 * field / field.std(), 0, 255).astype(np.uint8)
    Image.fromarray(image).save(HERE / "frame.png")
    Image.fromarray(cv2.resize(image, (64, 48))).save(HERE / "resized.png")


def one_hot(labels):
    return F.one_hot(labels.long(), int(labels.max()) + 1).permute(2, 0, 1).float()


def window(rows, columns):
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return ((y[:, None] - y[None]).abs() <= WINDOW) & ((x[:, None] - x[None]).abs() <= WINDOW)


def carried(sources, masks, target, allowed):
    """Labels of `target` [n, d] from sources [n, d] and their masks [c, n]."""
    affinity = torch.cat([torch.exp(source @ target.T / TEMPERATURE) * allowed for source in sources])
    kept = torch.topk(affinity, TOP_K, dim=0).values.min(dim=0).values
    affinity[affinity < kept] = 0
    affinity = affinity / affinity.sum(dim=0, keepdim=True)
    return torch.cat(masks, dim=1) @ affinity


def labels(mask, rows, columns, size):
    grown = F.interpolate(mask.reshape(1, -1, rows, columns), scale_factor=PATCH, mode="bilinear", align_corners=False,
                          recompute_scale_factor=False)[0]
    for channel in grown:
        if channel.max() > 0:
            channel -= channel.min()
            if channel.max() > 0:
                channel /= channel.max()
    winner = grown.max(dim=0).indices.numpy().astype(np.uint8)
    return np.array(Image.fromarray(winner).resize(size, Image.NEAREST))


def propagation(rng):
    torch.manual_seed(3)
    vit = VisionTransformer(
        img_size=(32, 40), patch_size=PATCH, embed_dim=DIM, depth=2, num_heads=2, num_classes=0, class_token=True,
        qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    rows, columns, size = 8, 10, (43, 35)
    background = cv2.GaussianBlur(rng.standard_normal((32, 80, 3)), (0, 0), 1.5)
    frames, tokens = [], []
    for step in range(6):
        image = background[:, 2 * step:2 * step + 40].copy()
        image[8:20, 4 + 3 * step:14 + 3 * step] += 0.8
        image[18:28, 26 - 2 * step:36 - 2 * step, 0] -= 1.0
        frames.append(torch.tensor(image, dtype=torch.float32).permute(2, 0, 1))
    with torch.no_grad():
        for image in frames:
            tokens.append(vit.forward_features(image[None])[0, 1:])
    first = np.zeros((35, 43), np.uint8)
    first[9:22, 4:15] = 1
    first[20:31, 28:39] = 2
    small = torch.tensor(np.array(Image.fromarray(first).resize((columns, rows), Image.NEAREST)))
    start = (F.normalize(tokens[0], dim=1), one_hot(small).reshape(-1, rows * columns))
    queue, soft, hard = deque(maxlen=QUEUE), [], []
    for token in tokens[1:]:
        token = F.normalize(token, dim=1)
        sources = [start, *queue]
        mask = carried([s for s, _ in sources], [m for _, m in sources], token, window(rows, columns))
        queue.append((token, mask))
        soft.append(mask)
        hard.append(torch.tensor(labels(mask.clone(), rows, columns, size)))
    save_file(
        {
            "tokens": torch.stack(tokens).contiguous(), "first": torch.tensor(first),
            "soft": torch.stack(soft).contiguous(), "hard": torch.stack(hard).contiguous(),
        },
        HERE / "propagation.safetensors",
    )


def samples():
    """OSVOS's two objects of bmx-trees, taken together, against the annotation of one object."""
    predictions, truths = SHARED / "davis17_palette_pred/bmx-trees", SHARED / "davis/Annotations/480p/bmx-trees"
    if not predictions.is_dir() or not truths.is_dir():
        print(f"skipped: samples: {predictions} or {truths} is absent")
        return
    names = sorted(path.name for path in truths.glob("*.png"))[1:-1]
    masks = [[np.array(Image.open(folder / name)) > 0 for folder in (predictions, truths)] for name in names]
    j, f = ([measure(*pair) for pair in masks] for measure in (jaccard, contour_accuracy))
    print(f"bmx-trees, {len(names)} frames: J {np.mean(j):.12f} F {np.mean(f):.12f}")


if __name__ == "__main__":
    rng = np.random.default_rng(5)
    measures(rng)
    frame(rng)
    propagation(rng)
    samples()
