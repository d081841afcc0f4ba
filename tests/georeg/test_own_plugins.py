"""examples/13_own_plugins.py keeps its promise: a user's plug-ins, one file each, pass the suites, and mistakes do not."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "13_own_plugins.py"


@pytest.mark.slow
def test_the_example_passes_its_own_suites(tmp_path):
    command = [sys.executable, EXAMPLE, "--quick", "--output-dir", tmp_path / "kept"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.strip().splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == ["half_space", "log_ratio", "from_the_domain"]
    assert all("failed" in line for line in lines[::2])
    assert not any("failed" in line or "error" in line for line in lines[1::2])
    kept = {f.stem for f in (tmp_path / "kept" / "plugins").glob("*.py")}
    assert kept >= {"half_space", "test_log_ratio", "test_from_the_domain"}


def test_it_stays_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 80
