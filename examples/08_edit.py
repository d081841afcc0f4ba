"""Edits in the latent space of a small denoiser of digits: along great circles of the noise's sphere, and in h.

`georeg-diffusion edit MODEL` does this for any diffusers model; here are the functions behind it, on tensors.
"""

import argparse
from pathlib import Path

import torch
from rich.progress import track
from sklearn.datasets import load_digits

from georeg_diffusion import Bundle, Denoiser, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.editing import add_direction, encoder_at, local_basis, move, sample_with_h, shoot
from georeg_diffusion.report.edits import signed
from georeg_diffusion.report.grids import grid
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from georeg_diffusion.sampling.noise import seeded_noise

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/edit"))
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
denoiser = Denoiser(Bundle(unet, scheduler))
steps = ddim_steps(scheduler, 20)
noise, t = seeded_noise((1, 8, 8), [options.seed]), steps.timesteps[0]
encode = encoder_at(denoiser, t)
basis = local_basis(encode, noise, 2, generator=torch.Generator().manual_seed(0))
print(f"h moves by {basis.values[0, 0]:.3g} and {basis.values[0, 1]:.3g} for a unit of x along v1 and v2")

angle, gammas = 0.25, [-2, -1, 0, 1, 2]
weights = torch.tensor([[float(g), 0.0] for g in gammas])
circle = move(noise, basis.x_vectors, weights, angle)[:, 0]
both = move(noise, basis.x_vectors, weights.flip(1) + weights, angle)[:, 0]
walks = [shoot(encode, noise, basis.x_vectors[0], sign * angle, 2, rank=8)[:, 0] for sign in (-1, 1)]
walk = torch.cat([walks[0].flip(0), walks[1][1:]])
turned = torch.nn.functional.cosine_similarity(walk.flatten(1), circle.flatten(1)).clamp(-1, 1).acos()
print(f"shooting, {turned.max():.3g} rad from the great circle at most after 2 steps of {angle} rad")
rows = [ddim(denoiser, steps, x) for x in (circle, both, walk)]

edit = add_direction(basis.h_vectors[0], torch.tensor([0.5 * g for g in gammas]))
in_h = sample_with_h(denoiser, steps, noise.expand(5, -1, -1, -1), edit, interval=(500, 1000))
plain = ddim(denoiser, steps, noise.expand(5, -1, -1, -1))
print(f"no edit of h is plain sampling bit for bit: {torch.equal(in_h[2], plain[2])}")
options.output_dir.mkdir(parents=True, exist_ok=True)
grid(
    torch.stack([*rows, in_h]),
    options.output_dir / "edit.png",
    rows=["v1", "v1 and v2", "v1 by shooting", "u1 in h"],
    columns=[signed(g) for g in gammas],
    title="Digits moved along Local Basis directions",
    column_axis=f"γ, turning by {angle} rad each (in h: 0.5 ‖h‖)",
    marked=2,
)
