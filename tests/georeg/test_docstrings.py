"""Every public name explains itself by an example, which the doctests run, and by what it refuses."""

import importlib
import inspect
import types

import pytest

MODULES = ("georeg", "georeg.testing", "georeg.diagnostics", "georeg_diffusion")


def public(module):
    """What the names of ``__all__`` name, by name, submodules left out."""
    found = importlib.import_module(module)
    things = {name: getattr(found, name) for name in found.__all__}
    return {name: thing for name, thing in things.items() if not isinstance(thing, types.ModuleType)}


def source(thing):
    """Of a function, or of what a class runs when it is called."""
    if not inspect.isclass(thing):
        return inspect.getsource(thing)
    written = "__post_init__" if hasattr(thing, "__dataclass_fields__") else "__init__"
    return inspect.getsource(vars(thing)[written]) if written in vars(thing) else ""


def without_example(module):
    # Not inspect.getdoc, which would take a base class's example for that of its child.
    return [name for name, thing in public(module).items() if ">>>" not in (thing.__doc__ or "")]


def without_errors(module):
    return [name for name, t in public(module).items() if " raise " in source(t) and "Raises:" not in (t.__doc__ or "")]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_doctest(module):
    assert without_example(module) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_that_raises_says_so(module):
    assert without_errors(module) == []


def test_these_tests_can_fail(monkeypatch):
    class Bare:
        def __init__(self):
            raise ValueError

    fake = types.SimpleNamespace(__all__=["Bare"], Bare=Bare)
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)
    assert without_example("any") == without_errors("any") == ["Bare"]
