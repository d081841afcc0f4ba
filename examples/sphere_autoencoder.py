"""Flatten the sphere: an autoencoder S² → R² with three losses (the paper's Fig. 2 and Fig. I to III).

    python examples/sphere_autoencoder.py              # pictures, table and metrics.json in outputs/sphere
    python examples/sphere_autoencoder.py --quick      # the same in seconds, less well trained

Three encoders see the same points and differ in their loss alone: reconstruction; with the isometry
loss for G = I in stereographic coordinates (of encoder ∘ Π⁻¹, Euclidean in z); and with the isometry
loss for the sphere's own metric. What to expect:

* Gauss: no region of S² maps to the plane isometrically, so the normalised loss cannot reach 1, and
  the wider the region, the farther it stays. The cap within 60° of the chart's pole (0, 0, 1) is left
  out, where z is infinite: z stays below √3, and three quarters of the sphere are kept.
* G = I has a perfect solution, and it is the wrong one: the stereographic projection itself. It is
  conformal, so that its condition number is 1, while lengths at the rim are four times those at the
  centre. The condition number sees only the shape of the discs in the picture, log-VoR also how their
  sizes differ, and the normalised loss weighs both: it is the one to compare by.
* Azimuthal equidistant projection, a cartographer's compromise, is the yardstick; no network is trained.

Everything in the table is measured with the sphere's metric and an exact Jacobian, at points that were
not trained on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

import georeg

CAP = math.radians(60)  # half-angle of the cap that is left out around the chart's pole
WEIGHT = 0.03  # of the normalised isometry loss, beside a reconstruction loss of order 1 at the start
SPHERE, CHART = georeg.Sphere(radius=1.0), georeg.SphereStereographic(radius=1.0)
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8A8A8A"  # Okabe and Ito's palette
Map = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------------------------------------- training
def sample_points(n: int, generator: torch.Generator) -> Tensor:
    """Points uniform (by area) on S² without the cap, ``(n, 3)``."""
    height = -1 + (1 + math.cos(CAP)) * torch.rand(n, generator=generator)
    phi = 2 * math.pi * torch.rand(n, generator=generator)
    radius = (1 - height.square()).sqrt()
    return torch.stack([radius * phi.cos(), radius * phi.sin(), height], dim=1)


def mlp(inputs: int, outputs: int, width: int = 64) -> nn.Sequential:
    """Three hidden layers with He's initialisation."""
    sizes = [inputs, width, width, width, outputs]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.SiLU()]
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Run:
    """A trained autoencoder and its curves ``(points, 3)``: step, reconstruction error, normalised loss."""

    encoder: nn.Module
    decoder: nn.Module
    curve: np.ndarray


def reconstruction(encoder: Map, decoder: Map, x: Tensor) -> Tensor:
    """E‖decoder(encoder(x)) − x‖²."""
    return (decoder(encoder(x)) - x).square().sum(1).mean()


