"""The largest singular values of the DDPM-256 encoder at 256², without its Jacobian (24 GB in float32).

    python benchmarks/spectrum_ddpm256.py                       k = 3 at 256², random weights
    python benchmarks/spectrum_ddpm256.py --resolution 32       the same encoder at 32², beside the dense SVD
    python benchmarks/spectrum_ddpm256.py --model google/ddpm-celebahq-256

Prints each iteration as it goes, then the values with their residuals, the time and the peak memory.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
from torch import Tensor, nn

import georeg
from georeg import diagnostics
from georeg_diffusion import HSpace, load
from georeg_diffusion.experiments.networks import ddpm256


def peak_gibibytes() -> float:
    """The process's highest resident memory so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def spectrum(network: nn.Module, resolution: int, k: int, *, seed: int = 0, max_iterations: int = 40) -> float:
    """Print the k largest singular values at one x_t, t = 0.75 T; return the largest relative error against the dense SVD.

    The dense SVD is taken up to 32², where J has 3072 columns; elsewhere the error is NaN.
    """
    encoder = HSpace(network.eval().requires_grad_(False))
    t = torch.tensor([750])
    x = torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed))
    started = time.perf_counter()

    def encode(points: Tensor) -> Tensor:
        return encoder.encode(points, t)

    def show(values: Tensor, residuals: Tensor) -> None:
        pairs = ", ".join(f"{v:.5g} ± {r:.1g}" for v, r in zip(values[0].tolist(), residuals[0].tolist(), strict=True))
        print(f"{time.perf_counter() - started:7.1f} s  {peak_gibibytes():.2f} GiB  {pairs}", flush=True)

    top = diagnostics.top_singular(
        encode,
        x,
        k,
        domain=georeg.Sphere(),
        tolerance=1e-2,
        max_iterations=max_iterations,
        chunk_size=1,
        engine="reverse",
        generator=torch.Generator().manual_seed(seed),
        callback=show,
    )
    print(f"{top.num_products} Jacobian products, converged: {top.converged[0].tolist()}")
    if resolution > 32:
        return float("nan")
    dense = diagnostics.singular_values(encode, x, domain=georeg.Sphere(), chunk_size=32)[0, :k]
    error = float(((top.values[0] - dense) / dense).abs().max())
    print(f"dense SVD: {', '.join(f'{v:.5g}' for v in dense.tolist())}; largest relative difference {error:.1e}")
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="diffusers folder or hub id; default: the architecture with random weights")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--k", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = load(arguments.model).network if arguments.model else ddpm256()
    spectrum(network, arguments.resolution, arguments.k)
    print(f"peak memory {peak_gibibytes():.2f} GiB")


if __name__ == "__main__":
    main()
