"""Golden numbers of the U-Net, of one training step and of the samplers, by diffusers.

    python tests/golden/diffusion/make.py

writes, beside this file,
    unet.safetensors    predictions for one and for two context tokens, and where the context also enters with the time; the loss,
                        and every parameter after one AdamW step
    samples.json        trajectories of DDIM, DPM-Solver++(2M) and DDPM under a network that is a formula

Weights are not stored: both sides make them by `wave`. The network is diffusers' UNet2DConditionModel, with a linear layer
before it that makes the context of an embedding.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
CHANNELS, MULT, CONTEXT, EMBEDDING, GROUPS, HEADS = 4, (1, 2), 6, 5, 2, 2
TIMES = [3, 700]


def wave(index, shape, scale, shift=0.0):
    """shift + scale * sin(1.7 i + index) for element i, in f64, then f32."""
    count = int(np.prod(shape))
    values = shift + scale * np.sin(1.7 * np.arange(count) + index)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def our_name(name):
    return name.replace(".to_out.0.", ".to_out.").replace(".ff.net.0.proj.", ".ff.proj.").replace(".ff.net.2.", ".ff.out.")


class Network(nn.Module):
    def __init__(self, **more):
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, cross_attention_dim=CONTEXT,
            block_out_channels=tuple(CHANNELS * m for m in MULT), norm_num_groups=GROUPS, attention_head_dim=HEADS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
        )
        self.condition = nn.Linear(EMBEDDING, CONTEXT)

    def named(self):
        pairs = [(our_name(n.removeprefix("unet.")), p) for n, p in self.named_parameters()]
        return dict(sorted(pairs))

    def fill(self):
        with torch.no_grad():
            for index, (name, p) in enumerate(self.named().items()):
                is_gain = p.dim() == 1 and "norm" in name and name.endswith("weight")
                fan_in = p[0].numel() if p.dim() > 1 else 4
                p.copy_(wave(index, p.shape, 0.2, 1.0) if is_gain else wave(index, p.shape, 1 / math.sqrt(fan_in)))

    def predict(self, latents, times, tokens):
        in_time = tokens.mean(1) if self.unet.class_embedding is not None else None
        return self.unet(latents, torch.tensor(times), tokens, class_labels=in_time).sample


def betas(steps=1000, start=0.0015, end=0.0195):
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def unet():
    net = Network()
    net.fill()
    net.eval()  # no dropout anywhere; the same as training
    latents, noise = wave(100, (2, 3, 8, 8), 1.0), wave(101, (2, 3, 8, 8), 1.0)
    embeddings = wave(102, (2, EMBEDDING), 1.0)
    out = {}
    with torch.no_grad():
        one = net.condition(embeddings)[:, None]
        two = torch.cat([one, net.condition(wave(103, (2, EMBEDDING), 1.0))[:, None]], 1)
        out["one_token"] = net.predict(latents, TIMES, one)
        out["two_tokens"] = net.predict(latents, TIMES, two)
        in_time = Network(class_embed_type="projection", projection_class_embeddings_input_dim=CONTEXT).eval()
        in_time.fill()
        out["in_time"] = in_time.predict(latents, TIMES, in_time.condition(embeddings)[:, None])
    alphas = torch.cumprod(1 - betas(), 0)[TIMES].float()[:, None, None, None]
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    loss = (net.predict(noisy, TIMES, net.condition(embeddings)[:, None]) - noise).square().mean()
    loss.backward()
    # Queries and keys of the attention to one token get exactly no gradient: they stay as they are with us.
    idle = [p for n, p in net.named().items() if "attn2.to_q" in n or "attn2.to_k" in n or ".norm2.weight" in n
            and "transformer" in n or ".norm2.bias" in n and "transformer" in n]
    for p in idle:
        assert p.grad.abs().max() < 1e-9, p.grad.abs().max()
        p.grad = None
    torch.optim.AdamW(net.named().values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01).step()
    out["loss"] = loss.detach().reshape(1)
    out |= {f"after.{name}": p.detach().clone() for name, p in net.named().items()}
    save_file(out, HERE / "unet.safetensors")


def answer(x, t):
    """A network that is a formula: smooth in x and in t."""
    return torch.sin(1.3 * x + t / 300) * 0.6


def samples():
    start = wave(7, (1, 1, 2, 3), 1.2).double()
    cases = []
    for prediction, zero_snr in [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]:
        leading = [("ddim", 10, 0.0), ("ddim", 10, 0.7), ("dpm", 10, 0.0), ("ddpm", 20, 0.0)]
        # diffusers' DDIM takes the step to the next time for 1000 / steps, which it is where that is whole.
        trailing = [("ddim", 8, 0.0), ("ddim", 8, 0.7), ("dpm", 12, 0.0), ("ddpm", 20, 0.0)]
        cases_of = [("leading", *case) for case in leading] + [("trailing", *case) for case in trailing]
        # Of diffusers' schedulers, these two go over any times.
        cases_of += [("quadratic", "dpm", 12, 0.0), ("quadratic", "ddpm", 20, 0.0)]
        if zero_snr:  # what only the last time step changes
            cases_of = cases_of[len(leading):]
        for spacing, name, steps, eta in cases_of:
            common = dict(num_train_timesteps=1000, trained_betas=betas().numpy(), prediction_type=prediction,
                          rescale_betas_zero_snr=zero_snr)
            if name == "ddim":
                scheduler = DDIMScheduler(
                    **common, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing=spacing,
                )
            elif name == "dpm":
                scheduler = DPMSolverMultistepScheduler(
                    **common, solver_order=2, algorithm_type="dpmsolver++", final_sigmas_type="zero",
                )
            else:
                scheduler = DDPMScheduler(**common, clip_sample=False, variance_type="fixed_small")
            if zero_snr:  # DPM-Solver's own, for all: the others' 0 differs from it by 2e-4 in the first step
                scheduler.alphas_cumprod[-1] = 2**-24
            # DDIM's own times for all: 1, 1 + c, ... with c = 1000 / steps, or ..., 999 - c, 999; the quadratic ones by hand.
            if spacing == "leading":
                times = [1 + 1000 // steps * i for i in reversed(range(steps))]
            elif spacing == "trailing":
                times = [int(t) for t in np.round(np.arange(1000, 0, -1000 / steps)) - 1]
            else:
                times = [int(t) for t in np.floor(1000 * (np.arange(steps, 0, -1) / steps) ** 2 + 0.5) - 1]
            scheduler.set_timesteps(steps) if name == "ddim" else scheduler.set_timesteps(timesteps=times)
            assert [int(t) for t in scheduler.timesteps] == times
            x, trajectory = start.clone(), []
            for i, t in enumerate(scheduler.timesteps):
                t = int(t)
                noise = wave(200 + i, x.shape, 1.0).double()
                if name == "ddim":
                    x = scheduler.step(answer(x, t), t, x, eta=eta, variance_noise=noise).prev_sample
                elif name == "dpm":
                    x = scheduler.step(answer(x, t), t, x).prev_sample
                else:
                    # diffusers draws its own noise: the mean without noise, and the variance, are asked for instead.
                    mean, deviation = ddpm_step(scheduler, answer(x, t), t, x)
                    x = mean + deviation * noise
                trajectory.append(x.flatten().tolist())
            cases.append(dict(solver=name, spacing=spacing, steps=steps, eta=eta, prediction=prediction, zero_snr=zero_snr,
                              times=[int(t) for t in scheduler.timesteps], trajectory=trajectory))
    (HERE / "samples.json").write_text(json.dumps(dict(start=start.flatten().tolist(), cases=cases), indent=1) + "\n")


def ddpm_step(scheduler, output, t, x):
    """The scheduler's own step with noise 0 and noise 1 gives mean and deviation."""
    import diffusers.schedulers.scheduling_ddpm as module
    kept = module.randn_tensor
    try:
        module.randn_tensor = lambda shape, **_: torch.zeros(shape, dtype=torch.float64)
        mean = scheduler.step(output, t, x).prev_sample
        module.randn_tensor = lambda shape, **_: torch.ones(shape, dtype=torch.float64)
        return mean, scheduler.step(output, t, x).prev_sample - mean
    finally:
        module.randn_tensor = kept


if __name__ == "__main__":
    torch.manual_seed(0)
    unet()
    samples()
