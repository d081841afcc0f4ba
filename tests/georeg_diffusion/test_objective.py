import pytest
import torch

import georeg
from georeg_diffusion import HSpace, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.batch import out_of_inference_mode, random_timesteps, rows_of
from georeg_diffusion.cost import work_of
from georeg_diffusion.schedule import alphas_cumprod, noised
from tests.conftest import gradients
from tests.georeg_diffusion.conftest import small_unet

STEPS = torch.tensor([10, 700, 300, 900, 800])
OPEN = [1, 3, 4]


@pytest.fixture
def batch():
    return torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.randn(5, 1, 8, 8, dtype=torch.float64)


def plain_loss(unet, scheduler, x0, noise, steps):
    x_t = noised(x0, noise, alphas_cumprod(scheduler, steps))
    return torch.nn.functional.mse_loss(unet(x_t, steps).sample, noise)


def test_denoising_is_diffusers_own_loss_with_its_gradient(unet, scheduler, batch):
    unet.double()
    x0, noise = batch
    out = IsometricDiffusionLoss(unet, scheduler)(x0, STEPS, noise)
    expected = plain_loss(unet, scheduler, x0, noise, STEPS)
    torch.testing.assert_close(out.denoising, expected, rtol=1e-12, atol=0)
    parameters = list(unet.parameters())
    torch.testing.assert_close(gradients(out.denoising, parameters), gradients(expected, parameters), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("bins", [0, 2, 20])
def test_the_term_is_lambda_times_the_gated_share_times_the_functional(unet, scheduler, batch, bins):
    """Against the encoder as a map, pooled by hand within each bin."""
    unet.double()
    x0, noise = batch
    objective = IsometricDiffusionLoss(
        unet, scheduler, gate=IsometryGate(weight=0.3, skip=0.5), timestep_bins=bins, momentum=None, estimator=georeg.Exact()
    )
    out = objective(x0, STEPS, noise)
    x_t, t = noised(x0, noise, alphas_cumprod(scheduler, STEPS))[OPEN], STEPS[OPEN]
    m = georeg.spectral_moments(lambda p: HSpace(unet).encode(p, t), x_t, domain=georeg.Sphere(), estimator=georeg.Exact())
    labels = torch.zeros_like(t) if bins == 0 else t * bins // 1000
    F = 0.0
    for label in labels.unique():
        rows = labels == label
        F = F + rows.sum() / 3 * 63 * m.trace_sq[rows].mean() / m.trace[rows].mean() ** 2
    torch.testing.assert_close(out.isometry, 0.3 * 3 / 5 * F, rtol=1e-10, atol=0)
    torch.testing.assert_close(out.functional, F.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(out.loss, out.denoising + out.isometry)
    assert out.gated == 3
    parameters = list(unet.parameters())
    torch.testing.assert_close(gradients(out.isometry, parameters), gradients(0.18 * F, parameters), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("how", ["no sample is noisy", "weight 0", "scale 0"])
def test_without_gated_samples_the_term_is_an_exact_zero_with_a_graph(unet, scheduler, how):
    gate = IsometryGate(weight=0.0 if how == "weight 0" else 1.0)
    steps = torch.tensor([1, 2]) if how == "no sample is noisy" else torch.tensor([900, 950])
    out = IsometricDiffusionLoss(unet, scheduler, gate=gate)(
        torch.randn(2, 1, 8, 8), steps, isometry_scale=0.0 if how == "scale 0" else 1.0
    )
    assert out.isometry.item() == 0.0
    assert out.gated == 0
    assert out.isometry.requires_grad
    out.isometry.backward()
    assert all(p.grad is None or not p.grad.any() for p in unet.parameters())


def test_the_expectation_of_the_term_is_that_of_equation_7(unet, scheduler):
    """E over timesteps of λ·(gated/B)·F = λ E_t[1(t > pT) L_iso(t)], by enumeration of batches of one."""
    objective = IsometricDiffusionLoss(
        unet, scheduler, gate=IsometryGate(weight=0.5, skip=0.6), momentum=None, estimator=georeg.Exact()
    )
    x0, noise = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    steps = torch.arange(50, 1000, 100)
    terms = [objective(x0, steps[i : i + 1], noise) for i in range(10)]
    mean = sum(o.isometry.item() for o in terms) / 10
    expected = 0.5 * sum(float(o.functional) for o, t in zip(terms, steps, strict=True) if t > 600) / 10
    assert mean == pytest.approx(expected, rel=1e-6)
    assert sum(o.gated for o in terms) == 4


def test_sample_generators_make_a_step_independent_of_the_split(unet, scheduler):
    unet.double()
    objective = IsometricDiffusionLoss(unet, scheduler, timestep_bins=0, momentum=None)
    x0 = torch.randn(6, 1, 8, 8, dtype=torch.float64)

    def run(rows):
        return objective(x0[rows], generator=[torch.Generator().manual_seed(50 + i) for i in rows])

    whole, first, second = run([0, 1, 2, 3, 4, 5]), run([0, 1, 2]), run([3, 4, 5])
    assert whole.gated == first.gated + second.gated > 0
    torch.testing.assert_close(whole.denoising, (first.denoising + second.denoising) / 2, rtol=1e-12, atol=0)
    traces = torch.cat([o.moments.trace for o in (first, second) if o.moments is not None])
    torch.testing.assert_close(whole.moments.trace, traces, rtol=1e-10, atol=0)


def test_only_gated_samples_pay(scheduler):
    """Counted on the meta device, timesteps on the host: work grows with the gated share alone, from the plain step's."""
    with torch.device("meta"):
        unet = small_unet(attention=False)
    objective = IsometricDiffusionLoss(unet, scheduler)
    x0 = torch.empty(8, 1, 8, 8, device="meta")

    def work(gated):
        steps = torch.tensor([900] * gated + [10] * (8 - gated))
        return work_of(lambda: objective(x0, steps).loss)

    zeros = torch.zeros(8, dtype=torch.long, device="meta")
    plain = work_of(lambda: torch.nn.functional.mse_loss(unet(x0, zeros).sample, x0))
    none, half, full = work(0), work(4), work(8)
    assert none == pytest.approx(plain, rel=0.02)
    assert half - none == pytest.approx((full - none) / 2, rel=0.05)
    assert full < 2.2 * plain


def test_class_conditioning_is_split_along_with_the_batch(scheduler):
    torch.manual_seed(0)
    unet = small_unet(num_class_embeds=10).double()
    x0, noise, labels = torch.randn(5, 1, 8, 8).double(), torch.randn(5, 1, 8, 8).double(), torch.arange(5)
    out = IsometricDiffusionLoss(unet, scheduler)(x0, STEPS, noise, class_labels=labels)
    x_t = noised(x0, noise, alphas_cumprod(scheduler, STEPS))
    expected = torch.nn.functional.mse_loss(unet(x_t, STEPS, class_labels=labels).sample, noise)
    torch.testing.assert_close(out.denoising, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", ["sphere", "stereographic", "stereographic-flat", "ambient", "isodiff"])
def test_every_metric_trains_the_encoder(unet, scheduler, metric):
    out = IsometricDiffusionLoss(unet, scheduler, metric=metric)(torch.randn(4, 1, 8, 8), torch.tensor([600, 700, 800, 900]))
    assert torch.isfinite(out.loss)
    norm = gradients(out.isometry, unet.parameters()).norm()
    assert torch.isfinite(norm)
    assert norm > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_validation_loss_needs_no_gradients(unet, scheduler, mode):
    objective = IsometricDiffusionLoss(unet, scheduler, momentum=None, estimator=georeg.Exact())
    x0, noise = torch.randn(2, 5, 1, 8, 8)
    expected = objective(x0, STEPS, noise)
    with mode():
        out = objective(x0.clone(), STEPS.clone(), noise)
    torch.testing.assert_close(out.loss, expected.loss.detach(), rtol=1e-5, atol=0)
    assert not out.loss.requires_grad


def test_running_means_are_saved_with_the_objective(unet, scheduler):
    objective = IsometricDiffusionLoss(unet, scheduler)
    objective(torch.randn(4, 1, 8, 8), torch.tensor([600, 700, 800, 900]))
    state = objective.state_dict()
    means = {name: value for name, value in state.items() if "running" in name}
    assert means
    assert any(value.abs().sum() > 0 for value in means.values())
    copy = IsometricDiffusionLoss(small_unet(), scheduler)
    copy.load_state_dict(state)
    for name, value in means.items():
        assert torch.equal(copy.state_dict()[name], value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (torch.tensor([1]), "shape"),
        (torch.tensor([1.0, 2.0]), "integers"),
        (torch.tensor([5, 1000]), r"\[0, 1000\)"),
        (torch.tensor([-1, 5]), r"\[0, 1000\)"),
    ],
)
def test_bad_timesteps_are_refused(unet, scheduler, steps, message):
    with pytest.raises(ValueError, match=f"timesteps.*{message}"):
        IsometricDiffusionLoss(unet, scheduler)(torch.randn(2, 1, 8, 8), steps)


def test_timesteps_are_uniform_and_seeded():
    draws = random_timesteps(4000, 10, torch.Generator().manual_seed(0))
    counts = torch.bincount(draws, minlength=10).double()
    assert ((counts - 400).abs() < 4.5 * (4000 * 0.09) ** 0.5).all()
    assert torch.equal(draws, random_timesteps(4000, 10, torch.Generator().manual_seed(0)))


def test_v_prediction_and_sample_prediction(unet):
    for kind in ("v_prediction", "sample"):
        scheduler = diffusers.DDPMScheduler(prediction_type=kind)
        assert torch.isfinite(IsometricDiffusionLoss(unet, scheduler)(torch.randn(2, 1, 8, 8)).loss)


def test_conditioning_is_split_inside_dicts_and_tuples():
    """Such as a ControlNet's residuals: left whole they would broadcast against a single row."""
    value, rows = torch.arange(3), torch.tensor([2])
    split = rows_of({"residuals": (value, [value]), "scale": 2.0}, rows, 3)
    assert split == {"residuals": (torch.tensor([2]), [torch.tensor([2])]), "scale": 2.0}
    with torch.inference_mode():
        born = (torch.zeros(3), [torch.zeros(3)])
    assert not any(t.is_inference() for t in (out_of_inference_mode(born)[0], *out_of_inference_mode(born)[1]))
