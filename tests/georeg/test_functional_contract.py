"""Every registered loss obeys the contract with what its docstring declares, and each law is seen to fail."""

import subprocess
import sys

import pytest
import torch

import georeg
from georeg.moments import safe_ratio
from georeg.registry import registered
from georeg.testing import FunctionalContract

EVERYTHING = ("isometry before", "isometry behind", "coordinates")


def formula(dense, floor, **attributes):
    """The contract's attributes, from F of the eigenvalues and the minimum as a function of d."""
    return {"dense": lambda self, e, d: dense(e, d), "minimum": lambda self, d: floor(d), **attributes}


SUITES = {
    "isometry": formula(
        lambda e, d: e.square().sum(1).mean() / e.sum(1).mean() ** 2,
        lambda d: 1 / d,
        minimisers=("isometry", "similarity"),
        degree=0,
    ),
    "conformal": formula(
        lambda e, d: (e.square().sum(1) / e.sum(1) ** 2).mean(),
        lambda d: 1 / d,
        minimisers=("isometry", "similarity", "inversion"),
        degree=0,
        invariant=(*EVERYTHING, "conformal metric"),
    ),
    "strict": formula(lambda e, d: (e - 1).square().sum(1).mean() / d, lambda d: 0, minimisers=("isometry",)),
    "contractive": formula(lambda e, d: e.sum(1).mean(), lambda d: 0, minimisers=("constant",), degree=2),
    "flat": formula(
        lambda e, d: (e - e.sum(1).mean() / d).square().sum(1).mean(),
        lambda d: 0,
        minimisers=("isometry", "similarity", "constant"),
        degree=4,
    ),
    "volume": formula(
        lambda e, d: e.log().sum(1).var(correction=0),
        lambda d: 0,
        minimisers=("isometry", "similarity", "linear", "shear"),
        degree=0,
        invariant=(*EVERYTHING, "constant determinant"),
    ),
    # Path lengths are random: behind f and in other coordinates they are the same in distribution only.
    "path_length": {
        "exact": {"momentum": None},
        "minimum": lambda self, d: 0,
        "minimisers": ("isometry", "similarity", "constant"),
        "degree": 2,
        "invariant": ("isometry before",),
    },
}
LOSSES = registered("functional")
# A registered loss that the table does not name (a plug-in's, or a new file's) is tried as it comes.
for _name, _loss in LOSSES.items():
    _class = "Test" + _name.title().replace("_", "")
    globals()[_class] = type(_class, (FunctionalContract,), {"functional": _loss, **SUITES.get(_name, {})})


def test_the_registry_finds_every_loss():
    assert set(LOSSES) == set(SUITES)
    assert {cls.__name__ for cls in LOSSES.values()} <= set(georeg.__all__)


@pytest.mark.parametrize(("name", "change"), [
    ("isometry", "conformal metric"),
    ("strict", "conformal metric"),
    ("isometry", "constant determinant"),
    ("conformal", "constant determinant"),
])  # fmt: skip
def test_what_a_loss_is_not_blind_to(name, change):
    suite = type("Suite", (FunctionalContract,), {"functional": LOSSES[name], "invariant": (change,)})()
    with pytest.raises(AssertionError, match=change):
        suite.test_invariances()


# Strict isometry obeys every law; each of these breaks one.
def spoilt(**methods):
    return type("Spoilt", (georeg.StrictIsometryLoss,), methods)


def statistics(change):
    """Per-sample statistics (τ₁, τ₂), changed."""
    return spoilt(statistics=lambda self, m: change(torch.stack([m.trace, m.trace_sq], dim=-1)))


def value(change):
    """F of the means, changed."""
    return spoilt(value=lambda self, means, rank: change(georeg.StrictIsometryLoss.value(self, means, rank)))


class Reweighted(georeg.StrictIsometryLoss):
    """Each group counts the same, whatever its size."""

    def of(self, lin, groups=None, *, generator=None):
        out = super().of(lin, groups, generator=generator)
        return out if groups is None else georeg.LossOutput(2 * out.loss, out.moments, out.count, self)


class Forgetful(georeg.StrictIsometryLoss):
    """A state that is no buffer."""

    seen = 0

    def value(self, means, rank):
        self.seen += self.training
        return super().value(means, rank) * (1 + self.seen)


class Changing(georeg.StrictIsometryLoss):
    """Running means that go on in eval mode."""

    def of(self, lin, groups=None, *, generator=None):
        if self.running is not None:
            self.running.train()
        return super().of(lin, groups, generator=generator)


