"""A VAE of scikit-learn's digits whose decoder R² → R⁶⁴ becomes a scaled isometry (IRVAE, Lee et al. 2021).

Three runs from the same weights: no loss, the loss at full weight λ from the start, and λ warmed up linearly from 0.
Latents are mixed up, α z_i + (1 − α) z_j with α ~ U[−η, 1 + η], so that the gaps are regular too.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn

import georeg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/vae_warmup"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few epochs: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the networks are too small for more
epochs, weight, variance = 30 if options.quick else 200, 10, 0.1
images = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
train, test = images[:1500], images[1500:]
isometry, exact = (georeg.IsometryLoss(normalize=True, estimator=e) for e in ("hutchinson", "exact"))


def elbo_terms(encoder, decoder, x):
    """The latents and, in nats a sample, −log p(x|z) up to a constant and KL(q(z|x) ‖ N(0, I))."""
    mean, log_std = encoder(x).chunk(2, dim=1)
    z = mean + log_std.exp() * torch.randn_like(mean)
    misfit = (decoder(z) - x).square().sum(1) / (2 * variance)
    kl = 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(1)
    return z, misfit.mean(), kl.mean()


def train_vae(name, schedule):
    torch.manual_seed(options.seed)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 4))
    decoder = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    history = []
    for epoch in track(range(epochs + 1), name):
        with torch.no_grad():
            z, misfit, kl = elbo_terms(encoder, decoder, test)
            history.append((misfit, kl, exact(decoder, georeg.mixup_latents(z, 0.2)).loss))
        for x in train[torch.randperm(len(train))].split(100):
            z, misfit, kl = elbo_terms(encoder, decoder, x)
            iso = isometry(decoder, georeg.mixup_latents(z, 0.2)).loss
            optimiser.zero_grad()
            (misfit + kl + schedule(epoch) * iso).backward()
            optimiser.step()
    misfit, kl, score = history[-1]
    print(f"{name}: −log p(x|z) {misfit:.2f}, KL {kl:.2f}, −ELBO {misfit + kl:.2f}, normalised loss {score:.3f}")
    return torch.tensor(history)


runs = {
    "no loss": (lambda epoch: 0, {"color": "#777", "ls": ":"}),
    "full weight": (lambda epoch: weight, {"color": "#C67", "ls": "--"}),
    "warm-up": (lambda epoch: weight * min(2 * epoch / epochs, 1), {"color": "#328", "ls": "-"}),
}
titles = ("misfit, −log p(x|z) + constant", "KL(q(z|x) ‖ p(z))", "isometry loss, 1 is perfect", "its weight λ")
figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
for name, (schedule, style) in runs.items():
    history = train_vae(name, schedule)
    weights = [schedule(epoch) for epoch in range(1, epochs + 1)]
    for panel, values in zip(axes, (*history[1:].T, weights), strict=True):
        panel.plot(range(1, epochs + 1), values, label=name, lw=2, **style)
for panel, title in zip(axes, titles, strict=True):
    panel.set_title(title, size=15)
    panel.set(xlabel="epoch", xscale="log")
    panel.spines[["top", "right"]].set_visible(False)
axes[2].axhline(1, color="black", lw=0.5)
axes[0].legend(frameon=False, fontsize=13)
options.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output_dir / "vae_warmup.png", dpi=90)
