"""A manifold, a loss and an estimator of your own: one file each in plugins/, and one class each that tests every law.

Each suite runs twice: on the plug-in, which passes, and on the same one with a mistake, which must be noticed. Then the
manifold and the loss are used: the picture is the half-space's, steps and shortest paths.
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import georeg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/own_plugins"))
parser.add_argument("--quick", action="store_true", help="changes nothing: the suites take seconds")
options = parser.parse_args()
PLUGINS = Path(__file__).parent / "plugins"
LOSS = "functional, degree, minimisers, minimum = LogRatio, 0, ('isometry', 'similarity'), lambda self, d: 0"
SUITES = [  # file, class, the suite and what it is told, and a mistake: a line, wrongly
    ("half_space", "HalfSpace", "Manifold", "manifold = HalfSpace()", ("vector / self", "2 * vector / self")),
    ("log_ratio", "LogRatio", "Functional", LOSS, ("moments.trace,", "moments.trace.detach(),")),
    ("from_the_domain", "FromTheDomain", "Estimator", "estimator = FromTheDomain", ("(pushed))\n", "(pushed.detach()))\n")),
]


def passes(folder: Path, name: str, plugin: str, contract: str, body: str, text: str) -> bool:
    """Write the plug-in with its test file, which is this short, and run that."""
    suite = f"{contract}Contract"
    test = f"from georeg.testing import {suite}\nfrom {name} import {plugin}\n\n\nclass Test{plugin}({suite}):\n    {body}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (folder / f"test_{name}.py").write_text(test, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "--rootdir=.", f"test_{name}.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    print(f"{name}: {done.stdout.strip().splitlines()[-1]}")
    return done.returncode == 0


for name, plugin, contract, body, mistake in SUITES:
    text = (PLUGINS / f"{name}.py").read_text(encoding="utf-8")
    if passes(options.output_dir / "with_mistakes", name, plugin, contract, body, text.replace(*mistake)):
        raise SystemExit(f"{name}: the contract did not notice a mistake")
    if not passes(options.output_dir / "plugins", name, plugin, contract, body, text):
        raise SystemExit(f"{name} breaks a law of its contract")

spec = importlib.util.spec_from_file_location("half_space", PLUGINS / "half_space.py")
spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
space, figure = module.HalfSpace(), Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for height in (0.25, 0.5, 1.0, 2.0):
    for place in torch.arange(-3 + height / 4, 3, height / 1.5):
        step = 0.15 / float(space.norm(torch.tensor([[place, height]]), torch.tensor([[1.0, 0.0]])))
        axes.add_patch(Circle((place, height), step, fc="#0072B2", alpha=0.5))
ends = torch.tensor([[[-2.4, 0.3], [-0.6, 0.3]], [[0.2, 0.5], [2.6, 0.9]]])
paths = georeg.geodesic(ends[:, 0], ends[:, 1], manifold=space, steps=32)
for path, length in zip(paths.path.transpose(0, 1), paths.length, strict=True):
    axes.plot(*path.T, color="#D55E00", lw=2.5)
    axes.annotate(f"length {float(length):.2f}", path[16], (0, 6), textcoords="offset points", ha="center")
axes.set(title="The half-space: equal steps, and shortest paths", xlabel="x₁", ylabel="x₂", xlim=(-3, 3), ylim=(0, 2.5))
axes.set_aspect("equal")
figure.savefig(options.output_dir / "own_plugins.png", dpi=90)
