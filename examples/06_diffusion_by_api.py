"""Fine-tune a diffusion model from Python: the same digits model continued with and without the isometry loss.

`georeg_diffusion.train` is what `georeg-diffusion train` calls: it resumes, averages weights, checkpoints, scores and
draws. For a loop of your own take IsometricDiffusionLoss, as below for the model to start from.
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import track
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from georeg_diffusion import Denoiser, IsometricDiffusionLoss, TrainConfig, load, train
from georeg_diffusion._compat import diffusers
from georeg_diffusion.sampling.ddim import ddim_sample
from georeg_diffusion.sampling.noise import seeded_noise

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/diffusion_by_api"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the network is too small for more
torch.manual_seed(options.seed)

images = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
unet = diffusers.UNet2DModel(
    **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8},
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
scheduler = diffusers.DDPMScheduler()
objective = IsometricDiffusionLoss(unet, scheduler, gate=None)  # denoising alone: an ordinary DDPM
optimiser = torch.optim.Adam(unet.parameters(), lr=2e-3)
for _ in track(range(20 if options.quick else 600), "a model to start from"):
    optimiser.zero_grad()
    objective(2 * images[torch.randint(len(images), (32,))] - 1).loss.backward()
    optimiser.step()
start, run = options.output_dir / "start", options.output_dir / "fine-tuned"
diffusers.DDPMPipeline(unet, scheduler).save_pretrained(start)

config = TrainConfig(
    pretrained_model_name_or_path=str(start),
    with_baseline=True,  # also λ = 0, from the same weights on the same draws
    lambda_iso=0.1,
    max_train_steps=10 if options.quick else 100,
    train_batch_size=32,
    learning_rate=5e-4,
    random_flip=False,
    report_to="none",
    cpu=True,
    seed=options.seed,
    output_dir=run,
    overwrite_output_dir=True,
)
train(config, TensorDataset(images))  # floats in [0, 1]; or train_data_dir="photos" in the configuration

scores = json.loads((run / "metrics.json").read_text())["models"]
figure = Figure(figsize=(12, 3.4), layout="constrained")
axes = figure.subplot_mosaic([[f"base{i}" for i in range(8)] + ["t"] * 6, [f"isometric{i}" for i in range(8)] + ["t"] * 6])
for name in ("base", "isometric"):
    with torch.no_grad():
        pictures = ddim_sample(Denoiser(load(run / name)), seeded_noise((1, 8, 8), range(8)), 50)
    for i, picture in enumerate(pictures[:, 0]):
        axes[f"{name}{i}"].imshow(picture, cmap="gray", vmin=-1, vmax=1)
        axes[f"{name}{i}"].axis("off")
    axes[f"{name}0"].set_title(f"{name}, from the same noises", loc="left")
    profile, error = scores[name]["isometry"]["per_t"], scores[name]["denoising"]["value"]
    print(f"{name}: denoising loss {error:.4f}, normalised isometry loss {scores[name]['isometry']['value']:.3f}")
    axes["t"].plot([int(t) for t in profile], profile.values(), "o-", label=f"{name}, denoising loss {error:.4f}")
axes["t"].axhline(1, color="0.4", ls="--", lw=0.8)
axes["t"].set(title="Isometry loss of x_t to h (1 is perfect)", xlabel="t", ylabel="normalised loss")
axes["t"].legend(frameon=False)
figure.savefig(options.output_dir / "diffusion_by_api.png", dpi=80)
