"""A manifold of your own, in one file, with every law it must obey tested in one class.

The upper half-space {x : x_d > 0} with the hyperbolic metric G(x) = I / x_d². Writing the five abstract
methods is enough; the contract suite then checks the geometry, the probes and the gradients.

    python examples/own_manifold.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

MANIFOLD = '''
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

SUITE = """
from georeg.testing import ManifoldContract
from half_space import HalfSpace

class TestHalfSpace(ManifoldContract):
    manifold = HalfSpace()
"""

BROKEN = (
    SUITE
    + """
    def setup_method(self):                       # a factor that sharp does not know of: the suite must notice
        self.manifold = HalfSpace()
        self.manifold.flat = lambda x, v: 2 * HalfSpace.flat(self.manifold, x, v)
"""
)


def passes(folder: Path, suite: str) -> bool:
    """Run one test file beside the manifold."""
    (folder / "half_space.py").write_text(MANIFOLD, encoding="utf-8")
    (folder / "test_half_space.py").write_text(suite, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "test_half_space.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    print(done.stdout.strip().splitlines()[-1])
    return done.returncode == 0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if not passes(Path(folder), SUITE):
            raise SystemExit("the manifold breaks a law of the contract")
        if passes(Path(folder), BROKEN):
            raise SystemExit("the contract did not notice a wrong metric")


if __name__ == "__main__":
    main()