class Unseeded(georeg.StrictIsometryLoss):
    def measure(self, lin, generator=None):
        return super().measure(lin, None)


class NoGraph(georeg.StrictIsometryLoss):
    """A step without samples returns a number."""

    def of(self, lin, groups=None, *, generator=None):
        out = super().of(lin, groups, generator=generator)
        return out if len(lin.x) else georeg.LossOutput(out.loss.detach(), out.moments, out.count, self)


class Unguarded(georeg.IsometryLoss):
    def value(self, means, rank):
        return means[..., 1] / means[..., 0] ** 2


class Undeclared(georeg.IsometryLoss):
    """Gives a constant map a perfect score instead of refusing it."""

    def defined(self, means):
        return torch.ones_like(means[..., 0], dtype=torch.bool)


class Hiding(georeg.IsometryLoss):
    """NaN > 0 is False."""

    def value(self, means, rank):
        alive = means[..., 0] > 0
        return torch.where(alive, safe_ratio(means[..., 1], torch.where(alive, means[..., 0], 1) ** 2), 0)


class InX(georeg.StrictIsometryLoss):
    def __init__(self, **options):
        super().__init__(**{**options, "detach_x": True})


class Half(georeg.StrictIsometryLoss):
    def of(self, lin, groups=None, *, generator=None):
        out = super().of(lin, groups, generator=generator)
        return georeg.LossOutput(out.loss.to(lin.x.dtype), out.moments, out.count, self)


BROKEN = [
    (statistics(lambda s: torch.cat([s[:, :1], s[:, 1:].detach()], 1)), "gradient_is_the_slope_of_the_value", "slope"),
    (statistics(lambda s: s.detach() + 0 * s), "gradient_is_the_slope_of_the_value", "slope"),
    (value(lambda v: v / 0), "gradient_is_the_slope_of_the_value", "the loss is nan"),
    (InX, "gradient_reaches_the_points", "detach_x=False"),
    (value(lambda v: v + 1e-6), "value_equals_the_formula", "not close"),
    (Reweighted, "moments_are_used_as_the_dense_ones", "not close"),
    (Reweighted, "groups", "not close"),
    (statistics(lambda s: s * s.detach() / s.detach().mean(0)), "micro_batches_add_up", "not close"),
    (NoGraph, "empty_batch", "has no graph"),
    (Unseeded, "a_seed_decides_the_loss", "not deterministic"),
    (value(lambda v: v + 1), "minimum", "isometry: 1 above"),
    (value(lambda v: v - 1), "minimum", "above the minimum"),
    (value(lambda v: 0 * v), "minimum", "similarity: 0 above the minimum, which it should not"),
    (georeg.FlatManifoldLoss, "degree", "not close"),
    (Unguarded, "degenerate_maps", "no finite value"),
    (Undeclared, "degenerate_maps", "refused with ''"),
    (Hiding, "nan_is_seen", "does not show"),
    (Forgetful, "state_survives_a_round_trip", "goes on differently"),
    (Changing, "state_survives_a_round_trip", "in eval mode"),
    (Half, "dtypes", "expected float32"),
    (statistics(lambda s: s * float(s.detach().sum() > 0)), "meta_device", None),
    (georeg.IsometryLoss, "invariances", "constant determinant"),
]


@pytest.mark.parametrize(("loss", "law", "message"), BROKEN)
def test_the_contract_finds_what_is_broken(loss, law, message):
    attributes = {**SUITES["strict"], "functional": loss, "degree": 2, "invariant": ("constant determinant",)}
    suite = type("Broken", (FunctionalContract,), attributes)()
    with pytest.raises(AssertionError if message else RuntimeError, match=message):
        getattr(suite, f"test_{law}")()


def test_every_law_is_seen_to_fail():
    assert {f"test_{law}" for _, law, _ in BROKEN} == {law for law in dir(FunctionalContract) if law.startswith("test_")}


def test_a_loss_made_by_a_function_and_suites_that_inherit_suites():
    class Normalised(FunctionalContract):
        functional = lambda **options: georeg.IsometryLoss(normalize=True, **options)  # noqa: E731
        degree = 0

    class Inherited(Normalised):
        minimisers = ("isometry", "similarity")

        def minimum(self, d):
            return 1.0

    Inherited().test_minimum()
    Inherited().test_degree()
    assert Inherited().build().normalize


def test_the_suite_imports_without_pytest():
    code = "import sys; sys.modules['pytest'] = None; import georeg.testing"
    subprocess.run([sys.executable, "-c", code], check=True)
