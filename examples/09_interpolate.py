"""Interpolation in the noise of a small denoiser of digits: straight, on the great circle, shortest in h.

`georeg-diffusion interpolate MODEL A B` does this for any diffusers model; here are the functions behind it, on tensors.
"""

import argparse
from pathlib import Path

import torch
from rich.progress import track
from sklearn.datasets import load_digits

import georeg
from georeg_diffusion import Bundle, Denoiser, HSpace, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.report.panels import moving_frames, save_gif, strips, variation
from georeg_diffusion.sampling.ddim import ddim_sample, ddim_steps
from georeg_diffusion.sampling.interpolation import adjacent_distances, interpolate
from georeg_diffusion.sampling.noise import seeded_noise

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/interpolate"))
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
objective = IsometricDiffusionLoss(unet, scheduler, gate=IsometryGate(weight=0.1, skip=0.5))
optimiser = torch.optim.Adam(unet.parameters(), lr=1e-3)
for _ in track(range(20 if options.quick else 500), "training with the isometry loss"):
    optimiser.zero_grad()
    objective(images[torch.randint(len(images), (32,))]).loss.backward()
    optimiser.step()
unet.eval().requires_grad_(False)

# Any diffusers model is loaded by georeg_diffusion.load(path), and has prompts and classes in its Denoiser.
denoiser, num_steps = Denoiser(Bundle(unet, scheduler)), 20
first = ddim_steps(scheduler, num_steps).timesteps[0]
space = HSpace(unet)


def encode(x):
    """x ↦ h, whose pullback metric the geodesic is of."""
    return space.encode(x, first.expand(len(x)))


a, b = seeded_noise((1, 8, 8), [options.seed, options.seed + 1]).split(1)
frames, distances = {}, {}
for path in ("lerp", "slerp", "geodesic"):
    noise = interpolate(a, b, 11, path=path, encode=encode)
    energy = float(georeg.curve_energy(encode(noise[:, 0]).unsqueeze(1)))
    frames[path] = ddim_sample(denoiser, noise[:, 0], num_steps)
    distances[path] = adjacent_distances(frames[path][:, None])[:, 0]
    middle = float(noise[5].norm() / a.norm())
    print(f"{path}: energy in h {energy:.4g}, ‖x‖ half way {middle:.3g} of A's, variation {variation(distances[path]):.0%}")

options.output_dir.mkdir(parents=True, exist_ok=True)
ends = (f"seed {options.seed}", f"seed {options.seed + 1}")
picture = options.output_dir / "interpolate.png"
strips(frames, distances, picture, title="Three paths between two noises", ends=ends, path="path")
save_gif(moving_frames(frames), options.output_dir / "interpolate.gif", fps=8)
