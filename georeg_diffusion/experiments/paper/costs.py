"""Appendix A.2: what the Jacobian, its products and a training step cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from georeg import Estimate
    from georeg_diffusion.experiments.finding import Claim, Finding, Table
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Cost of the Jacobian, of its products and of a training step"
SOURCE = "App. A.2, Sec. 3.3"
DATA = "none"

FLOAT32 = 4
"""Bytes."""

SMALL = 16
"""Height and width that the network takes whose dense Jacobian is timed."""

TIMESTEP = 900


def run(lab: Lab) -> Finding:
    """Sizes and work of DDPM-256 by counting on the meta device; times of a small encoder on this machine."""
    import torch

    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.networks import ddpm256
    from georeg_diffusion.progress import console

    console.print("Counting the work of DDPM-256 on the meta device", style="dim")
    with torch.device("meta"):
        network = ddpm256()
    sizes = sizes_of(network)
    work = work_of_steps(network)
    console.print(f"Timing an encoder at {SMALL}²", style="dim")
    times = times_of_products(repeats=5 if lab.quick else 20)
    claims = (*_claims(sizes), _time_claim(*times))
    notes = (
        "Sizes and work follow from shapes and are exact; seconds are CPU time of this process, in one run.",
        "24 GB are 24 GiB. 91,750 bytes is a misprint of 917,504, whose 0.875 MiB the paper has right.",
        "The published loss takes three products, each through the whole U-Net; ours two, through the encoder alone and "
        "from the graph of the denoising loss's own forward pass.",
    )
    return Finding((_sizes_table(sizes), _work_table(work), _times_table(*times)), (), claims, notes)


def sizes_of(network: Any) -> dict[str, int]:
    """Numbers and bytes of J = ∂h/∂x for one sample, and FLOP of one product and of the forward pass, from shapes alone.

    Args:
        network: a diffusers U-Net on the meta device.
    """
    import torch

    import georeg
    from georeg_diffusion.cost import flops_of
    from georeg_diffusion.h_space import HSpace

    config = network.config
    space, t = HSpace(network), torch.full((1,), TIMESTEP, device="meta")
    x = torch.empty(1, config.in_channels, config.sample_size, config.sample_size, device="meta")

    def f(p: torch.Tensor) -> torch.Tensor:
        return space.encode(p, t)

    lin = georeg.linearize(f, x)
    n, m = x[0].numel(), lin.value[0].numel()
    return {
        "n": n,
        "m": m,
        "elements": n * m,
        "bytes": n * m * FLOAT32,
        "product bytes": (n + m) * FLOAT32,
        "product flops": flops_of(lambda: lin.vjp(torch.empty_like(lin.value)[None])),
    }


def work_of_steps(network: Any) -> dict[str, dict[str, float]]:
    """FLOP and peak bytes of a training step on one sample past the gate: plain, published, ours."""
    import georeg
    from georeg_diffusion.cost import peak_bytes_of, work_of
    from georeg_diffusion.experiments.steps import steps_of

    size = network.config.sample_size
    found = {}
    for name, step in steps_of(network, 1, size, "meta", georeg.Hutchinson()).items():
        network.zero_grad(set_to_none=True)
        peak = peak_bytes_of(step)  # with the gradients of the parameters
        found[name] = {"flops": float(work_of(step)), "bytes": float(peak)}
    return found


def times_of_products(*, repeats: int) -> tuple[Estimate, Estimate, Estimate, tuple[int, int]]:
    """CPU seconds of a dense Jacobian and of one product J·v of a small encoder, their ratio, and (n, m).

    The dense one is made of min(n, m) products, 32 at a time; they take turns.
    """
    import torch

    import georeg
    from georeg_diffusion.cost import times_of
    from georeg_diffusion.experiments.networks import encoder
    from georeg_diffusion.h_space import HSpace

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        space, x = HSpace(encoder(SMALL)), torch.randn(1, 3, SMALL, SMALL)
        v = torch.randn(1, *x.shape)

    def f(p: torch.Tensor) -> torch.Tensor:
        return space.encode(p, torch.full((len(p),), TIMESTEP))

    with torch.no_grad():
        h = f(x)
    rows = torch.eye(h.numel()).reshape(-1, *h.shape)
    dense, one = times_of(
        lambda: georeg.linearize(f, x, chunk_size=32).vjp(rows),
        lambda: georeg.linearize(f, x).jvp(v),
        repeats=repeats,
    )
    pairs = [torch.tensor(values, dtype=torch.float64) for values in (dense, one)]
    jacobian, product, ratio = (georeg.Estimate.of(values) for values in (*pairs, pairs[0] / pairs[1]))
    return jacobian, product, ratio, (x.numel(), h.numel())


def _sizes_table(sizes: dict[str, int]) -> Table:
    from georeg_diffusion.experiments.finding import Table
    from georeg_diffusion.experiments.published import value_of

    def paper(model: str, score: str, unit: str = "") -> str:
        value = value_of("costs", model=model, score=score)
        return "—" if value is None else f"{value:,.10g}{unit}"

    rank = min(sizes["n"], sizes["m"])
    whole = rank * sizes["product flops"]
    rows = (
        ("numbers in x, and in h", f"{sizes['n']:,}, {sizes['m']:,}", "—"),
        ("elements of J", f"{sizes['elements']:,}", paper("Jacobian", "elements")),
        ("memory of J, float32", f"{sizes['bytes'] / 2**30:g} GiB", paper("Jacobian", "gigabytes", " GB")),
        ("bytes of a product's x and h", f"{sizes['product bytes']:,}", paper("JVP", "bytes")),
        ("the same in MiB", f"{sizes['product bytes'] / 2**20:g}", paper("JVP", "megabytes")),
        ("work of a product Jᵀu", f"{sizes['product flops'] / 1e9:,.1f} GFLOP", "—"),
        (f"work of J, {rank:,} products", f"{whole / 1e15:,.2f} PFLOP", "—"),
    )
    caption = "DDPM at 256², one sample, from shapes. Memory of a product: its input and output, as the paper counts."
    return Table(f"{SOURCE}: the Jacobian of the encoder", ("", "here", "paper"), rows, caption)


def _work_table(work: dict[str, dict[str, float]]) -> Table:
    from georeg_diffusion.experiments.finding import Cell, Table

    names = {"plain": "diffusers' own", "published": "with the published loss", "ours": "with ours"}
    plain = work["plain"]
    rows = tuple(
        (
            name,
            Cell(work[key]["flops"] / 1e9),
            Cell(work[key]["flops"] / plain["flops"]),
            Cell(work[key]["bytes"] / 2**20),
            Cell(work[key]["bytes"] / plain["bytes"]),
        )
        for key, name in names.items()
    )
    caption = (
        "DDPM at 256², one sample past the gate, counted on the meta device: matrix products and convolutions, and the peak "
        "of all tensors alive, gradients included, parameters left out. At p = 0.5 half of the samples pay."
    )
    return Table("A training step", ("", "GFLOP", "× plain", "peak MiB", "× plain peak"), rows, caption)


def _times_table(jacobian: Estimate, product: Estimate, ratio: Estimate, shape: tuple[int, int]) -> Table:
    from georeg_diffusion.experiments.finding import Cell, Table
    from georeg_diffusion.experiments.published import value_of

    dense, one = (value_of("costs", model=model, score="seconds") for model in ("Jacobian", "JVP"))
    paper = (dense, one, None if dense is None or not one else dense / one)
    rows = tuple(
        (name, Cell.of(found), Cell(value, published=True))
        for name, found, value in zip(
            ("dense Jacobian, s", "one product J·v, s", "ratio"), (jacobian, product, ratio), paper, strict=True
        )
    )
    n, m = shape
    caption = (
        f"Here: a U-Net's encoder at {SMALL}², J of {m} × {n}, CPU seconds, mean ± standard error of {ratio.n} runs. The "
        "paper's: DDPM at 256² on an A100. The ratio grows with min(n, m)."
    )
    return Table("Seconds", ("", "here", "paper (256², A100)"), rows, caption)


def _claims(sizes: dict[str, int]) -> tuple[Claim, ...]:
    from georeg_diffusion.experiments.finding import Claim
    from georeg_diffusion.experiments.published import value_of

    def compared(model: str, score: str, text: str, found: float, unit: str) -> Claim:
        said = value_of("costs", model=model, score=score) or 0.0
        holds = abs(found - said) <= 0.005 * said
        return Claim(text.format(f"{said:,.10g}"), holds, f"{found:,.10g}{unit} from the shapes")

    return (
        compared("Jacobian", "elements", "The encoder's Jacobian has {} elements", sizes["elements"], ""),
        compared("Jacobian", "gigabytes", "It takes approximately {} GB in float32", sizes["bytes"] / 2**30, " GiB"),
        compared("JVP", "bytes", "A JVP requires {} bytes", sizes["product bytes"], " bytes"),
        compared("JVP", "megabytes", "which is approximately {} MB", sizes["product bytes"] / 2**20, " MiB"),
    )


def _time_claim(jacobian: Estimate, product: Estimate, ratio: Estimate, shape: tuple[int, int]) -> Claim:
    from georeg import Estimate
    from georeg_diffusion.experiments.finding import Claim
    from georeg_diffusion.experiments.replicates import is_below_zero

    cheaper = is_below_zero(Estimate(1 - ratio.value, ratio.stderr, ratio.n))
    evidence = f"{ratio.value:.3g} ± {ratio.stderr or 0:.1g} times the time, J of {shape[1]} × {shape[0]}"
    return Claim("The whole Jacobian takes longer than a JVP", cheaper, evidence)
