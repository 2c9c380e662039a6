"""Golden numbers of training a first stage: LPIPS and two steps of both kinds, by PyTorch.

    python tests/golden/autoencoder/training.py        (after make.py)

writes, beside this file,
    lpips.safetensors      LPIPS of a narrow VGG16 with random weights, under the names of the lpips package
    training.safetensors   images; LPIPS distances; a discriminator; and of two steps of kl_f4 and vq_f8 the losses and the
                       moves of all parameters in learning rates (f16, one tensor after the other in the order of their names)

Both first stages begin from make.py's weights, with normalisations of one group. The losses are those of CompVis's
LPIPSWithDiscriminator and VQLPIPSWithDiscriminator, written out; generator and discriminator take their steps from the
same reconstruction.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).parent
WIDTHS, GROUPS = (2, 2, 3, 3, 4), ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
LR = 1e-3


class Lpips(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.lins = nn.ModuleDict(), nn.ParameterList()
        self.shift, self.scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        before = 3
        for width, numbers in zip(WIDTHS, GROUPS):
            for number in numbers:
                layer = nn.Conv2d(before, width, 3, padding=1)
                nn.init.normal_(layer.weight, 0, (2 / layer.weight[0].numel()) ** 0.5)
                nn.init.normal_(layer.bias, 0.1, 0.1)
                self.layers[str(number)], before = layer, width
            self.lins.append(nn.Parameter(torch.rand(1, width, 1, 1)))
        self.requires_grad_(False)

    def features(self, x):
        x = (x - self.shift[:, None, None]) / self.scale[:, None, None]
        for group, numbers in enumerate(GROUPS):
            if group:
                x = F.max_pool2d(x, 2)
            for number in numbers:
                x = F.relu(self.layers[str(number)](x))
            # The reference takes the root of the sum itself, whose gradient is no number where all features are 0.
            yield x / (x.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt() + 1e-10)

    def forward(self, a, b):
        pairs = zip(self.features(a), self.features(b), self.lins)
        return sum(((x - y) ** 2 * lin).sum(1, keepdim=True).mean((2, 3), keepdim=True) for x, y, lin in pairs)

    def named(self):
        out = {"scaling_layer.shift": self.shift[None, :, None, None], "scaling_layer.scale": self.scale[None, :, None, None]}
        for group, numbers in enumerate(GROUPS):
            for number in numbers:
                for part, value in self.layers[str(number)].state_dict().items():
                    out[f"net.slice{group + 1}.{number}.{part}"] = value
            out[f"lin{group}.model.1.weight"] = out[f"lins.{group}.model.1.weight"] = self.lins[group].data
        return {k: v.clone().contiguous() for k, v in out.items()}


def discriminator(layers, width):
    parts, before = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)], width
    for i in range(1, layers + 1):
        after = width * min(2**i, 8)
        parts += [nn.Conv2d(before, after, 4, 2 if i < layers else 1, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        before = after
    net = nn.Sequential(*parts, nn.Conv2d(before, 1, 4, 1, 1))
    for part in net:
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, 0, part.weight[0].numel() ** -0.5)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.2)
            nn.init.normal_(part.bias, 0, 0.2)
    return net.train()


def names(layers):
    """Names of a discriminator's tensors here, by PyTorch's."""
    out = {"0": "first", str(2 + 3 * layers): "last"}
    for i in range(layers):
        out[str(2 + 3 * i)] = out[str(3 + 3 * i)] = f"layers.{i}"
    def name(theirs):
        number, part = theirs.split(".", 1)
        norm = number not in ("0", str(2 + 3 * layers)) and (int(number) - 3) % 3 == 0
        return f"{out[number]}.{ {'weight': 'gain', 'bias': 'shift'}.get(part, part) if norm else part}"
    return name


def steps(kind, model, judge, lpips, images, noise, out):
    name = names(2)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    if "kl" in kind:
        out.update({f"judge.{name(k)}": v.clone() for k, v in judge.named_parameters()})
    first_judge = {k: v.clone() for k, v in judge.named_parameters()}
    optimizers = [torch.optim.Adam(net.parameters(), lr=LR, betas=(0.5, 0.9)) for net in (model, judge)]
    rows = []
    for step in range(2):
        if kind == "kl":
            posterior = model.encode(images).latent_dist
            latents = posterior.mean + (0.5 * posterior.logvar).exp() * noise[step]
            bottleneck = 1e-6 * 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).sum() / len(images)
        else:
            latents = model.encode(images).latents
            table = model.quantize.embedding.weight
            flat = latents.permute(0, 2, 3, 1).reshape(-1, 4)
            codes = table[torch.cdist(flat, table).argmin(1)].reshape(*latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            bottleneck = ((codes.detach() - latents) ** 2).mean() + 0.25 * ((codes - latents.detach()) ** 2).mean()
            latents = latents + (codes - latents).detach()
        found = model.decoder(model.post_quant_conv(latents))
        rec = (images - found).abs() + 0.5 * lpips(images, found)
        nll = rec.sum() / len(images) if kind == "kl" else rec.mean()
        # The reference's step 0 of kl is before its discriminator starts.
        active = 1.0 if kind == "vq" or step > 0 else 0.0
        weight = torch.zeros(())
        g = torch.zeros(())
        if active:
            g = -judge(found).mean()
            last = model.decoder.conv_out.weight
            norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (nll, g)]
            weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4) * 0.8
        optimizers[0].zero_grad()
        (nll + bottleneck + weight.detach() * g).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        d = torch.zeros(())
        if active:
            optimizers[1].zero_grad()
            real, fake = judge(images), judge(found.detach())
            d = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            d.backward()
            optimizers[1].step()
        optimizers[0].step()
        rows.append([(images - found).abs().mean().item(), bottleneck.item(), weight.item(), g.item(), d.item()])
        smallest = min(g.abs().max().item() for g in gradients)
    moves = {k: (v - start[k]) / LR for k, v in model.named_parameters()}
    out[f"{kind}.moves"] = torch.cat([moves[k].reshape(-1) for k in sorted(moves)]).half()
    moves = {name(k): (v - first_judge[k]) / LR for k, v in judge.named_parameters()}
    out[f"{kind}.judge"] = torch.cat([moves[k].reshape(-1) for k in sorted(moves)]).half()
    for i, number in enumerate((3, 6)):
        out[f"{kind}.running.{i}.mean"] = judge[number].running_mean.clone()
        out[f"{kind}.running.{i}.variance"] = judge[number].running_var.clone()
    out[f"{kind}.losses"] = torch.tensor(rows)
    print(kind, rows, "smallest gradient of a tensor", smallest)


def main():
    torch.manual_seed(1)
    torch.set_num_threads(1)
    lpips = Lpips()
    save_file(lpips.named(), HERE / "lpips.safetensors")
    images, others = torch.rand(3, 3, 16, 16) * 2 - 1, torch.rand(3, 3, 16, 16) * 2 - 1
    noise = torch.randn(2, 3, 3, 4, 4)
    out = {"images": images, "lpips.others": others, "lpips.distances": lpips(images, others).reshape(-1), "noise": noise}
    shape = dict(norm_num_groups=1, layers_per_block=2, act_fn="silu")
    kl = AutoencoderKL(block_out_channels=(2, 4, 6), down_block_types=("DownEncoderBlock2D",) * 3,
                       up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=3, **shape)
    vq = VQModel(block_out_channels=(2, 2, 4, 6), down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
                 up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3, latent_channels=4,
                 num_vq_embeddings=24, vq_embed_dim=4, **shape)
    judge = discriminator(2, 2)
    first = {k: v.clone() for k, v in judge.state_dict().items()}
    for kind, model in (("kl", kl), ("vq", vq)):
        model.load_state_dict({k: v.float() for k, v in load_file(HERE / f"{kind}.safetensors").items()})
        judge.load_state_dict(first)
        steps(kind, model, judge, lpips, images, noise, out)
    save_file({k: v.detach().clone().contiguous() for k, v in out.items()}, HERE / "training.safetensors")


if __name__ == "__main__":
    main()