def train(
    metric: str, *, steps: int, seed: int, probe_seed: int = 0, exact: bool = True, tick: Callable[[], None] = lambda: None
) -> Run:
    """Train one autoencoder; ``metric`` is ``"none"``, ``"flat"`` (G = I in the chart) or ``"sphere"``.

    The seed fixes weights and points, so that runs differ in their loss alone, or in ``probe_seed`` alone.
    """
    torch.manual_seed(seed)
    encoder, decoder = mlp(3, 2), mlp(2, 3)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    estimator = georeg.Exact() if exact else georeg.Hutchinson(num_probes=1)
    isometry = georeg.IsometryLoss(domain=SPHERE if metric == "sphere" else None, estimator=estimator, normalize=True)
    points, probes = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(probe_seed)
    held_out, curve = sample_points(512, torch.Generator().manual_seed(10_000 + seed)), []
    for step in range(steps):
        if step % max(1, steps // 60) == 0 or step == steps - 1:
            with torch.no_grad():
                error = float(reconstruction(encoder, decoder, held_out))
            curve.append((step, error, isometry_of(encoder, held_out).value))
        x = sample_points(256, points)
        loss = reconstruction(encoder, decoder, x)
        if metric == "sphere":
            loss = loss + WEIGHT * isometry(encoder, x, generator=probes).loss
        elif metric == "flat":
            in_chart = isometry(lambda z: encoder(CHART.to_ambient(z)), CHART.from_ambient(x), generator=probes)
            loss = loss + WEIGHT * in_chart.loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        tick()
    return Run(encoder, decoder, np.array(curve))


# -------------------------------------------------------------------------------------------- measurement
def isometry_of(f: Map, x: Tensor) -> georeg.Estimate:
    """Normalised isometry loss of f on the sphere, exact; 1 is a scaled isometry."""
    with torch.no_grad():
        return georeg.IsometryLoss(domain=SPHERE, estimator=georeg.Exact(), normalize=True)(f, x).estimate()


def geometry(f: Map, x: Tensor) -> dict[str, float]:
    """Normalised loss (with standard error), mean condition number and log-VoR, with the sphere's metric."""
    loss = isometry_of(f, x)
    scores = {"normalised_loss": loss.value, "stderr": loss.stderr or 0.0}
    scores["condition_number"] = float(georeg.diagnostics.mean_condition_number(f, x, domain=SPHERE))
    scores["log_vor"] = float(georeg.diagnostics.variance_of_riemannian_metric(f, x, domain=SPHERE, log=True))
    return scores


def equidistant(x: Tensor) -> Tensor:
    """Azimuthal equidistant projection from the south pole, ``(B, 3)`` to ``(B, 2)``."""
    radius = x[:, :2].norm(dim=1, keepdim=True)
    return torch.atan2(radius, -x[:, 2:]) * x[:, :2] / radius


def probe_stderr(a: Tensor) -> float:
    """Standard error of one Gaussian probe of Tr A: Var[vᵀAv] = 2‖S‖²_F with S = (A + Aᵀ)/2.

    Only the symmetric part counts, since vᵀAv = vᵀSv. For a general Gaussian A, ‖S‖² ≈ ‖A‖²/2: the naive
    √2‖A‖_F is too large by √2.
    """
    return float(2**0.5 * torch.linalg.matrix_norm((a + a.mT) / 2))


def trace_errors(a: Tensor, numbers: list[int], *, repeats: int, generator: torch.Generator) -> Tensor:
    """Errors of Hutchinson's estimate (1/N) Σ vᵢᵀA vᵢ − Tr A (Eq. 8) for each N and repeat, ``(len(numbers), repeats)``."""
    errors = []
    for number in numbers:
        probes = (torch.randn(number, len(a), generator=generator, dtype=a.dtype) for _ in range(repeats))
        errors.append(torch.stack([((v @ a) * v).sum(1).mean() - a.trace() for v in probes]))
    return torch.stack(errors)


# ------------------------------------------------------------------------------------------------ figures
def graticule() -> list[tuple[str, float, Tensor]]:
    """Parallels and meridians of the region: kind, colour value in [0, 1] and points ``(k, 3)``."""
    lines = []
    for theta in np.linspace(15, 120, 8):  # degrees from the south pole; the cap begins at 120°
        phi = torch.linspace(0, 2 * math.pi, 181)
        lines.append(("parallel", (theta - 15) / 105, on_sphere(torch.full_like(phi, math.radians(theta)), phi)))
    for longitude in range(0, 360, 30):
        theta = torch.linspace(0.02, math.pi - CAP, 90)
        lines.append(("meridian", 0.0, on_sphere(theta, torch.full_like(theta, math.radians(longitude)))))
    return lines


def on_sphere(theta: Tensor, phi: Tensor) -> Tensor:
    """The point at angle theta from the south pole and longitude phi, ``(..., 3)``."""
    return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), -theta.cos()], dim=-1)


def discs(radius: float = math.radians(7)) -> list[Tensor]:
    """Equal discs on the sphere (Tissot's indicatrix), each an outline ``(k, 3)``: their images show the distortion."""
    centres = [on_sphere(torch.tensor(0.0), torch.tensor(0.0))]
    for theta, count in ((37.5, 6), (75.0, 12), (105.0, 12)):
        for k in range(count):
            centres.append(on_sphere(torch.tensor(math.radians(theta)), torch.tensor(2 * math.pi * (k + 0.5) / count)))
    outlines, turn = [], torch.linspace(0, 2 * math.pi, 49)[:, None]
    for c in centres:
        across = torch.linalg.cross(c, torch.tensor([1.0, 0.0, 0.0]) if abs(c[0]) < 0.9 else torch.tensor([0.0, 1.0, 0.0]))
        e = across / across.norm()
        outlines.append(math.cos(radius) * c + math.sin(radius) * (turn.cos() * e + turn.sin() * torch.linalg.cross(c, e)))
    return outlines


