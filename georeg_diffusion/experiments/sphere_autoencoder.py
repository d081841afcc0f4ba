"""The paper's toy: autoencoders S² → R² that differ in their loss alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import georeg
from georeg_diffusion.experiments.sphere_region import Region
from georeg_diffusion.latent_metrics import StereographicFlat

Map = Callable[[Tensor], Tensor]

SPHERE = georeg.Sphere(radius=1.0)
METRICS: dict[str, georeg.Manifold | None] = {"none": None, "flat": StereographicFlat(), "sphere": SPHERE}
"""Of the isometry loss: none without it, Euclidean in stereographic coordinates (the paper's G = I), the sphere's own."""

ESTIMATORS: dict[str, georeg.Estimator] = {
    "exact": georeg.Exact(),
    "gaussian": georeg.Hutchinson(distribution="gaussian"),
    "fixed-norm": georeg.Hutchinson(distribution="sphere"),
}
"""Of the loss's traces: exact, one Gaussian probe (the paper's), one of fixed norm (our default)."""

WEIGHT = 0.03
"""λ of the normalised isometry loss, beside a reconstruction loss of order 1 at the start."""

BATCH, HELD_OUT, CURVE_POINTS = 256, 512, 60
_HELD_OUT_SEED = 10_000  # away from the seeds of training


@dataclass(frozen=True)
class Trained:
    """A trained autoencoder.

    Attributes:
        encoder, decoder: S² → R² → R³.
        curve: of its training: step, reconstruction error and normalised isometry loss (exact), at held-out points.
    """

    encoder: nn.Module
    decoder: nn.Module
    curve: tuple[tuple[int, float, float], ...]


def train_autoencoder(
    metric: str,
    *,
    steps: int,
    seed: int,
    region: Region | None = None,
    estimator: str = "exact",
    probe_seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Trained:
    """Train one: E‖x̂ − x‖² + λ · d · E[Tr R²]/E[Tr R]² (Eq. 6, normalised).

    Args:
        metric: of :data:`METRICS`.
        steps: of Adam, each of 256 new points.
        seed: of weights and points, so that two trainings differ in their loss alone, or in ``probe_seed`` alone.
        region: of the sphere; by default all but the cap within 60° of the chart's pole.
        estimator: of :data:`ESTIMATORS`.
        probe_seed: of the estimator's probes.
        tick: called after each step.

    Raises:
        ValueError: an unknown metric or estimator; fewer than one step.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(METRICS)}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: got {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    region = region or Region()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder = networks()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=max(steps, 2))
    isometry = georeg.IsometryLoss(domain=METRICS[metric], estimator=ESTIMATORS[estimator], normalize=True)
    points, probes = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(probe_seed)
    held_out = region.sample(HELD_OUT, torch.Generator().manual_seed(_HELD_OUT_SEED + seed))
    curve = []
    with _one_thread():
        for step in range(steps):
            if step % max(1, steps // CURVE_POINTS) == 0 or step == steps - 1:
                curve.append((step, reconstruction_error(encoder, decoder, held_out), isometry_of(encoder, held_out).value))
            x = region.sample(BATCH, points)
            loss = _reconstruction(encoder, decoder, x)
            if metric != "none":
                loss = loss + WEIGHT * isometry(encoder, x, generator=probes).loss
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            tick()
    return Trained(encoder.requires_grad_(False), decoder.requires_grad_(False), tuple(curve))


def networks() -> tuple[nn.Module, nn.Module]:
    """Encoder S² → R² and decoder R² → R³, with He's initialisation."""
    return _mlp(3, 2), _mlp(2, 3)


def isometry_of(f: Map, x: Tensor) -> georeg.Estimate:
    """Normalised isometry loss of f on the sphere, by the exact Jacobian; 1 is a scaled isometry."""
    with torch.no_grad():
        return georeg.IsometryLoss(domain=SPHERE, estimator=georeg.Exact(), normalize=True)(f, x).estimate()


def reconstruction_error(encoder: Map, decoder: Map, x: Tensor) -> float:
    """E‖x̂ − x‖²."""
    with torch.no_grad():
        return float(_reconstruction(encoder, decoder, x))


def scores_of(f: Map, region: Region, *, points: int = 4096, seed: int = 0) -> dict[str, float]:
    """What a map of the region to the plane does to its geometry, at points that none was trained on.

    ============== =====================================================================================================
    loss           normalised isometry loss with the sphere's metric; 1 is a scaled isometry
    condition      mean condition number (Eq. 10): shapes only, 1 keeps all angles
    log_vor        variance of log σ²: sizes too, 0 where they are equal everywhere
    rtl            length over chord of the images of great-circle arcs; 1 maps geodesics to straight lines
    distances      standard deviation of log(distance in the plane / distance on the sphere) over pairs; 0 is an isometry
    ============== =====================================================================================================
    """
    generator = torch.Generator().manual_seed(2 * _HELD_OUT_SEED + seed)
    x = region.sample(points, generator)
    a, b = region.pairs(points // 8, generator)
    with torch.no_grad():
        images = torch.stack([f(y) for y in georeg.slerp(a, b, torch.linspace(0, 1, 65))])
    stretch = (images[-1] - images[0]).norm(dim=1) / torch.atan2(torch.linalg.cross(a, b).norm(dim=1), (a * b).sum(1))
    return {
        "loss": isometry_of(f, x).value,
        "condition": float(georeg.diagnostics.mean_condition_number(f, x, domain=SPHERE)),
        "log_vor": float(georeg.diagnostics.variance_of_riemannian_metric(f, x, domain=SPHERE, log=True)),
        "rtl": float(georeg.diagnostics.relative_trajectory_length(images).mean()),
        "distances": float(stretch.log().std()),
    }


def aligned(f: Map, x: Tensor, reference: Map) -> Map:
    """f up to the similarity that neither loss nor latent can see: moved, turned and scaled onto the reference at x."""
    with torch.no_grad():
        y, target = f(x).double(), reference(x).double()
    centre, target = y.mean(0), target - target.mean(0)
    u, _, vh = torch.linalg.svd((y - centre).mT @ target)
    scale = target.square().sum().sqrt() / (y - centre).square().sum().sqrt()
    return lambda p: ((f(p).detach().double() - centre) @ (u @ vh)) * scale


def disagreement(f: Map, g: Map, x: Tensor) -> float:
    """Root mean square distance of two maps' latents after alignment, over the latents' own root mean square radius."""
    reference = g(x).detach().double()
    reference = reference - reference.mean(0)
    moved = aligned(f, x, g)(x)
    return float((moved - reference).square().sum().sqrt() / reference.square().sum().sqrt())


def _reconstruction(encoder: Map, decoder: Map, x: Tensor) -> Tensor:
    return (decoder(encoder(x)) - x).square().sum(1).mean()


def _mlp(inputs: int, outputs: int, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise([inputs, width, width, width, outputs]):
        linear = nn.Linear(a, b)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


@contextmanager
def _one_thread() -> Iterator[None]:
    """The networks are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
