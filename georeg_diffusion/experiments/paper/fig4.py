"""Figure 4: the noise schedule, and when the noised samples are near a sphere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "The noise schedule, the sphere's radius and p"
SOURCE = "Figure 4, Sec. 3.1"
DATA = "none"

SIZE = 3 * 256**2
"""n of an image of 256² in colour."""

SKIP = 0.5
"""p of the paper."""

NEAR = 0.05
"""What is called near: within so much of it."""

RESOLUTION = 16


def run(lab: Lab) -> Finding:
    """Read the schedule off the scheduler; measure norms of Gaussian noise and of noised digits."""
    import torch

    from georeg_diffusion._compat import diffusers
    from georeg_diffusion.data.digits import Digits
    from georeg_diffusion.experiments.finding import Cell, Claim, Finding, Table
    from georeg_diffusion.experiments.replicates import is_below_zero, over_seeds, paired
    from georeg_diffusion.schedule import alphas_cumprod, coefficients, radius_at

    scheduler = diffusers.DDPMScheduler(beta_schedule="linear")
    steps = int(scheduler.config.num_train_timesteps)
    t = torch.arange(steps)
    start = round(SKIP * steps)
    signal, noise = coefficients(scheduler, t)
    radius, alpha_bar = radius_at(scheduler, SIZE, t), alphas_cumprod(scheduler, t)
    moments = [_chi(SIZE, 128 if lab.quick else 512, seed) for seed in lab.seeds]
    at = torch.arange(20, steps, 20)
    pixels = Digits(RESOLUTION).pixels[: 300 if lab.quick else None]
    ratios = torch.stack([_ratios(scheduler, pixels, at, seed) for seed in lab.seeds])  # (seeds, len(at), images)

    def row(k: int) -> tuple[Cell | str, ...]:
        nearest = int((at - k).abs().argmin())
        measured = Cell.of(over_seeds(ratios[:, nearest].mean(1).tolist())) if abs(int(at[nearest]) - k) < 20 else Cell(None)
        alpha = float(scheduler.alphas[k])
        return (str(k), Cell(alpha), Cell(float(alpha_bar[k])), Cell(float(noise[k])), Cell(float(radius[k])), measured)

    table = Table(
        f"{SOURCE}: {TITLE}",
        ("t", "α_t", "ᾱ_t", "√(1−ᾱ_t)", "radius r_t", "‖x_t‖/r_t, digits"),
        tuple(row(k) for k in (0, steps // 4, start, start + 1, 3 * steps // 4, steps - 1)),
        f"Linear β from {scheduler.config.beta_start:g} to {scheduler.config.beta_end:g}, T = {steps}. "
        f"r_t = √(1−ᾱ_t)·E[χ(n)] for n = {SIZE:,}. Last column: images of {RESOLUTION}², mean ± standard error over seeds.",
    )
    first = float(noise[start + 1])
    means, variances = ([one[k] for one in moments] for k in (0, 1))
    mean, variance = over_seeds(means), over_seeds(variances)
    below_one = is_below_zero(paired([1.0] * len(variances), variances))
    gated = ratios[:, at > start].mean(2)
    worst, spread = float((gated - 1).abs().max()), float(ratios[:, at > start].std(2).max())
    claims = (
        Claim(
            f"√(1−ᾱ_t) ≈ 1 for t > pT (within {NEAR:.0%})",
            1 - first <= NEAR,
            f"{first:.3f} at t = {start + 1}, {float(noise[-1]):.5f} at the end",
        ),
        Claim(
            "The mean radius of Gaussian noise is about √n",
            None if mean is None else abs(mean.value / SIZE**0.5 - 1) <= NEAR,
            f"mean {Cell.of(mean)} over {len(means)} seeds, √n = {SIZE**0.5:.2f}",
        ),
        Claim(
            "The variance of that radius is about 1",
            None if below_one is None else not below_one,
            f"variance {Cell.of(variance)} over {len(variances)} seeds; theory: n − E[χ(n)]² → 1/2",
        ),
        Claim(
            f"X_t is near the sphere of radius r_t for t > pT (mean radius within {NEAR:.0%}, digits)",
            worst <= NEAR,
            f"‖x_t‖/r_t at most {worst:.1%} off in the mean, standard deviation {spread:.1%}",
        ),
    )
    curves = {"t": t, "alpha": scheduler.alphas, "signal": signal, "noise": noise}
    picture = _picture(curves, at, ratios, start, lab.path("fig4.png"))
    notes = (
        "The figure's labels in the paper are not in its text; drawn are all coefficients of the schedule. Noised samples "
        f"have √ᾱ_t x₀ in them, which moves their norm off r_t: for digits of {RESOLUTION}² by the last column.",
    )
    return Finding((table,), (picture,), claims, notes)


def _chi(n: int, count: int, seed: int) -> tuple[float, float]:
    """Mean and variance of ‖ε‖ over so many draws of n standard normal numbers."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    norms = torch.cat([torch.randn(16, n, generator=generator).double().norm(dim=1) for _ in range(count // 16)])
    return float(norms.mean()), float(norms.var())