def aligned(f: Map, x: Tensor, reference: Map) -> Map:
    """f up to the similarity that loss and latent cannot see: moved, turned and scaled onto the reference."""
    with torch.no_grad():
        y, target = f(x).double(), reference(x).double()
        target = target - target.mean(0)
        centre = y.mean(0)
        u, _, vh = torch.linalg.svd((y - centre).mT @ target)
        scale = target.square().sum().sqrt() / (y - centre).square().sum().sqrt()
    return lambda p: ((f(p).detach().double() - centre) @ (u @ vh)) * scale


def view(points: Tensor) -> Tensor:
    """Right, up and towards the eye, seen from 35° below the equator: the missing cap is at the top."""
    x, y, z = points.unbind(1)
    c, s = math.cos(math.radians(35)), math.sin(math.radians(35))
    return torch.stack([x, c * z - s * y, -c * y - s * z], dim=1)


def draw(axes: Axes, f: Map, extent: float) -> None:
    """Draw graticule and discs through f to the plane; a third coordinate, if any, is depth and fades the far side."""
    for outline in (f(o) for o in discs()):
        if outline.shape[1] == 2 or outline[:, 2].min() > 0:
            axes.add_patch(Polygon(outline[:, :2].numpy(), facecolor=ORANGE, alpha=0.8, zorder=2))
    for kind, value, points in graticule():
        line, width = f(points).numpy(), 2.0 if kind == "parallel" else 0.6
        colour = plt.get_cmap("viridis")(0.92 * value) if kind == "parallel" else GREY
        far = line[:, 2] < 0 if line.shape[1] == 3 else np.zeros(len(line), bool)
        for hidden, alpha in ((~far, 0.13), (far, 1.0)):
            axes.plot(*np.where(hidden[:, None], np.nan, line[:, :2]).T, color=colour, lw=width, alpha=alpha)
    axes.set(aspect="equal", xlim=(-extent, extent), ylim=(-extent, extent))
    axes.axis("off")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG and close the figure."""
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def figure_latents(runs: dict[str, Run], scores: dict[str, dict[str, float]], x: Tensor, path: Path) -> None:
    """Fig. 2: the sphere and the three latent planes."""
    figure, axes = plt.subplots(1, 4, figsize=(14.5, 4.6), layout="constrained")
    axes[0].add_patch(Circle((0, 0), 1, color="#F3F3F3", zorder=0))
    draw(axes[0], view, extent=1.1)
    axes[0].set_title("Input: S² without a 60° cap\nequal discs, parallels every 15°", fontsize=13)
    for panel, (name, run) in zip(axes[1:], runs.items(), strict=True):
        draw(panel, aligned(run.encoder, x, equidistant), extent=2.85)
        row = scores[name]
        numbers = (
            f"loss {row['normalised_loss']:.2f} · condition {row['condition_number']:.2f} · log-VoR {row['log_vor']:.2f}"
        )
        panel.set_title(f"{name}\n", fontsize=13)
        panel.text(0.5, 1.02, numbers, transform=panel.transAxes, ha="center", va="bottom", fontsize=11)
    colours = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.92, 8)))
    scale = plt.cm.ScalarMappable(plt.Normalize(7.5, 127.5), colours)
    bar = figure.colorbar(scale, ax=axes, pad=0.01, shrink=0.75, aspect=25, ticks=range(15, 121, 15))
    bar.set_label("distance from the south pole [°]", fontsize=11)
    save(figure, path)


def figure_hutchinson(exact: Run, repeats: list[Run], x: Tensor, path: Path) -> None:
    """Fig. II and III: latents and curves trained with the exact trace and with one random probe."""
    names = ["exact", *map(str, range(len(repeats)))]
    figure, axes = plt.subplot_mosaic([names, ["loss"] * 3 + ["error"] * 3], figsize=(14, 6.5), layout="constrained")
    for name, run in zip(names, [exact, *repeats], strict=True):
        draw(axes[name], aligned(run.encoder, x, equidistant), extent=2.55)
        axes[name].set_title("exact trace" if name == "exact" else f"one probe, seed {int(name) + 1}", fontsize=12)
    for key, column, label in (("loss", 2, "normalised isometry loss"), ("error", 1, "reconstruction error E‖x̂ − x‖²")):
        for k, run in enumerate(repeats):
            axes[key].plot(*run.curve[:, [0, column]].T, color=ORANGE, lw=1, label=None if k else "one probe, five seeds")
        axes[key].plot(*exact.curve[:, [0, column]].T, color=BLUE, lw=2, ls="--", label="exact trace")
        axes[key].set(xlabel="training step", title=f"{label}, held-out points, exact")
        axes[key].legend(frameon=False)
        axes[key].grid(alpha=0.3)
    axes["error"].set_yscale("log")
    save(figure, path)


def figure_trace(numbers: list[int], errors: Tensor, stderr: float, path: Path) -> None:
    """Fig. I: error against the number of probes. It *falls* as 1/√N ("increases" in App. A.1 is a misprint)."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    n = np.array(numbers)
    axes.loglog(n, errors.abs()[:, :8], ".", color=GREY, ms=4, label=["eight single runs"] + [None] * 7)
    axes.loglog(n, errors.square().mean(1).sqrt(), "o", color=ORANGE, label=f"root mean square of {errors.shape[1]} runs")
    axes.loglog(n, stderr / np.sqrt(n), color=BLUE, label="theory: √(2/N) ‖(A + Aᵀ)/2‖$_F$")
    axes.loglog(n, stderr * 2**0.5 / np.sqrt(n), color=BLUE, ls=":", label="with ‖A‖$_F$, which ignores that vᵀAv = vᵀAᵀv")
    axes.set(xlabel="number of probes N", ylabel="error of the trace of A", ylim=(stderr / n[-1] ** 0.5 / 30, stderr * 6))
    axes.set_title("Hutchinson's estimator, A a 256 × 256 Gaussian matrix:\nthe error falls as 1/√N")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    save(figure, path)


