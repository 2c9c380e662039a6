#!/usr/bin/env python3
"""PyTorch's and diffusers' side of benches/generation.rs, which starts it: a case in, seconds of one run out, a line each."""
import sys
import time

import timm
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
eyes = timm.create_model("vit_small_patch16_224", patch_size=8, img_size=SIDE, embed_dim=EMBEDDING, depth=6, num_heads=4, num_classes=0)
eyes.requires_grad_(False)
layers = [torch.nn.Conv2d(3, 64, 4, 2, 1), torch.nn.LeakyReLU(0.2, True)]
for width, stride in [(64, 2), (128, 2), (256, 1)]:
    layers += [torch.nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False), torch.nn.BatchNorm2d(2 * width), torch.nn.LeakyReLU(0.2, True)]
judge = torch.nn.Sequential(*layers, torch.nn.Conv2d(512, 1, 4, 1, 1))
whole_stage = AutoencoderKL.from_config(stage.config)
whole_adam = torch.optim.Adam(whole_stage.parameters(), lr=1e-4, betas=(0.5, 0.9))
judge_adam = torch.optim.Adam(judge.parameters(), lr=1e-4, betas=(0.5, 0.9))
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


def tokens(images):
    """Unit vectors of the tokens of four blocks; images are normalised already."""
    blocks = eyes.forward_intermediates(images, [1, 2, 4, 5], output_fmt="NLC", intermediates_only=True)
    return [torch.nn.functional.normalize(block, dim=2) for block in blocks]


def whole_autoencoder_step():
    """Latent-diffusion's losses, but with one reconstruction for both networks, as gensis."""
    posterior = whole_stage.encode(pixels).latent_dist
    found = whole_stage.decode(posterior.sample()).sample
    with torch.no_grad():
        wanted = tokens(pixels)
    features = torch.stack([(a - b).square().sum(2).mean() for a, b in zip(wanted, tokens(found))]).mean()
    nll = ((found - pixels).abs() + features).sum() / BATCH
    judge.requires_grad_(False)
    against = -judge(found).mean()
    last = whole_stage.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, against)]
    weight = 0.5 * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    whole_adam.zero_grad(set_to_none=True)
    (nll + 1e-6 * posterior.kl().mean() + weight * against).backward()
    whole_adam.step()
    judge.requires_grad_(True)
    loss = 0.5 * (torch.relu(1 - judge(pixels)).mean() + torch.relu(1 + judge(found.detach())).mean())
    judge_adam.zero_grad(set_to_none=True)
    loss.backward()
    judge_adam.step()


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


CASES = {"autoencoder": autoencoder_step, "whole_autoencoder": whole_autoencoder_step, "unet": unet_step, "ddim": ddim}
for line in sys.stdin:
    run = CASES[line.strip()]
    run()
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, flush=True)
