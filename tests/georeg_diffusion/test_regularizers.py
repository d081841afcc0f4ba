"""Other losses in the place of Eq. 6, against dense Jacobians in float64."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import georeg
from georeg.registry import _REGISTRY
from georeg.testing import dense_jacobian, dense_moments
from georeg_diffusion import HSpace, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion.functionals import make_regularizer, names
from georeg_diffusion.schedule import alphas_cumprod, noised
from tests.conftest import gradients
from tests.georeg_diffusion.conftest import TINY, cli, small_unet

STEPS = torch.tensor([10, 700, 900])
OPEN = [1, 2]
D = 16  # Euclidean in pixel space of 4 × 4


@pytest.fixture(autouse=True)
def _differentiable_attention():
    """A dense Jacobian differentiates attention twice, which torch's fused one does not allow."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def batch():
    torch.manual_seed(5)
    return torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.randn(3, 1, 4, 4, dtype=torch.float64)


@pytest.fixture
def unet():
    torch.manual_seed(3)
    return small_unet(attention=False).double()


def objective_of(unet, scheduler, name, **options):
    gate = IsometryGate(weight=0.3, skip=0.5)
    options = {"timestep_bins": 0, "momentum": None, "metric": "ambient", **options}
    return IsometricDiffusionLoss(unet, scheduler, gate=gate, regularizer=name, **options)


FORMULAS = {
    "isometry": lambda t1, t2: D * t2.mean() / t1.mean() ** 2,
    "conformal": lambda t1, t2: D * (t2 / t1**2).mean(),
    "strict": lambda t1, t2: (t2 - 2 * t1 + D).mean() / D,
    "contractive": lambda t1, t2: t1.mean(),
    "flat": lambda t1, t2: t2.mean() - t1.mean() ** 2 / D,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_those_of_the_dense_formula(unet, scheduler, batch, name):
    x0, noise = batch
    out = objective_of(unet, scheduler, name, estimator=georeg.Exact())(x0, STEPS, noise)
    x_t = noised(x0, noise, alphas_cumprod(scheduler, STEPS))[OPEN]
    # one t for each sample, which dense_jacobian takes one by one
    each = [
        dense_moments(lambda p, t=t: HSpace(unet).encode(p, t[None]), x[None]) for x, t in zip(x_t, STEPS[OPEN], strict=True)
    ]
    F = FORMULAS[name](*(torch.cat(parts) for parts in zip(*each, strict=True)))
    torch.testing.assert_close(out.functional, F.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(out.isometry, 0.3 * 2 / 3 * F, rtol=1e-9, atol=0)
    parameters = list(unet.parameters())
    ours, theirs = gradients(out.isometry, parameters), gradients(0.2 * F, parameters)
    torch.testing.assert_close(
        ours, theirs, rtol=1e-6, atol=1e-9 * max(float(g.abs().max()) for g in theirs if g is not None)
    )


def test_path_length_is_stylegans_with_its_gradient(unet, scheduler, batch):
    """Var‖Jᵀu‖ over the samples, by the same u and a dense J."""
    x0, noise = batch
    objective = objective_of(unet, scheduler, "path-length")
    out = objective(x0, STEPS, noise, generator=torch.Generator().manual_seed(7))
    x_t = noised(x0, noise, alphas_cumprod(scheduler, STEPS))[OPEN]
    h = HSpace(unet).encode(x_t, STEPS[OPEN])
    u = georeg.Euclidean().at(h).random_cotangent(1, torch.Generator().manual_seed(7), probe="sphere")[0]
    lengths = []
    for x, t, probe in zip(x_t, STEPS[OPEN], u, strict=True):
        jacobian = dense_jacobian(lambda p, t=t: HSpace(unet).encode(p, t[None]), x[None])[0]
        lengths.append((jacobian.mT @ probe.flatten()).norm())
    F = torch.stack(lengths).var(correction=0)
    torch.testing.assert_close(out.functional, F.detach(), rtol=1e-9, atol=0)
    parameters = list(unet.parameters())
    ours, theirs = gradients(out.isometry, parameters), gradients(0.2 * F, parameters)
    assert max(float(g.abs().max()) for g in theirs if g is not None) > 0
    torch.testing.assert_close(
        ours, theirs, rtol=1e-6, atol=1e-9 * max(float(g.abs().max()) for g in theirs if g is not None)
    )


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("recompute", [False, True])
def test_every_loss_trains_with_bins_and_running_means(unet, scheduler, batch, name, recompute):
    objective = objective_of(unet, scheduler, name, timestep_bins=4, momentum=0.9, metric="sphere", recompute=recompute)
    x0, noise = batch
    for _ in range(2):
        out = objective(x0, STEPS, noise)
        (out.loss).backward()
    assert torch.isfinite(out.functional)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())


@pytest.mark.parametrize("name", names())
def test_a_batch_without_gated_samples_joins_the_others(unet, scheduler, name):
    objective = objective_of(unet, scheduler, name, timestep_bins=4, momentum=0.9)
    inputs = {"sample": torch.randn(2, 1, 4, 4, dtype=torch.float64), "timestep": torch.tensor([1, 2])}
    out = objective._join_without_samples(inputs, 2)
    assert out.loss.item() == 0
    assert int(out.count) == 0


def test_the_default_is_equation_6(unet, scheduler):
    assert type(IsometricDiffusionLoss(unet, scheduler).regularizer) is georeg.IsometryLoss


def test_unknown_names_and_estimators_are_refused(unet, scheduler, tmp_path, capsys):
    for name in ("volume", "beauty"):
        with pytest.raises(ValueError, match=f"regularizer: got '{name}', expected one of conformal, contractive, flat"):
            objective_of(unet, scheduler, name)
    assert cli("train", *TINY, "--output-dir", tmp_path / "a", "--regularizer", "volume") == 2
    assert "--regularizer: got 'volume', expected one of" in " ".join(capsys.readouterr().err.split())
    assert cli("train", *TINY, "--output-dir", tmp_path / "a", "--regularizer", "path-length", "--estimator", "exact") == 2
    assert "--estimator: got Exact" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a").exists()


def test_a_plug_ins_loss_is_taken_by_name(unet, scheduler, monkeypatch):
    class Mine(georeg.ContractiveLoss):
        pass

    monkeypatch.setitem(_REGISTRY["functional"], "my_own", Mine)
    assert "my-own" in names()
    assert type(objective_of(unet, scheduler, "my-own").regularizer) is Mine


def test_train_takes_it_and_the_card_names_it(tmp_path, model):
    arguments = ["train", *TINY, "--pretrained-model-name-or-path", model, "--max-train-steps", 1, "--no-evaluate"]
    assert cli(*arguments, "--output-dir", tmp_path, "--regularizer", "path_length") == 0
    assert "path_length loss in place of Eq. 6" in (tmp_path / "isometric" / "README.md").read_text()


@pytest.mark.parametrize("registered", ["of-a-plug-in", "of_a_plug_in"])
def test_a_plug_in_may_have_a_name_with_hyphens_or_underscores(monkeypatch, registered):
    monkeypatch.setitem(_REGISTRY, "functional", {**_REGISTRY["functional"], registered: georeg.ConformalLoss})
    assert "of-a-plug-in" in names()
    for name in ("of-a-plug-in", "of_a_plug_in"):
        assert isinstance(make_regularizer(name, normalize=True), georeg.ConformalLoss)