# --------------------------------------------------------------------------------------------------- main
def print_table(console: Console, rows: dict[str, dict[str, float]], *, title: str) -> None:
    """Print scores by name: reconstruction error, loss ± standard error, mean condition number, log-VoR."""
    table = Table("", "error", "normalised loss", "condition", "log-VoR", title=title)
    for name, row in rows.items():
        error = f"{row['reconstruction']:.1e}" if "reconstruction" in row else "–"
        loss = f"{row['normalised_loss']:.3f} ± {row['stderr']:.3f}"
        table.add_row(name, error, loss, f"{row['condition_number']:.3f}", f"{row['log_vor']:.3f}")
    console.print(table)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the example; returns the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/sphere"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
    options = parser.parse_args(argv)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are so small that a second thread only waits
    steps, repeats, console = (250 if options.quick else 1500), 5, Console()

    plan = {"Reconstruction only": "none", "Isometry, G = I in chart": "flat", "Isometry, sphere's metric": "sphere"}
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps * (len(plan) + repeats))
        common = {"steps": steps, "seed": options.seed, "tick": lambda: progress.advance(task)}
        runs = {name: train(metric, **common) for name, metric in plan.items()}
        probed = [train("sphere", exact=False, probe_seed=k + 1, **common) for k in range(repeats)]

    x = sample_points(4096, torch.Generator().manual_seed(20_000 + options.seed))
    everything = runs | {f"  one probe, seed {k + 1}": run for k, run in enumerate(probed)}
    rows = {}
    for name, run in everything.items():
        with torch.no_grad():
            error = float(reconstruction(run.encoder, run.decoder, x))
        rows[name] = {"reconstruction": error, **geometry(run.encoder, x)}
    for name, f in {"Map: stereographic": CHART.from_ambient, "Map: equidistant": equidistant}.items():
        rows[name] = geometry(f, x)
    print_table(console, rows, title="S² → R², measured with the sphere's metric on held-out points")

    numbers, generator = [2**k for k in range(13 if not options.quick else 9)], torch.Generator().manual_seed(options.seed)
    a = torch.randn(256, 256, generator=generator)
    errors, stderr = trace_errors(a, numbers, repeats=64, generator=generator), probe_stderr(a)
    title = f"Trace of a 256 × 256 Gaussian matrix A, {errors.shape[1]} runs"
    table = Table("probes N", "RMS error", "theory √(2/N) ‖(A + Aᵀ)/2‖", title=title)
    for number, error in zip(numbers[::4], errors.square().mean(1).sqrt()[::4], strict=True):
        table.add_row(f"{number}", f"{error:.1f}", f"{stderr / number**0.5:.1f}")
    console.print(table)

    pictures = [options.output_dir / f"{name}.png" for name in ("sphere_autoencoder", "hutchinson", "trace_error")]
    figure_latents(runs, rows, x, pictures[0])
    figure_hutchinson(runs["Isometry, sphere's metric"], probed, x, pictures[1])
    figure_trace(numbers, errors, stderr, pictures[2])
    (options.output_dir / "metrics.json").write_text(json.dumps(rows, indent=2))
    console.print("Look at " + ", ".join(map(str, pictures)), soft_wrap=True)
    return rows


if __name__ == "__main__":
    main()
