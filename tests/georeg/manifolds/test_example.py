"""examples/own_manifold.py keeps its promise: a user's manifold in one file passes the suite, a wrong one does not."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_manifold.py"


@pytest.mark.slow
def test_the_example_passes_its_own_suite():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    passed, broken = done.stdout.strip().splitlines()
    assert "failed" not in passed
    assert "failed" in broken


def test_it_stays_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80
