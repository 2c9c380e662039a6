#!/usr/bin/env python3
"""PyTorch's and diffusers' side of benches/generation.rs, which starts it: a case in, seconds of one run out, a line each."""
import sys
import time

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

BATCH, SIDE, EMBEDDING, STEPS = 8, 64, 128, 50
torch.manual_seed(0)

unet = UNet2DConditionModel(
    sample_size=SIDE // 4, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(64, 128, 128),
    cross_attention_dim=64, norm_num_groups=32, attention_head_dim=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
condition = torch.nn.Linear(EMBEDDING, 64)
network = torch.nn.ModuleList([unet, condition])
average = [p.detach().clone() for p in network.parameters()]
adam = torch.optim.AdamW(network.parameters(), lr=1e-4)
stage = AutoencoderKL(
    in_channels=3, out_channels=3, latent_channels=3, layers_per_block=2, norm_num_groups=32, block_out_channels=(32, 64, 128),
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, sample_size=SIDE,
)
stage_adam = torch.optim.Adam(stage.parameters(), lr=1e-4, betas=(0.5, 0.9))
betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
alphas = torch.cumprod(1 - betas, 0)
latents, embeddings = torch.rand(BATCH, 3, SIDE // 4, SIDE // 4) * 2 - 1, torch.rand(BATCH, EMBEDDING)
pixels = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1


def unet_step():
    t = torch.randint(0, 1000, (BATCH,))
    noise = torch.randn_like(latents)
    alpha = alphas[t][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    loss = (unet(noisy, t, condition(embeddings)[:, None]).sample - noise).square().mean()
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()
    with torch.no_grad():
        torch._foreach_mul_(average, 0.9999)
        torch._foreach_add_(average, list(network.parameters()), alpha=0.0001)


def autoencoder_step():
    posterior = stage.encode(pixels).latent_dist
    found = stage.decode(posterior.sample()).sample
    loss = (found - pixels).abs().sum() / BATCH + 1e-6 * posterior.kl().mean()
    stage_adam.zero_grad(set_to_none=True)
    loss.backward()
    stage_adam.step()


@torch.no_grad()
def ddim():
    scheduler = DDIMScheduler(num_train_timesteps=1000, trained_betas=betas.numpy(), clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(STEPS)
    context = torch.cat([condition(embeddings), condition(torch.zeros_like(embeddings))])[:, None]
    x = torch.randn_like(latents)
    for t in scheduler.timesteps:
        told, untold = unet(torch.cat([x, x]), t, context).sample.chunk(2)
        x = scheduler.step(untold + 2 * (told - untold), t, x).prev_sample
    stage.decode(x)


CASES = {"autoencoder": autoencoder_step, "unet": unet_step, "ddim": ddim}
for line in sys.stdin:
    run = CASES[line.strip()]
    run()
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, flush=True)
