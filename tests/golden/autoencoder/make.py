"""Golden numbers of the first stages, by diffusers' AutoencoderKL and VQModel with small random weights.

    python tests/golden/autoencoder/make.py

writes, beside this file,
    kl.safetensors   a kl_f4 (diffusers' names, f16)      kl.ckpt   the same under CompVis's names, with loss.* keys
    vq.safetensors   a vq_f8 with attention at f = 8      vq_compvis.safetensors   the same in a diffusion model's checkpoint
    forward.safetensors   images, moments, latents, codes and reconstructions of both

Weights are exact in f16, so that the files are small and every reader sees the same numbers.
"""

import re
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, VQModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file

HERE = Path(__file__).parent
GROUPS, CHANNELS = 2, 2


def random_weights(model):
    """Of a size that keeps activations near 1, gains near 1, and a codebook as wide as the latents."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "embedding" in name:
                values = torch.randn_like(param) * 0.5
            elif "norm" in name and name.endswith("weight"):
                values = 1 + torch.randn_like(param) * 0.2
            elif param.ndim > 1:
                values = torch.randn_like(param) / param[0].numel() ** 0.5
            else:
                values = torch.randn_like(param) * 0.1
            param.copy_(values.half().float())
    return model.eval()


def compvis(state, levels):
    """The names of CompVis/latent-diffusion's ldm/modules/diffusionmodules/model.py."""
    out = {}
    for name, value in state.items():
        name = re.sub(r"conv_norm_out", "norm_out", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"mid_block\.attentions\.0", "mid.attn_1", name)
        name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        name = name.replace("resnets", "block").replace("attentions", "attn").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        if "attn" in name:
            for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                name = name.replace(f".{ours}.", f".{theirs}.")
            if name.endswith("weight") and value.ndim == 2:
                value = value[:, :, None, None]
        out[name] = value
    return out


def save(model, name, levels):
    state = {k: v.half().contiguous().clone() for k, v in model.state_dict().items()}
    save_file(state, HERE / f"{name}.safetensors")
    theirs = compvis(state, levels)
    assert len(theirs) == len(state)
    return state, theirs


def save_checkpoint(theirs):
    """With what else a checkpoint of an autoencoder's training holds."""
    loss = {"loss.logvar": torch.zeros(()).half(), "loss.discriminator.main.0.bias": torch.zeros(4).half(),
            "loss.discriminator.main.3.num_batches_tracked": torch.tensor(9)}
    torch.save({"epoch": 3, "global_step": 7, "state_dict": {**theirs, **loss}}, HERE / "kl.ckpt")


def diffusion_checkpoint(theirs):
    """The first stage among what else a checkpoint of latent-diffusion or Stable Diffusion holds, counters and places too."""
    others = {"model.diffusion_model.out.2.bias": torch.zeros(4).half(),
              "model_ema.num_updates": torch.tensor(9, dtype=torch.int32), "betas": torch.zeros(5),
              "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(7)[None]}
    return {**{f"first_stage_model.{name}": value for name, value in theirs.items()}, **others}


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = dict(norm_num_groups=GROUPS, layers_per_block=2, act_fn="silu")
    kl = random_weights(AutoencoderKL(
        block_out_channels=(CHANNELS, 2 * CHANNELS, 3 * CHANNELS), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=3, **shape))
    vq = random_weights(VQModel(
        block_out_channels=(CHANNELS, CHANNELS, 2 * CHANNELS, 3 * CHANNELS),
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        latent_channels=4, num_vq_embeddings=24, vq_embed_dim=4, **shape))
    state, theirs = save(kl, "kl", 3)
    # diffusers' own converter reads our CompVis names as its own.
    config = {"down_block_types": [0] * 3, "up_block_types": [0] * 3}
    converted = convert_ldm_vae_checkpoint({f"first_stage_model.{k}": v for k, v in theirs.items()}, config)
    assert converted.keys() == state.keys() and all(torch.equal(converted[k].reshape(v.shape), v) for k, v in state.items())
    save_checkpoint(theirs)
    save_file(diffusion_checkpoint(save(vq, "vq", 4)[1]), HERE / "vq_compvis.safetensors")

    out = {"kl.images": torch.rand(2, 3, 16, 12) * 2 - 1, "vq.images": torch.rand(1, 3, 32, 16) * 2 - 1}
    with torch.no_grad():
        posterior = kl.encode(out["kl.images"]).latent_dist
        out["kl.mean"], out["kl.logvar"] = posterior.mean, posterior.logvar
        out["kl.divergence"] = posterior.kl()
        out["kl.decoded"] = kl.decode(posterior.mean).sample
        latents = vq.encode(out["vq.images"]).latents
        quantized, _, (_, _, codes) = vq.quantize(latents)
        out["vq.latents"], out["vq.quantized"], out["vq.codes"] = latents, quantized, codes.reshape(-1).float()
        out["vq.loss"] = ((quantized - latents) ** 2).mean().reshape(1) * 1.25
        out["vq.decoded"] = vq.decode(latents).sample
    save_file({k: v.clone().contiguous() for k, v in out.items()}, HERE / "forward.safetensors")
    used = len(set(out["vq.codes"].tolist()))
    spread = {k: round(v.std().item(), 3) for k, v in out.items() if v.numel() > 1}
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}: {used} codes used, deviations {spread}")


if __name__ == "__main__":
    main()
