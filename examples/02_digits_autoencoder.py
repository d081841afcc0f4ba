"""Regularise the decoder R² → R⁶⁴ of an ordinary autoencoder on scikit-learn's digits (Lee et al. 2021).

The latents are mixed up, z = δ z_i + (1 − δ) z_j with δ ~ U(−η, 1 + η), so that the gaps are regular too.
Ellipses are steps in the plane that change the decoded image equally: circles of one size are an isometry.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Ellipse
from rich.progress import track
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import nn

import georeg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/digits_autoencoder"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the networks are too small for more
images, digits = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
train, test, label = images[:1500].float() / 16, images[1500:].float() / 16, {"size": 17, "weight": "bold", "ha": "center"}
isometry, exact = (georeg.IsometryLoss(normalize=True, estimator=e) for e in (georeg.Hutchinson(), georeg.Exact()))
colours = ["#328", "#8CE", "#4A9", "#173", "#993", "#C90", "#C67", "#825", "#A49", "#777"]  # P. Tol's, safe for all eyes
figure, axes = plt.subplots(1, 2, figsize=(13, 7), layout="constrained")
for panel, name, weight in zip(axes, ("Reconstruction only", "With isometry loss"), (0, 0.5), strict=True):
    torch.manual_seed(options.seed)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    decoder = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for batch in track(torch.randint(1500, (500 if options.quick else 3000, 128)), name):
        z = encoder(train[batch])
        iso = isometry(decoder, georeg.mixup_latents(z, 0.2)).loss
        loss = (decoder(z) - train[batch]).square().sum(1).mean() + weight * iso
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    z, codes = encoder(train).detach(), encoder(test).detach()
    error, score = (decoder(codes) - test).square().sum(1).mean(), exact(decoder, codes).estimate()
    mcn = georeg.diagnostics.mean_condition_number(decoder, codes)
    print(f"{name}: reconstruction error {error:.2f}, normalised loss {score}, mean condition number {mcn}")
    centres = torch.as_tensor(KMeans(60, n_init=1, random_state=0).fit(z).cluster_centers_, dtype=z.dtype)
    jacobian = georeg.linearize(decoder, centres).jvp(torch.eye(2)[:, None].expand(2, 60, 2)).detach()
    values, vectors = torch.linalg.eigh(torch.einsum("ibm,jbm->bij", jacobian, jacobian))  # of G = JᵀJ at each centre
    axis = values.rsqrt() * 0.09 * z.std() * values.prod(1).pow(0.25).median()  # {v: vᵀGv = r²} has semi-axes r/√λ
    for c, (a, b), v in zip(centres, axis, vectors[:, :, 0], strict=True):
        panel.add_patch(Ellipse(c, 2 * a, 2 * b, angle=torch.atan2(v[1], v[0]).rad2deg(), fc="none", ec="black", lw=1))
    for k, own in enumerate(z[digits[:1500] == k] for k in range(10)):
        panel.scatter(*own.T, color=colours[k], s=9, alpha=0.6, linewidths=0)
        panel.text(*own.median(0).values, k, **label, va="center", bbox={"fc": "white", "alpha": 0.75, "lw": 0, "pad": 1})
    panel.set_title(f"{name}\nerror {error:.1f} · normalised loss {float(score):.2f} · condition {float(mcn):.1f}", size=15)
    panel.set(xticks=[], yticks=[], box_aspect=1, aspect="equal", adjustable="datalim")
options.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output_dir / "digits_autoencoder.png", dpi=64, bbox_inches="tight")
