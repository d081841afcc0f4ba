"""An ordinary training loop whose encoder R⁶⁴ → R⁸ is pulled towards a scaled isometry.

On CUDA the networks run under autocast with a GradScaler, elsewhere in float32. Batches come in micro-batches, as if
memory were short: a ratio of means is not the mean of their ratios, so georeg.accumulate pools over all of them.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn

import georeg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/plain_loop"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the networks are too small for more
torch.manual_seed(options.seed)

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
images = torch.as_tensor(load_digits().data, dtype=torch.float32, device=device) / 16
train, test = images[:1500], images[1500:]
encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 8)).to(device)
decoder = nn.Sequential(nn.Linear(8, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64)).to(device)
optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
amp = torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda")
isometry = georeg.IsometryLoss(normalize=True, scope="global")  # 1 is perfect; pooled over micro-batches and ranks
exact = georeg.IsometryLoss(normalize=True, estimator="exact")  # for the numbers in print


@amp
def reconstruction(x):
    return (decoder(encoder(x)) - x).square().sum(1)


@amp
def distortion(x):
    return isometry(encoder, x).loss


def report(when):
    with torch.no_grad():
        error, score = reconstruction(test).mean(), exact(encoder, test).estimate()
    print(f"{when}: reconstruction error {error:.2f}, normalised loss {score}")


report("before")
history = []
for batch in track(torch.randint(len(train), (200 if options.quick else 1500, 128)), "training"):
    pieces = train[batch.to(device)].split(32)
    # Two passes: the first takes the sums alone, the second gives losses whose gradients add up to the whole batch's.
    losses = georeg.accumulate(isometry, [lambda x=x: distortion(x) for x in pieces])
    shares = []
    for x, iso in zip(pieces, losses, strict=True):
        error = reconstruction(x).sum() / len(batch)
        scaler.scale(error + 0.5 * iso).backward()
        shares.append((error.item(), iso.item()))
    history.append(torch.tensor(shares).sum(0))  # each micro-batch has its share of the batch's losses
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
print("last batch: reconstruction error {:.2f}, normalised loss {:.3f}".format(*history[-1].tolist()))
report("after")
options.output_dir.mkdir(parents=True, exist_ok=True)
figure = Figure(figsize=(8, 3), layout="constrained")
titles = {"reconstruction error of a batch": "log", "normalised isometry loss, 1 is perfect": "linear"}
for panel, values, title in zip(figure.subplots(1, 2), torch.stack(history).T, titles, strict=True):
    panel.plot(range(1, len(history) + 1), values, lw=1)
    panel.set(title=title, xlabel="step", xscale="log", yscale=titles[title])
figure.savefig(options.output_dir / "plain_loop.png", dpi=90)