def _ratios(scheduler: Any, pixels: Tensor, at: Tensor, seed: int) -> Tensor:
    """‖x_t‖/r_t of each image at each timestep, ``(len(at), B)``."""
    import torch

    from georeg_diffusion.schedule import noised_at, radius_at

    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    radius = radius_at(scheduler, pixels[0].numel(), at)
    rows = [noised_at(scheduler, pixels, noise, t.expand(len(pixels))).flatten(1).norm(dim=1) for t in at]
    return torch.stack(rows).double() / radius[:, None]


def _picture(curves: dict[str, Tensor], at: Tensor, ratios: Tensor, start: int, target: Path) -> Path:
    from georeg_diffusion.report.pictures import _figure, _save

    figure = _figure(figsize=(11.5, 4.3))
    left, right = figure.subplots(1, 2)
    t, last = curves["t"], int(curves["t"][-1])
    left.plot(t, curves["alpha"], color="#009E73", lw=2, ls=(0, (5, 2)), label=r"$\alpha_t$")
    left.plot(t, curves["signal"], color="#0072B2", lw=2, label=r"$\sqrt{\bar\alpha_t}$, of the image")
    left.plot(t, curves["noise"], color="#D55E00", lw=2.4, label=r"$\sqrt{1-\bar\alpha_t}$, of the noise")
    left.set_ylim(0, 1.04)
    left.set_title("Schedule and radius of the sphere", fontsize=13)
    left.set_ylabel("coefficient", fontsize=11)
    scale = left.secondary_yaxis("right", functions=(lambda y: y * SIZE**0.5, lambda r: r / SIZE**0.5))
    scale.set_ylabel(f"radius $r_t$ at 256² (n = {SIZE:,})", fontsize=11, color="#D55E00")
    left.legend(frameon=False, fontsize=11, loc="upper left", bbox_to_anchor=(0.53, 0.76))
    mean, spread = ratios.mean((0, 2)), ratios.std(2).mean(0)
    right.fill_between(at, mean - spread, mean + spread, color="#D55E00", alpha=0.2, lw=0, label="± standard deviation")
    right.plot(at, mean, color="#D55E00", lw=2.4, label="mean of digits")
    right.axhline(1, color="0.35", lw=1.2, ls=(0, (4, 3)), label="on the sphere")
    right.set_yscale("log", base=2)
    right.set_yticks([1, 2, 4], ["1", "2", "4"])
    right.set_ylim(0.8, 8)
    right.set_title(r"How far noised samples are from it: $\|x_t\|/r_t$", fontsize=13)
    right.set_ylabel("norm over radius", fontsize=11)
    right.legend(frameon=False, fontsize=11, loc="upper left", bbox_to_anchor=(0.52, 0.76))
    for ax in (left, right):
        ax.axvspan(start, last, color="#F0E442", alpha=0.22, lw=0)
        ax.axvline(start, color="0.35", lw=1.2)
        ax.text(0.76, 0.82, f"t > pT, p = {SKIP:g}:\nisometry loss", ha="center", fontsize=11, transform=ax.transAxes)
        ax.set_xlim(0, last)
        ax.set_xlabel("timestep t (larger: noisier)", fontsize=11)
        ax.grid(alpha=0.22)
    _save(figure, target)
    return target
