"""Digits as noise and back: DDIM inversion, how its error falls with steps, and what refinement adds.

`georeg-diffusion invert MODEL IMAGE...` does this for any diffusers model; here are the functions behind it, on tensors.
"""

import argparse
from pathlib import Path

import torch
from rich.progress import track
from sklearn.datasets import load_digits

from georeg_diffusion import Bundle, Denoiser, IsometricDiffusionLoss
from georeg_diffusion._compat import diffusers
from georeg_diffusion.report.panels import reconstructions
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from georeg_diffusion.sampling.inversion import ddim_invert

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/invert"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the network is too small for more
torch.manual_seed(options.seed)

images = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
# set_alpha_to_one=False: sampling ends at t = 0 and not at clean data, a last step that does not shrink with their number.
scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=False)
unet = diffusers.UNet2DModel(
    **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8},
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
objective = IsometricDiffusionLoss(unet, scheduler, gate=None)
optimiser = torch.optim.Adam(unet.parameters(), lr=1e-3)
for _ in track(range(20 if options.quick else 500), "training"):
    optimiser.zero_grad()
    objective(images[torch.randint(len(images), (32,))]).loss.backward()
    optimiser.step()
unet.eval().requires_grad_(False)

# Any diffusers model is loaded by georeg_diffusion.load(path), and has prompts and classes in its Denoiser.
denoiser, source = Denoiser(Bundle(unet, scheduler)), images[:4]


def round_trip(num_steps, refine=0, portion=1.0):
    """Images from the noise that they were inverted to, and the error of each."""
    steps = ddim_steps(scheduler, num_steps)
    found = ddim_invert(denoiser, steps, source, refine=refine, portion=portion)
    again = ddim(denoiser, steps, found.latents, start=found.start)
    return again, (again - source).square().flatten(1).mean(1)


for num_steps in (10, 20) if options.quick else (10, 20, 50, 100, 200):
    plain, refined = (float(round_trip(num_steps, refine)[1].mean()) for refine in (0, 3))
    print(f"{num_steps} steps: mean-squared error {plain:.3g}, with 3 refinements of each step {refined:.3g}")
half = float(round_trip(20, portion=0.5)[1].mean())
print(f"20 steps, half of the way to noise: {half:.3g}")

again, errors = round_trip(20)
options.output_dir.mkdir(parents=True, exist_ok=True)
reconstructions(
    source,
    again,
    options.output_dir / "invert.png",
    names=[f"digit {i}" for i in range(len(source))],
    scores=[f"MSE {float(error):.2g}, PSNR {float(10 * (4 / error).log10()):.1f} dB" for error in errors],
    title="Digits inverted by DDIM in 20 steps, and drawn again",
)
