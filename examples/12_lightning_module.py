"""An autoencoder of scikit-learn's digits as a LightningModule, its encoder pulled towards a scaled isometry.

Lightning adds up the gradients of several batches before a step (accumulate_grad_batches). Running means (momentum)
keep such small batches from each being a population of its own; scope="global" pools over the processes of DDP.
"""

import argparse
from pathlib import Path

import georeg_diffusion._compat  # noqa: F401 # isort: skip  # mends PyPI's torchvision, which Lightning's metrics import
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import georeg


class Autoencoder(pl.LightningModule):
    def __init__(self, weight):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 64))
        # A submodule: its running means are saved in checkpoints and move with the model.
        self.isometry = georeg.IsometryLoss(normalize=True, scope="global", momentum=0.9)
        self.exact = georeg.IsometryLoss(normalize=True, estimator="exact")  # for the numbers in print
        self.weight = weight

    def error(self, x):
        return (self.decoder(self.encoder(x)) - x).square().sum(1).mean()

    def training_step(self, batch, index):
        error, iso = self.error(*batch), self.isometry(self.encoder, *batch).loss
        self.log_dict({"train_error": error, "train_isometry": iso}, prog_bar=True)
        return error + self.weight * iso

    def validation_step(self, batch, index):
        # Lightning validates in inference mode, in which the losses work as well.
        self.log_dict({"error": self.error(*batch), "isometry": self.exact(self.encoder, *batch).loss})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/lightning_module"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more
    pl.seed_everything(options.seed, verbose=False)
    images = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    train = DataLoader(TensorDataset(images[:1500]), batch_size=32, shuffle=True)
    test = DataLoader(TensorDataset(images[1500:]), batch_size=297)
    trainer = pl.Trainer(
        max_epochs=15 if options.quick else 125,
        accumulate_grad_batches=4,
        precision="16-mixed" if torch.cuda.is_available() else "32-true",
        **{"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
    )
    model = Autoencoder(weight=0.5)
    for when in ("before", "after"):
        scores = trainer.validate(model, test, verbose=False)[0]
        print(f"{when}: reconstruction error {scores['error']:.2f}, normalised loss {scores['isometry']:.3f}")
        trainer.fit(model, train) if when == "before" else None
    both = torch.stack([images[1500:1512], model.decoder(model.encoder(images[1500:1512])).detach()])
    axes = Figure(figsize=(8, 2), layout="constrained").subplots()
    axes.imshow(both.reshape(2, 12, 8, 8).transpose(1, 2).reshape(16, 96), cmap="gray", vmin=0, vmax=1)
    axes.set_title(f"held-out digits above, through 8 isometric numbers below (loss {scores['isometry']:.3f})")
    axes.axis("off")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(options.output_dir / "lightning_module.png", dpi=90)


if __name__ == "__main__":
    main()
