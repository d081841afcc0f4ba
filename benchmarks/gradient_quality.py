"""Which estimator gives the best gradient for its work: relative gradient variance times FLOPs, on a trained U-Net.

    python benchmarks/gradient_quality.py

trains a small U-Net on scikit-learn's digits (once before, once after isometry training), takes the exact gradient of
the isometry loss by the dense Jacobian and measures the noise of each candidate around it over many draws of its
probes. Prints the tables of docs/performance.md and writes docs/images/gradient_quality.png.

The work is what the loss adds to a denoising step, counted by torch's flop counter and given in encoder passes Fₑ. The
figure of merit is noise × work, the work for a gradient of relative variance 1: lower is better, and K probes or every
k-th step leave it as it is but for what all of them share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import georeg
from georeg import Estimate
from georeg.kernels import fused, products_only
from georeg.linearize.base import differentiable_attention
from georeg_diffusion import HSpace, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.cost import flops_of
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.schedule import alphas_cumprod, noised

SPHERE = georeg.Sphere()
Surrogate = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""From x_t and h with the graph between them: a scalar whose gradient is an estimate of the loss's."""


@dataclass(frozen=True)
class Quality:
    """One candidate's noise and work."""

    name: str
    noise: float
    noise_stderr: float | None
    work: float

    @property
    def merit(self) -> float:
        return self.noise * self.work


def network(levels: int) -> nn.Module:
    """A U-Net at 16², small enough for the dense Jacobian: 256 pixels to h of 32 × 2 × 2 (4 levels) or 32 × 8 × 8 (2)."""
    unet: nn.Module = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        block_out_channels=(16, *[32] * (levels - 1)),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * (levels - 2)),
        up_block_types=(*["UpBlock2D"] * (levels - 2), "AttnUpBlock2D", "UpBlock2D"),
    )
    return unet


def train(unet: nn.Module, steps: int, weight: float, seed: int) -> None:
    """Denoising steps on digits with an isometry weight."""
    images = Digits(16)
    pixels = images.batch(range(len(images)))
    generator = torch.Generator().manual_seed(seed)
    objective = IsometricDiffusionLoss(unet, diffusers.DDPMScheduler(), gate=IsometryGate(weight=weight))
    optimizer = torch.optim.Adam(unet.parameters(), 1e-3)
    for _ in range(steps):
        batch = pixels[torch.randint(len(pixels), (32,), generator=generator)]
        optimizer.zero_grad()
        objective(batch, generator=generator).loss.backward()
        optimizer.step()


def pooled(moments: georeg.SpectralMoments, means: Tensor) -> Tensor:
    """w₁·mean τ₁ + w₂·mean τ₂ with the weights of F = d·m₂/m₁² at exact means."""
    m1, m2 = means
    d = moments.rank
    return d * (moments.trace_sq.mean() / m1**2 - 2 * m2 / m1**3 * moments.trace.mean())


def by_estimator(estimator: georeg.Estimator, means: Tensor) -> Surrogate:
    def surrogate(x: Tensor, h: Tensor, generator: torch.Generator) -> Tensor:
        lin = georeg.linearize_graph(x, h, chunk_size=1)
        return pooled(estimator(lin, SPHERE.at(x), georeg.Euclidean().at(h), generator), means)

    return surrogate


def asymmetric(means: Tensor, rank: int, *, pull: bool) -> Surrogate:
    """One contraction of dJ instead of two, unbiased because E over u of each term is the trace's derivative.

    With S = J P Jᵀ and E[u uᵀ] = I: ∇τ₁ = 2 E[uᵀ dJ P Jᵀu] and ∇τ₂ = 4 E[uᵀ S dJ P Jᵀu] = 4 E[uᵀ dJ P Jᵀ S u].
    ``pull=False`` contracts (2w₁u + 4w₂q)ᵀ dJ g with q = S u and g = P Jᵀu; ``pull=True`` contracts
    uᵀ dJ (2w₁g + 4w₂P Jᵀq), one product more.
    """
    m1, m2 = means
    w1, w2 = -2 * rank * m2 / m1**3, rank / m1**2

    def surrogate(x: Tensor, h: Tensor, generator: torch.Generator) -> Tensor:
        u = georeg.Euclidean().at(h).random_cotangent(1, generator, probe="sphere")[0]
        cotangent = u.detach().requires_grad_()
        with products_only():
            (g_graph,) = torch.autograd.grad(h, x, cotangent, create_graph=True)
        tangent = SPHERE.proju(x.detach(), g_graph.detach())
        with products_only(cotangents=True):
            (q,) = torch.autograd.grad(g_graph, cotangent, tangent, create_graph=not pull, retain_graph=True)
        if not pull:
            return ((2 * w1 * u + 4 * w2 * q.detach()).to(q) * q).sum() / len(x)
        with products_only():
            (back,) = torch.autograd.grad(h, x, q, retain_graph=True)
        right = (2 * w1 * tangent + 4 * w2 * SPHERE.proju(x.detach(), back)).to(h.dtype)
        return (g_graph * right).sum() / len(x)

    return surrogate


