"""Distances as a classifier sees them: a decoder that is a scaled isometry of perceptual instead of pixel distance.

φ is the features of a small classifier of digits. georeg.PullbackMetric(φ) is the metric JᵀJ of φ on pixel space:
two pictures are far apart where φ tells them apart. It has no inverse and needs none, as a codomain.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import georeg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/perceptual_pullback_metric"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the networks are too small for more
torch.manual_seed(options.seed)
pixels, digits = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
train, test = pixels[:1500].float() / 16, pixels[1500:].float() / 16
label = {"size": 15, "weight": "bold", "ha": "center", "va": "center", "bbox": {"fc": "white", "alpha": 0.75, "lw": 0}}
colours = ["#328", "#8CE", "#4A9", "#173", "#993", "#C90", "#C67", "#825", "#A49", "#777"]  # P. Tol's, safe for all eyes

features = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 32), nn.SiLU())
head = nn.Linear(32, 10)
optimiser = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-4)
for batch in track(torch.randint(1500, (100 if options.quick else 800, 128)), "classifier"):
    optimiser.zero_grad()
    nn.functional.cross_entropy(head(features(train[batch])), digits[batch]).backward()
    optimiser.step()
features.requires_grad_(False)
right = (head(features(test)).argmax(1) == digits[1500:]).float().mean()
print(f"classifier: {right:.1%} of {len(test)} held-out digits right")

perceptual = georeg.PullbackMetric(features)
metrics = {"Pixel distance": georeg.Euclidean(), "Perceptual distance": perceptual}
figure, axes = plt.subplots(1, 2, figsize=(12, 6.6), layout="constrained")
for panel, (name, metric) in zip(axes, metrics.items(), strict=True):
    torch.manual_seed(options.seed)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    decoder = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    isometry = georeg.IsometryLoss(codomain=metric, normalize=True)
    for batch in track(torch.randint(1500, (200 if options.quick else 2500, 128)), name):
        z = encoder(train[batch])
        iso = isometry(decoder, georeg.mixup_latents(z, 0.2)).loss
        loss = (decoder(z) - train[batch]).square().sum(1).mean() + 0.5 * iso
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    z, codes = encoder(train).detach(), encoder(test).detach()
    error = (decoder(codes) - test).square().sum(1).mean()
    exact = [georeg.IsometryLoss(codomain=other, normalize=True, estimator="exact") for other in metrics.values()]
    scores = [float(loss(decoder, codes).loss.detach()) for loss in exact]
    nearest = KNeighborsClassifier(15).fit(z, digits[:1500]).score(codes, digits[1500:])
    print(f"{name}: reconstruction error {error:.2f}, normalised loss in pixels {scores[0]:.3f}, perceptual {scores[1]:.3f}")
    print(f"    15 nearest latents name the digit of {nearest:.1%} of the held-out images")
    for k, own in enumerate(z[digits[:1500] == k] for k in range(10)):
        panel.scatter(*own.T, color=colours[k], s=9, alpha=0.6, linewidths=0)
        panel.text(*own.median(0).values, k, **label)
    panel.set_title(f"Isometry in {name.lower()}\nloss in pixels {scores[0]:.2f} · perceptual {scores[1]:.2f}", size=14)
    panel.set(xticks=[], yticks=[], box_aspect=1, aspect="equal", adjustable="datalim")
options.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output_dir / "perceptual_pullback_metric.png", dpi=72, bbox_inches="tight")
