"""A small classifier trained in place: its penultimate features stand in for a perceptual network's, by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from georeg_diffusion.data.images import Images
from georeg_diffusion.progress import progress


@dataclass(frozen=True)
class FeatureNetwork:
    """Features of images, with the name under which every figure that used them is reported.

    Attributes:
        name: such as ``"digits-cnn (98.6 % on 360 held out)"``.
        features: the network, images ``(B, C, H, W)`` in [−1, 1] ↦ ``(B, F)``.
        accuracy: share of held-out images it classifies right.
    """

    name: str
    features: nn.Module
    accuracy: float


def train_classifier(
    images: Images, *, seed: int = 0, epochs: int = 12, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """Train a small convolutional classifier on a labelled image set; 20 % are held out for its accuracy.

    Raises:
        ValueError: the images have no labels.
    """
    if images.labels is None:
        raise ValueError(f"images: {images.name} has no labels, expected a labelled set")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        held, kept = order[: len(order) // 5], order[len(order) // 5 :]
        pixels, labels = images.batch(range(len(images))).to(device), images.labels.to(device)
        features = nn.Sequential(
            nn.Conv2d(images.channels, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.GELU(),
        ).to(device)
        network = nn.Sequential(features, nn.Linear(64, int(labels.max()) + 1)).to(device)
        batch, rate = 128, 3e-3
        steps = epochs * (len(kept) // batch)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2))
        with progress("Classifier for features", steps) as bar:
            for _ in range(epochs):
                for chosen in kept[torch.randperm(len(kept))].split(batch):
                    if len(chosen) < batch:
                        continue
                    loss = nn.functional.cross_entropy(network(pixels[chosen]), labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.advance()
        network.eval().requires_grad_(False)
        accuracy = float((network(pixels[held]).argmax(1) == labels[held]).float().mean())
    name = f"features of a {images.name} classifier trained in place ({accuracy:.1%} of {len(held)} held-out images right)"
    return FeatureNetwork(name, features, accuracy)


@torch.no_grad()
def features_of(network: FeatureNetwork, pixels: Tensor, *, batch_size: int = 256) -> Tensor:
    """Features ``(N, F)`` of images ``(N, C, H, W)``, in batches."""
    return torch.cat([network.features(chunk) for chunk in pixels.split(batch_size)])
