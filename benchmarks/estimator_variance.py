"""Which estimator for which budget: error of each against the Jacobian products it spends, on three spectra.

    python benchmarks/estimator_variance.py

prints the table of docs/estimators.md and writes docs/images/estimator_variance.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import georeg
from georeg.estimators.auto import XTRACE_FROM

SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "near-flat: λ in [0.8, 1.2]": lambda d: torch.linspace(0.8, 1.2, d, dtype=torch.float64),
    "decaying: λ = 1/i": lambda d: 1 / torch.arange(1, d + 1, dtype=torch.float64),
    "one spike: λ₁ = √d, else 1": lambda d: torch.cat([torch.tensor([d**0.5]), torch.ones(d - 1)]).double(),
}
ESTIMATORS: dict[str, tuple[int, Callable[[int], georeg.Estimator]]] = {
    # name: the smallest budget, and how to spend a budget of P products
    "Hutchinson, Gaussian": (2, lambda P: georeg.Hutchinson(P // 2, "gaussian")),
    "Hutchinson, sphere": (2, lambda P: georeg.Hutchinson(P // 2)),
    "Gram": (2, lambda P: georeg.Gram(P)),
    "HutchPP": (8, lambda P: georeg.HutchPP(P // 2)),
    "XTrace": (8, lambda P: georeg.XTrace(P // 2)),
}
BUDGETS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 120)
QUANTITIES = ("relative error of τ₁", "relative error of τ₂", "gradient noise of the isometry loss,\nrelative to the loss")
Results = dict[tuple[str, str], list[tuple[int, list[float]]]]


def errors(estimator: georeg.Estimator, spectrum: Tensor, repeats: int) -> tuple[list[float], int]:
    """Relative standard deviations of τ₁, τ₂ and of the loss's gradient, and the products spent.

    The gradient is that of τ₂/τ₁² pooled over many samples, ∇τ₂/m₁² − 2(m₂/m₁³)∇τ₁ with exact means m, along
    three changes of the Jacobian as large as itself, relative to the loss.
    """
    d, generator = len(spectrum), torch.Generator().manual_seed(0)
    scale = spectrum.sqrt()
    changes = torch.randn(3, d, d, generator=generator, dtype=torch.float64) * (spectrum.sum().sqrt() / d)
    theta = torch.zeros(repeats, 3, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return x * scale + sum(theta[:, p : p + 1] * (x @ changes[p]) for p in range(3))

    x = torch.zeros(repeats, d, dtype=torch.float64)
    m = georeg.spectral_moments(f, x, estimator=estimator, generator=generator)
    t1, t2 = spectrum.sum(), spectrum.square().sum()
    surrogate = m.trace_sq / t1**2 - 2 * t2 / t1**3 * m.trace
    (gradient,) = torch.autograd.grad(surrogate.sum(), theta)
    noise = gradient.var(0).mean().sqrt() / (t2 / t1**2)
    values = ((m.trace - t1).square().mean().sqrt() / t1, (m.trace_sq - t2).square().mean().sqrt() / t2, noise)
    return [float(v.detach()) for v in values], m.num_products


def measure(d: int, repeats: int, budgets: tuple[int, ...] = BUDGETS) -> Results:
    """For each spectrum and estimator: (products, relative errors) over the budgets below d."""
    out: Results = {}
    for spectrum, make_spectrum in SPECTRA.items():
        for name, (least, make) in ESTIMATORS.items():
            rows = [errors(make(P), make_spectrum(d), repeats) for P in budgets if least <= P < d]
            out[spectrum, name] = [(products, values) for values, products in rows]
    return out


def table(results: Results, budgets: tuple[int, ...] = (8, 32, 96)) -> str:
    """Markdown: products × relative variance of each quantity at some budgets; the least in bold."""
    lines = []
    for row, quantity in enumerate(QUANTITIES):
        lines += ["", f"Products × ({' '.join(quantity.split())})²", ""]
        heads = [f"{spectrum.split(':')[0]}, {P}" for spectrum in SPECTRA for P in budgets]
        lines += ["| estimator | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        cells = {
            name: [
                {p: p * values[row] ** 2 for p, values in results[spectrum, name]}.get(P, float("nan"))
                for spectrum in SPECTRA
                for P in budgets
            ]
            for name in ESTIMATORS
        }
        best = [min(c for c in column if c == c) for column in zip(*cells.values(), strict=True)]
        for name, values in cells.items():
            shown = ["–" if v != v else f"**{v:.2g}**" if v == b else f"{v:.2g}" for v, b in zip(values, best, strict=True)]
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def plot(results: Results, d: int, path: Path) -> None:
    """Relative error against products: a column for each spectrum, a row for each quantity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(QUANTITIES), len(SPECTRA), figsize=(11, 9), sharex=True, sharey="row", layout="constrained"
    )
    colours = dict(zip(ESTIMATORS, ("#9db8d9", "#1f4e9c", "#c98b1f", "#3f9b6b", "#b3282d"), strict=True))
    for column, spectrum in enumerate(SPECTRA):
        for row, quantity in enumerate(QUANTITIES):
            axis = axes[row, column]
            for name, colour in colours.items():
                products, values = zip(*results[spectrum, name], strict=True)
                style = "--" if name == "Hutchinson, Gaussian" else "-"
                axis.loglog(products, [v[row] for v in values], style, marker="o", color=colour, label=name, markersize=4)
            for switch in (XTRACE_FROM, d):
                axis.axvline(switch, color="0.4", linestyle=":", linewidth=1)
            axis.grid(alpha=0.25, which="major")
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xticks([2, 4, 8, 16, 32, 64, 128], ["2", "4", "8", "16", "32", "64", "128"])
            axis.minorticks_off()
            if row == 0:
                axis.set_title(spectrum, fontsize=11)
                for text, at, side in (
                    ("Hutchinson", XTRACE_FROM, "right"),
                    ("XTrace", XTRACE_FROM, "left"),
                    ("Exact", d, "left"),
                ):
                    offset = (-3 if side == "right" else 3, -2)
                    axis.annotate(text, (at, 1), offset, xycoords=("data", "axes fraction"), textcoords="offset points",
                                  ha=side, va="top", fontsize=8, color="0.35", annotation_clip=False)  # fmt: skip
            if row == len(QUANTITIES) - 1:
                axis.set_xlabel("Jacobian products")
            if column == 0:
                axis.set_ylabel(quantity)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ESTIMATORS), frameon=False)
    figure.suptitle(f'Which estimator for which budget, d = {d} (at the top: what estimator="auto" takes)', fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=128, help="d, the dimension of both sides")
    parser.add_argument("--repeats", type=int, default=400, help="independent estimates for each error")
    parser.add_argument("--output", type=Path, default=Path("docs/images/estimator_variance.png"))
    options = parser.parse_args()
    results = measure(options.dim, options.repeats)
    print(table(results))
    plot(results, options.dim, options.output)
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    main()
