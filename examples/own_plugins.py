"""A manifold, a loss and an estimator of your own: one file each, and one class each that tests every law.

Each suite runs twice: on the plug-in, which passes, and on the same one with a mistake, which must be noticed.

    python examples/own_plugins.py                                 # in a temporary folder
    python examples/own_plugins.py --output-dir outputs/plugins    # keep the files, to start from
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HALF_SPACE = '''
import georeg

@georeg.register("manifold", "half-space")
class HalfSpace(georeg.Manifold):
    """{x : x_d > 0} with the hyperbolic metric G(x) = I / x_d²."""
    def _height(self, x):
        return x.flatten(1)[:, -1].reshape(-1, *[1] * (x.ndim - 1))   # x_d, broadcast over the event
    def dim(self, x):
        return x.shape[1:].numel()
    def flat(self, x, vector):
        return vector / self._height(x) ** 2
    def sharp(self, x, covector):
        return covector * self._height(x) ** 2
    def projx(self, x):
        flat = x.flatten(1).clone()
        flat[:, -1] = flat[:, -1].clamp_min(0.1)
        return flat.reshape(x.shape)
    def proju(self, x, vector):
        return vector
'''
LOG_RATIO = '''
import torch, georeg

@georeg.register("functional", "log-ratio")
class LogRatio(georeg.SpectralRegularizer):
    """F = log(d E[τ₂] / E[τ₁]²), 0 for scaled isometries."""
    num_statistics = 2
    undefined = "the Jacobian vanishes at every point"
    def statistics(self, moments):
        return torch.stack([moments.trace, moments.trace_sq], dim=-1)
    def value(self, means, rank):
        trace, trace_sq = means.unbind(-1)
        alive = trace != 0                                            # NaN passes, to be seen
        return (torch.where(alive, rank * trace_sq, 1) / torch.where(alive, trace, 1) ** 2).log()
    def defined(self, means):
        return means[..., 0] > 0
'''
FROM_THE_DOMAIN = '''
import georeg

@georeg.register("estimator", "from-the-domain")
class FromTheDomain(georeg.Estimator):
    """Girard's and Hutchinson's: τ₁ = E ‖Jv‖², τ₂ = E ‖JᵀHJv‖², v ~ (0, G⁻¹)."""
    def __init__(self, num_probes=4):
        self.num_probes = num_probes
    def __call__(self, lin, domain, codomain, generator=None):
        k, pushed = self.num_probes, lin.jvp(domain.random_tangent(self.num_probes, generator))
        pulled = lin.vjp(codomain.flat(pushed))
        t1 = (pushed * codomain.flat(pushed)).flatten(2).sum(2)
        t2 = (pulled * domain.sharp(pulled)).flatten(2).sum(2)
        errors = (t.detach().std(0) / k**0.5 if k > 1 else None for t in (t1, t2))
        return georeg.SpectralMoments(t1.mean(0), t2.mean(0), min(domain.dim, codomain.dim), *errors, num_products=2 * k)
'''
LOSS = "functional, degree, minimisers, minimum = LogRatio, 0, ('isometry', 'similarity'), lambda self, d: 0"
PLUGINS = [  # file, its text, the suite and what it is told, and a mistake: a line, wrongly
    ("half_space", HALF_SPACE, "Manifold", "manifold = HalfSpace()", ("vector / self", "2 * vector / self")),
    ("log_ratio", LOG_RATIO, "Functional", LOSS, ("moments.trace,", "moments.trace.detach(),")),
    ("from_the_domain", FROM_THE_DOMAIN, "Estimator", "estimator = FromTheDomain", ("(pushed))\n", "(pushed.detach()))\n")),
]


def passes(folder: Path, name: str, text: str, contract: str, body: str) -> bool:
    """Write the plug-in and its test file, and run that."""
    plugin, suite = name.title().replace("_", ""), f"{contract}Contract"
    test = f"from georeg.testing import {suite}\nfrom {name} import {plugin}\n\nclass Test{plugin}({suite}):\n    {body}\n"
    (folder / f"{name}.py").write_text(text.lstrip(), encoding="utf-8")
    (folder / f"test_{name}.py").write_text(test, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "--rootdir=.", f"test_{name}.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    print(f"{name}: {done.stdout.strip().splitlines()[-1]}")
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, help="keep the files here instead of in a temporary folder")
    parser.add_argument("--quick", action="store_true", help="changes nothing: the suites take seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.output_dir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text, contract, body, mistake in PLUGINS:
            if passes(Path(scratch), name, text.replace(*mistake), contract, body):
                raise SystemExit(f"{name}: the contract did not notice a mistake")
            if not passes(folder, name, text, contract, body):
                raise SystemExit(f"{name} breaks a law of its contract")


if __name__ == "__main__":
    main()