def apart(means: Tensor, rank: int) -> Surrogate:
    """τ₁ and τ₂ from a probe of their own each, to see what their covariance does when they share one."""
    m1, m2 = means
    one = georeg.Hutchinson()

    def surrogate(x: Tensor, h: Tensor, generator: torch.Generator) -> Tensor:
        spaces = SPHERE.at(x), georeg.Euclidean().at(h)
        first, second = (one(georeg.linearize_graph(x, h), *spaces, generator) for _ in range(2))
        return rank * (second.trace_sq.mean() / m1**2 - 2 * m2 / m1**3 * first.trace.mean())

    return surrogate


class Problem:
    """One encoder at fixed points: its exact gradient, and how far candidates scatter around it."""

    def __init__(self, unet: nn.Module, *, batch: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = Digits(16)
        x0 = images.batch(torch.randperm(len(images), generator=generator)[:batch].tolist())
        self.t = torch.randint(500, 1000, (batch,), generator=generator)
        alpha_bar = alphas_cumprod(diffusers.DDPMScheduler(), self.t)
        self.x = noised(x0, torch.randn(x0.shape, generator=generator), alpha_bar)
        self.h_space = HSpace(unet)
        parameters = list(unet.parameters())
        used = torch.autograd.grad(self.encode(self.x, self.t).sum(), parameters, allow_unused=True)
        self.parameters = [p for p, g in zip(parameters, used, strict=True) if g is not None]
        self.encoder_pass = flops_of(lambda: self.h_space.encode(self.x, self.t))
        # What the denoising loss runs anyway: h, and its backward pass, into which all of the gradient of h flows.
        own = flops_of(lambda: torch.autograd.grad(self.encode(self.x, self.t).sum(), self.parameters))
        self.own = own / self.encoder_pass
        points = self.x.detach().requires_grad_()
        h = self.encode(points, self.t)
        exact = georeg.Exact()(georeg.linearize_graph(points, h, chunk_size=16), SPHERE.at(points), georeg.Euclidean().at(h))
        self.rank = exact.rank
        self.domain_is_smaller = SPHERE.dim(points) < h[0].numel()
        self.means = torch.stack([exact.trace.mean(), exact.trace_sq.mean()]).detach()
        self.gradient = self.flat(pooled(exact, self.means))
        self.normalized = float(exact.rank * self.means[1] / self.means[0] ** 2)

    def encode(self, x: Tensor, t: Tensor) -> Tensor:
        with differentiable_attention(), fused():
            return self.h_space.encode(x, t)

    def flat(self, surrogate: Tensor) -> Tensor:
        # J does not depend on every parameter that h does: the last bias is one.
        gradients = torch.autograd.grad(surrogate, self.parameters, materialize_grads=True)
        return torch.cat([g.flatten() for g in gradients]).double()

    def measure(self, name: str, surrogate: Surrogate, repeats: int, *, share: float = 1.0) -> Quality:
        """Noise around the exact gradient; asserts first that the mean is the exact one, within its standard error."""
        generator = torch.Generator().manual_seed(1)

        def draw() -> Tensor:
            rows = torch.randperm(len(self.x), generator=generator)[: max(round(len(self.x) * share), 1)]
            points = self.x[rows].detach().requires_grad_()
            return self.flat(surrogate(points, self.encode(points, self.t[rows]), generator))

        work = flops_of(draw) / self.encoder_pass - share * self.own
        squares, total = [], torch.zeros_like(self.gradient)
        for _ in range(repeats):
            error = draw() - self.gradient
            total += error
            squares.append(float(error.square().sum() / self.gradient.square().sum()))
        noise = Estimate.of(torch.tensor(squares, dtype=torch.float64))
        bias = float((total / repeats).square().sum() / self.gradient.square().sum())
        expected = noise.value / repeats
        # ‖mean error‖² has expectation noise/R without bias; its own scatter is at most of that order.
        assert bias <= 5 * expected, f"{name} is biased: ‖mean error‖² = {bias:.3g}, expected {expected:.3g}"
        return Quality(name, noise.value, noise.stderr, work)


def candidates(problem: Problem) -> list[tuple[str, Surrogate, float]]:
    """Name, surrogate and share of the batch."""
    means, rank = problem.means, problem.rank
    one = by_estimator(georeg.Hutchinson(), means)
    small, large = ("domain", "codomain") if problem.domain_is_smaller else ("codomain", "domain")
    rows: list[tuple[str, Surrogate, float]] = [(f"Hutchinson, fixed norm, {small} (default)", one, 1.0)]
    for law, label in (("sphere", "fixed norm"), ("gaussian", "Gaussian"), ("rademacher", "Rademacher")):
        for side in (small, large):
            if (law, side) != ("sphere", small):
                rows.append((f"Hutchinson, {label}, {side}", by_estimator(georeg.Hutchinson(1, law, side), means), 1.0))
    rows += [
        ("Hutchinson, 4 probes", by_estimator(georeg.Hutchinson(4), means), 1.0),
        ("τ₁ and τ₂ by different probes", apart(means, rank), 1.0),
        ("half of the batch", one, 0.5),
        ("asymmetric, 5 Fₑ", asymmetric(means, rank, pull=True), 1.0),
        ("asymmetric, 4 Fₑ", asymmetric(means, rank, pull=False), 1.0),
        ("Gram, 4 probes", by_estimator(georeg.Gram(4), means), 1.0),
        ("Gram, 16 probes", by_estimator(georeg.Gram(16), means), 1.0),
        ("HutchPP, 8 probes", by_estimator(georeg.HutchPP(8), means), 1.0),
        ("XTrace, 8 probes", by_estimator(georeg.XTrace(8), means), 1.0),
        ("exact Jacobian", by_estimator(georeg.Exact(), means), 1.0),
    ]
    return rows


def measure(unet: nn.Module, *, batch: int, repeats: int) -> tuple[Problem, list[Quality]]:
    """The candidates at one state of the network, in ascending order of noise × work."""
    problem = Problem(unet, batch=batch)
    found = [
        problem.measure(name, surrogate, 1 if name.startswith("exact") else repeats, share=share)
        for name, surrogate, share in candidates(problem)
    ]
    # At random steps, one in four with weight 4: E‖4g·1 − ∇‖² = 4(V + 1) − 1 in units of ‖∇‖².
    default = next(q for q in found if "default" in q.name)
    found.append(Quality("one step in four, weight 4 (computed)", 4 * default.noise + 3, None, default.work / 4))
    return problem, sorted(found, key=lambda q: q.merit)


Results = dict[str, tuple[Problem, list[Quality]]]


def states(*, pretraining: int, steps: int, batch: int, repeats: int, networks: tuple[int, ...] = (4, 2)) -> Results:
    """Two networks (h smaller than x, h larger than x), before and after training with the isometry loss."""
    results: Results = {}
    for levels in networks:
        torch.manual_seed(0)
        unet = network(levels)
        for stage, length, weight in (("denoising only", pretraining, 0.0), ("isometric", steps, 1e-2)):
            train(unet, length, weight, seed=levels)
            problem, found = measure(unet, batch=batch, repeats=repeats)
            sizes = f"d = {problem.rank}, {'x' if problem.domain_is_smaller else 'h'} smaller"
            results[f"{stage}, loss {problem.normalized:.2f} ({sizes})"] = (problem, found)
    return results


def table(results: Results) -> str:
    """Markdown, one table for each state."""
    lines = []
    for title, (_, found) in results.items():
        lines += [f"**{title}**", "", "| gradient | relative variance | work, Fₑ | variance × work |", "|---|---|---|---|"]
        for q in found:
            error = "" if q.noise_stderr is None else f" ± {q.noise_stderr:.1g}"
            noise = "0" if q.noise < 1e-9 else f"{q.noise:.3g}{error}"
            lines.append(f"| {q.name} | {noise} | {q.work:.1f} | {'0' if q.noise < 1e-9 else f'{q.merit:.3g}'} |")
        lines.append("")
    return "\n".join(lines)


def plot(results: Results, target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.7 * (len(results) // 2)), layout="constrained")  # two states of each network
    axes = figure.subplots(len(results) // 2, 2, squeeze=False).flatten()
    kinds = {"default": "o", "Hutchinson": "s", "half": "D", "one step": "*", "different": "d", "asymmetric": "^"}
    kinds |= {"Gram": "v", "HutchPP": "P", "XTrace": "X"}
    for ax, (title, (_, found)) in zip(axes, results.items(), strict=True):
        shown = sorted((q for q in found if not q.name.startswith("exact")), key=lambda q: q.name)
        best = min(q.merit for q in shown)
        work = torch.logspace(0.5, 2.1, 20)
        for factor in (1, 3, 10, 30):
            ax.plot(work, factor * best / work, color="0.85", lw=1, zorder=0)
        for number, q in enumerate(shown):
            kind = next(key for key in kinds if key in q.name)
            color = "#D55E00" if kind == "default" else f"C{number % 10}"
            ax.plot(q.work, q.noise, kinds[kind], color=color, ms=9 if kind == "default" else 6, label=q.name)
        ax.set(xscale="log", yscale="log", title=title)
        ax.set_xlabel("work that the loss adds, encoder passes Fₑ")
        ax.set_ylabel("relative variance of the gradient")
        ax.grid(alpha=0.25, which="both")
        ax.legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(
        "Noise of the isometry loss's gradient against its work (grey: equal noise × work; lower left is better)"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps and draws: whether it runs, not what it finds")
    parser.add_argument("--draws", type=int, default=100, help="of each candidate")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/gradient_quality.png"))
    arguments = parser.parse_args()
    sizes = (
        {"pretraining": 2, "steps": 2, "batch": 2, "repeats": 2}
        if arguments.quick
        else {"pretraining": 300, "steps": 300, "batch": 8, "repeats": arguments.draws}
    )
    results = states(**sizes)
    print(table(results))
    plot(results, arguments.plot)


if __name__ == "__main__":
    main()
