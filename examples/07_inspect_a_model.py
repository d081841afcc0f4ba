"""The geometry of a denoiser's h-space at each t, before and after a few steps with the isometry loss.

`georeg-diffusion inspect MODEL` does this for any diffusers model; here are the functions behind it, on tensors.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import track
from sklearn.datasets import load_digits

from georeg_diffusion import HSpace, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.evaluation.geometry import geometry
from georeg_diffusion.evaluation.skip import skip_for
from georeg_diffusion.schedule import noised_at

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/inspect_a_model"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the network is too small for more
torch.manual_seed(options.seed)

images = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
scheduler = diffusers.DDPMScheduler()
unet = diffusers.UNet2DModel(
    **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8},
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)


def train(steps, weight, skip, title):
    """Denoising, with λ·F wherever t > pT."""
    objective = IsometricDiffusionLoss(unet.train(), scheduler, gate=IsometryGate(weight=weight, skip=skip))
    optimiser = torch.optim.Adam(unet.parameters(), lr=1e-3)
    for _ in track(range(steps), title):
        optimiser.zero_grad()
        objective(images[torch.randint(len(images), (32,))]).loss.backward()
        optimiser.step()
    unet.eval()


def inspect(timesteps):
    """The geometry at each t, at x_t of the same images with the same noise."""
    space, draw, found = HSpace(unet), torch.Generator().manual_seed(options.seed), []
    for t in timesteps:
        x_t = noised_at(scheduler, images[:32], torch.randn(32, 1, 8, 8, generator=draw), torch.full((32,), t))
        found.append(geometry(lambda x, t=t: space.encode(x, t), x_t, top=2, generator=draw))
    return found


p = skip_for(scheduler, float(images.square().mean()))
print(f"suggested p: {p:g} (for t > {p:g} T the digits add at most 10 % to ‖x_t‖²)")
timesteps = range(50, 1000, 300 if options.quick else 100)
train(20 if options.quick else 400, 0.0, p, "denoising alone")
axes = Figure(figsize=(6, 3.6), layout="constrained").subplots()
for name in ("before", "after"):
    for t, one in zip(timesteps, found := inspect(timesteps), strict=True):
        top = one.singular_values[0].value
        print(f"{name} t = {t}: isometry loss {one.isometry}, effective rank {one.effective_rank}, σ₁/c {top:.3g}")
    losses = [one.isometry.value for one in found]
    axes.errorbar(timesteps, losses, [1.96 * one.isometry.stderr for one in found], fmt="o-", capsize=2, label=name)
    if name == "before":
        train(40 if options.quick else 400, 0.1, p, "with the isometry loss")
axes.axhline(1, color="0.4", ls="--", lw=0.8)
axes.axvspan(0, p * 1000, color="0.5", alpha=0.12, lw=0, label="t ≤ pT, left alone")
axes.set(
    title="Isometry loss of h against t (1 is perfect)", xlabel="t", ylabel="normalised loss", yscale="log", xlim=(0, 1000)
)
axes.legend(frameon=False)
options.output_dir.mkdir(parents=True, exist_ok=True)
axes.figure.savefig(options.output_dir / "inspect_a_model.png", dpi=120)
