"""Golden numbers of two Gen-DINO steps, by PyTorch and timm.

    python tests/golden/model/gen_dino.py

starts from the student and the teacher of `weights.safetensors` (see `make.py`, whose networks it takes) and writes, beside
this file,
    gen_dino.safetensors   crops, views, weights of the first images; both parts of the loss, centre and every parameter
                           after two steps with the four-target form of the disentanglement loss, and both parts of the
                           first step's loss with the single-target form

The disentanglement loss is transcribed from the pseudo-code on Gen-SIS's project page: raw teacher logits mixed, centred
once, sharpened; the gradient goes through the student's view of the interpolated image only.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from make import BATCH, CLIP, HERE, LOCAL, OUT, SIZE, STEPS, Dino, groups, loss_of

WEIGHT = 0.5


def disentanglement(student, pairs, alpha, center, temp):
    losses = []
    for first, second in pairs:
        mixed = alpha * first + (1 - alpha) * second
        target = F.softmax((mixed - center) / temp, dim=-1).detach()
        losses.append(torch.sum(-target * F.log_softmax(student / 0.1, dim=-1), dim=-1).mean())
    return torch.stack(losses).mean()


def parts_of(student, teacher, batch, center, temp, targets):
    """Both parts of the loss, and the teacher's logits of the global crops."""
    with torch.no_grad():
        seen = teacher(batch["global"])
        secondary = [teacher(views) for views in batch["secondary"].chunk(2)[:targets]]
    crops = loss_of(student(batch["global"], batch["local"]), seen, center, temp, 4)
    pairs = list(zip(seen.chunk(2), secondary))
    return crops, disentanglement(student(batch["mixed"]), pairs, batch["alpha"], center, temp), seen


def main():
    torch.manual_seed(1)
    torch.set_num_threads(1)
    student, teacher = Dino(), Dino()
    weights = load_file(HERE / "weights.safetensors")
    for part, model in (("student", student), ("teacher", teacher)):
        model.load_state_dict({k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(part)})

    batch = {
        "global": torch.randn(2 * BATCH, 3, SIZE, SIZE),
        "local": torch.randn(2 * BATCH, 3, LOCAL, LOCAL),
        "mixed": torch.randn(BATCH, 3, SIZE, SIZE),
        "secondary": torch.randn(2 * BATCH, 3, SIZE, SIZE),
        "alpha": torch.tensor([[0.3], [0.8]]),
    }
    out = {f"batch.{k}": v for k, v in batch.items()}
    center = torch.zeros(1, OUT)
    single = parts_of(student, teacher, batch, center, STEPS[0][3], 1)
    out["parts.single"] = torch.stack(single[:2]).detach()
    optimizer = torch.optim.AdamW(groups(student))
    losses = []
    for lr, decay, momentum, temp, train_last in STEPS:
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = lr
            if i == 0:
                group["weight_decay"] = decay
        crops, mixed, seen = parts_of(student, teacher, batch, center, temp, 2)
        center = center * 0.9 + seen.mean(0, keepdim=True) * 0.1
        losses.append([crops.item(), mixed.item()])
        optimizer.zero_grad()
        (crops + WEIGHT * mixed).backward()
        for param in student.parameters():
            if param.grad is not None:
                coefficient = CLIP / (param.grad.norm(2) + 1e-6)
                if coefficient < 1:
                    param.grad.mul_(coefficient)
        if not train_last:
            for name, param in student.named_parameters():
                if "last_layer" in name:
                    param.grad = None
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(student.parameters(), teacher.parameters()):
                theirs.mul_(momentum).add_((1 - momentum) * ours)
    out["parts"] = torch.tensor(losses)
    out["center"] = center.reshape(-1)
    for part, model in (("student", student), ("teacher", teacher)):
        out.update({f"{part}.{k}": v for k, v in model.state_dict().items()})
    save_file({k: v.clone().contiguous() for k, v in out.items()}, HERE / "gen_dino.safetensors")
    print(f"torch {torch.__version__}: single {out['parts.single'].tolist()}, four {losses}")


if __name__ == "__main__":
    main()
