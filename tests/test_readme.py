"""What README and docs say is run: their Python, the options they name, the files they link."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import georeg.registry
from georeg_diffusion import presets
from georeg_diffusion.commands import available
from georeg_diffusion.options import flag_of
from georeg_diffusion.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\{?[\w-]*\}?)\n(.*?)^```$", re.M | re.S)


def blocks(page, language):
    """The fenced blocks of a language, each with the line it begins on."""
    text = page.read_text()
    return [(text[: m.start(2)].count("\n"), m[2]) for m in FENCE.finditer(text) if m[1] == language]


PYTHON = [
    pytest.param(page, line, code, id=f"{page.name}:{line}") for page in PAGES for line, code in blocks(page, "python")
]


@pytest.fixture
def _registry():
    """Take back what a block registered."""
    yield
    for things in georeg.registry._REGISTRY.values():
        for name in [name for name, thing in things.items() if thing.__module__ == "block"]:
            del things[name]


@pytest.mark.usefixtures("_registry")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("page", "line", "code"), PYTHON)
def test_python_blocks_run_by_themselves(page, line, code):
    torch.manual_seed(0)
    exec(compile("\n" * line + code, str(page), "exec"), {"__name__": "block"})


def known_options():
    configs = (TrainConfig, *(module.CONFIG for module in available().values()))
    names = {flag_of(entry.name) for config in configs for entry in fields(config)}
    return {*names, *(name.replace("--", "--no-", 1) for name in names), "--config", "--preset", "--help"}


def launch_options():
    """Those of `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    return {option for action in launch_command_parser()._actions for option in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page):
    text = page.read_text().replace("\\\n", "")
    commands = re.findall(r"georeg-diffusion [^\n`]*", text) + re.findall(r"`(--(?!benchmark)[^`\n]*)`", FENCE.sub("", text))
    named = {option for command in commands for option in re.findall(r"--[a-z][\w-]*", command)}
    assert named <= known_options() | (launch_options() if page.name == "scaling.md" else set())
    if page.name == "README.md":
        assert len(named) > 10
    assert set(re.findall(r"--preset ([\w-]+)", text)) <= set(presets.names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_images_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links {target}, which is not there"


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        text = page.read_text()
        lines = re.findall(r"`make ([\w -]+)`", text) + re.findall(r"^make ([\w -]+?) *(?:#|$)", text, re.M)
        assert {target for line in lines for target in line.split()} <= targets


def test_the_cpu_line_installs_the_pinned_versions():
    pins = re.findall(r"\b((?:torch|torchvision)==[\d.]+)", (ROOT / "README.md").read_text())
    assert len(pins) == 2
    assert set(pins) <= set((ROOT / "constraints.txt").read_text().split())
