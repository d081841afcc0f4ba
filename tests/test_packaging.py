"""The distribution as a user gets it: outside the clone, and without the extras."""

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked into a folder of its own."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", place, ROOT], check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", place / "site", wheel], check=True)
    return place / "site"


def python(code, site, cwd):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def test_the_wheel_works_outside_the_clone_with_its_presets_inside(installed, tmp_path):
    done = python(
        "import georeg, georeg_diffusion; from georeg_diffusion import presets; print(georeg.__file__, presets.names(), "
        "presets.path_of('digits').read_text()[:6]); from georeg_diffusion.cli import build; build()",
        installed,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout
    assert "'digits'" in done.stdout
    for package in ("georeg", "georeg_diffusion"):
        assert (installed / package / "py.typed").is_file()


def without(*modules):
    """Code that hides modules, as if their extra were not installed."""
    return f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"


def test_a_command_without_its_extra_says_which_to_install(installed, tmp_path):
    code = "from importlib import util\nreal = util.find_spec\n"
    code += "util.find_spec = lambda name, *a: None if name in ('typer', 'diffusers') else real(name, *a)\n"
    code += "from georeg_diffusion.cli import main\nmain(['train'])"
    done = python(code, installed, tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "georeg-diffusion needs typer, diffusers: pip install 'georeg[diffusion]'"


def test_an_import_without_its_extra_says_which_to_install(installed, tmp_path):
    done = python(without("diffusers") + "from georeg_diffusion import HSpace", installed, tmp_path)
    assert done.returncode == 1
    assert "pip install 'georeg[diffusion]'" in done.stderr.splitlines()[-1]


def test_the_base_install_imports_only_what_it_declares(installed, tmp_path):
    code = without("diffusers", "accelerate", "typer", "rich", "yaml", "PIL", "matplotlib", "sklearn", "lpips", "pytest")
    done = python(code + "import georeg, georeg.testing; print(georeg.__version__)", installed, tmp_path)
    assert done.returncode == 0, done.stderr
    heavy = python("import sys, georeg; print([m for m in ('geoopt', 'scipy') if m in sys.modules])", installed, tmp_path)
    assert heavy.stdout.strip() == "[]"
