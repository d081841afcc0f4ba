"""The geometry of frozen models whose answer is known, against t."""

import json
import math
from dataclasses import replace

import pytest
import torch

import georeg
from georeg_diffusion import Bundle, HSpace
from georeg_diffusion._compat import diffusers
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.geometry import geometry
from georeg_diffusion.evaluation.inspection import Inspection
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.points import generated_points, noise_points
from georeg_diffusion.evaluation.runner import work_off
from georeg_diffusion.evaluation.setting import Setting
from tests.georeg_diffusion.evaluation.contract import ScoreContract, close, run
from tests.georeg_diffusion.evaluation.test_geometry_scores import Stereographic
from tests.georeg_diffusion.networks import NETWORKS, conditioning_of, vae


@pytest.fixture
def setting(linear_bundle, digits):
    """Of a linear encoder on digits of 8 × 8, so that n = 64 and d = 63 on the sphere."""

    def make(matrix, **options):
        parts = {"num_samples": 6, "images": Once(lambda: digits), "at": "mid", "num_inference_steps": 3}
        return Setting(bundle=linear_bundle(matrix.float()), **(parts | options))

    return make


class TestContract(ScoreContract):
    """Sittings, batches, JSON, random numbers: as every score."""

    @pytest.fixture
    def score(self):
        return Inspection

    @pytest.fixture
    def setting(self, setting):
        return setting(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), timesteps=(600, 800))


def profile_of(inspection):
    return run(inspection).details["profile"]


def test_a_scaled_isometry_is_perfect_at_every_t(setting):
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    result = run(Inspection(setting(3 * rotation)))
    assert result.value == pytest.approx(1, abs=1e-4)
    assert [entry["timestep"] for entry in result.details["profile"]] == list(range(50, 1000, 100))
    for entry in result.details["profile"]:
        assert entry["isometry"]["value"] == pytest.approx(1, abs=1e-4)
        assert entry["isometry"]["stderr"] == pytest.approx(0, abs=1e-4)
        assert entry["conformality"]["value"] == pytest.approx(1, abs=1e-4)
        assert entry["effective_rank"]["value"] == pytest.approx(63, rel=1e-4)
        assert entry["scale"]["value"] == pytest.approx(3, rel=1e-4)
        assert [one["value"] for one in entry["singular_values"]] == pytest.approx([1] * 4, rel=1e-3)
        assert (entry["images"], entry["spectrum_images"], entry["unconverged"]) == (6, 4, 0)


def test_the_stereographic_map_is_conformal_and_no_isometry(setting):
    """Its scale at x is 1/(r − xₙ), by hand from the points; the jackknife by a loop."""
    one = setting(torch.eye(64), timesteps=(750,))
    one.bundle.network.mid = Stereographic()
    (entry,) = profile_of(Inspection(one))
    points = [one.noised([i], 750).flatten().double() for i in range(6)]
    squares = torch.stack([1 / (x.norm() - x[-1]) ** 2 for x in points])

    def ratio(s):
        return float(s.square().mean() / s.mean() ** 2)

    without = [ratio(squares[[j for j in range(6) if j != i]]) for i in range(6)]
    assert entry["conformality"]["value"] == pytest.approx(1, abs=1e-4)
    assert entry["isometry"]["value"] == pytest.approx(6 * ratio(squares) - 5 * sum(without) / 6, abs=1e-4)
    spread = torch.tensor(without, dtype=torch.float64).std(correction=0)
    assert entry["isometry"]["stderr"] == pytest.approx(float(spread) * 5**0.5, rel=2e-3, abs=2e-5)
    assert entry["isometry"]["value"] > 1.0001
    assert entry["scale"]["value"] == pytest.approx(float(squares.sqrt().mean()), rel=1e-4)


def test_singular_values_are_those_of_the_projected_matrix(setting):
    torch.manual_seed(1)
    matrix = torch.randn(64, 64)
    one = setting(matrix, num_samples=3, timesteps=(600,))
    found = []
    for row in range(3):
        x = one.noised([row], 600).flatten().double()
        x = x / x.norm()
        found.append(torch.linalg.svdvals(matrix.double() @ (torch.eye(64).double() - torch.outer(x, x)))[:5])
    (entry,) = profile_of(Inspection(one, top=5))
    got = [value["value"] * entry["scale"]["value"] for value in entry["singular_values"]]
    assert got == pytest.approx(torch.stack(found).mean(0).tolist(), rel=1e-3)
    (two,) = profile_of(Inspection(one, top=5, spectrum_images=2))
    got = [value["value"] * two["scale"]["value"] for value in two["singular_values"]]
    assert got == pytest.approx(torch.stack(found[:2]).mean(0).tolist(), rel=1e-3)
    (none,) = profile_of(Inspection(one, spectrum_images=0))
    assert none["singular_values"] == []


def test_standard_errors_cover(setting):
    """Of 60 runs with other images, noise and probes; the truth by the dense spectrum at 600 points."""
    torch.manual_seed(1)
    matrix = torch.randn(64, 64) * torch.logspace(0, -1, 64)
    one = setting(matrix, num_samples=16, timesteps=(600,), batch_size=16)
    x = torch.cat([one.noised([i], 600) for i in range(600)]).flatten(1).double()
    x = x / x.norm(dim=1, keepdim=True)
    eyes = torch.eye(64).double() - x[:, :, None] * x[:, None, :]
    energies = torch.linalg.svdvals(matrix.double() @ eyes).square()
    truth = float(63 * energies.square().sum(1).mean() / energies.sum(1).mean() ** 2)
    scores = []
    for seed in range(60):
        (entry,) = profile_of(Inspection(replace(one, seed=1000 * (seed + 1)), spectrum_images=0))
        scores.append((entry["isometry"]["value"] - truth) / entry["isometry"]["stderr"])
    z = torch.tensor(scores)
    # 16 images: Student's 2.13 in place of 1.96; 3.2 standard errors of a binomial.
    assert int((z.abs() < 2.13).sum()) >= 60 * 0.95 - 3.2 * (60 * 0.95 * 0.05) ** 0.5
    assert float(z.mean().abs()) < 3.2 / 60**0.5 * float(z.std())
    assert float(z.square().mean().sqrt()) > 0.7


def test_the_radius_is_the_points_own(setting):
    one = setting(torch.eye(64), timesteps=(700,))
    (entry,) = profile_of(Inspection(one))
    norms = torch.stack([one.noised([i], 700).norm() for i in range(6)])
    s = float((1 - one.bundle.scheduler.alphas_cumprod[700]).sqrt())
    chi = math.sqrt(2) * math.gamma(32.5) / math.gamma(32)
    assert entry["noise"] == pytest.approx(s, rel=1e-6)
    assert entry["radius_ratio"]["value"] == pytest.approx(float(norms.mean()) / s / chi, rel=1e-5)
    assert entry["radius_ratio"]["std"] == pytest.approx(float(norms.std()) / s / chi, rel=1e-4)


def test_an_encoder_that_ignores_its_input_has_no_geometry_and_says_so(setting):
    result = run(Inspection(setting(torch.zeros(64, 64)), spectrum_images=0))
    assert result.value is None
    assert "h does not depend on x_t" in result.protocol
    assert result.details["profile"][0]["isometry"] is None
    assert result.details["suggested_skip"]["value"] is not None
    json.dumps(result.details, allow_nan=False)
    broken = setting(torch.full((64, 64), math.nan))
    outcome = work_off(Inspection(broken), 0, "broken")
    assert outcome.failure is not None
    assert "not finite" in outcome.failure


def test_out_of_time_there_is_an_honest_part(setting):
    """All timesteps at fewer images, then one timestep more than the others."""
    inspection = Inspection(setting(torch.eye(64), timesteps=(600, 700, 800)))
    for piece in range(4):
        inspection.update(piece)
    assert [entry["images"] for entry in inspection.compute().details["profile"]] == [6, 4, 4]
    assert inspection.compute().n == 4
    outcome = work_off(Inspection(setting(torch.eye(64))), 0, "late", deadline=-math.inf)
    assert (outcome.done, outcome.failure, outcome.result.value) == (0, None, None)


def test_one_image_has_no_standard_error(setting):
    (entry,) = profile_of(Inspection(setting(torch.eye(64), num_samples=1, timesteps=(600,))))
    assert entry["isometry"] == {"value": pytest.approx(1, abs=1e-4), "stderr": None}
    assert entry["radius_ratio"]["std"] is None


def test_without_a_timestep_above_p_there_is_no_mean(setting):
    result = run(Inspection(setting(torch.eye(64), timesteps=(10, 20))))
    assert result.value is None
    assert "no t >" in result.protocol


def test_points_that_the_model_makes(setting):
    one = setting(torch.eye(64), num_samples=5, timesteps=(600,), images=Once.missing("none"))
    points = generated_points(one, 5)
    assert "5 images generated by the model itself in 3 DDIM steps" in points.where
    together = points.clean([0, 1, 2, 3, 4])
    torch.testing.assert_close(torch.cat([points.clean([i]) for i in range(5)]), together)
    assert float(together.abs().max()) <= 1
    assert not torch.equal(together[0], together[1])
    result = run(Inspection(one, points))
    assert result.n == 5
    energy = result.details["suggested_skip"]["energy"]["value"]
    assert energy == pytest.approx(float(together.square().mean()), rel=1e-5)


def test_points_of_noise_alone(setting):
    one = setting(torch.eye(64), images=Once.missing("none"))
    points = noise_points(one, 4)
    alpha_bar = one.bundle.scheduler.alphas_cumprod
    first = next(t for t in range(1000) if alpha_bar[t] <= 0.1 * (1 - alpha_bar[t]))
    assert points.timesteps[0] == first
    assert points.timesteps[-1] == 999
    result = run(Inspection(one, points))
    assert result.value == pytest.approx(1, abs=1e-4)
    assert result.details["suggested_skip"] is None
    with pytest.raises(UsageError, match=f"got 300, .* from t = {first} on"):
        noise_points(setting(torch.eye(64), timesteps=(300, 900)), 4)
    one.bundle.scheduler.alphas_cumprod[:] = 0.9
    with pytest.raises(RunError, match="at no timestep"):
        noise_points(one, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_on_latents(name):
    """Largest singular values against the dense Jacobian of h, under the very conditions; a flow for Stable Diffusion 3."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    conditions = conditioning_of(name, 1)
    text = {key: value for key, value in conditions.items() if key != "class_labels"}
    is_flow = name == "sd3"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if is_flow else diffusers.DDPMScheduler()
    bundle = Bundle(
        network.requires_grad_(False), scheduler, codec=vae(), conditioner=(lambda prompts: text) if text else None
    )
    one = Setting(
        bundle=bundle,
        images=Once(lambda: Digits(16)),
        num_samples=2,
        timesteps=(700,),
        prompt="two words" if text else None,
        guidance_scale=1.0,
        class_label=int(conditions["class_labels"]) if "class_labels" in conditions else None,
    )
    (entry,) = profile_of(Inspection(one, top=3, num_probes=16))
    t = torch.tensor([3000 * 0.701 / (1 + 2 * 0.701)]) if is_flow else torch.tensor([700])
    assert entry["fraction"] == pytest.approx(float(t) / 1000)
    x = one.noised([0, 1], 700)

    def encode(points):
        rows = {key: value.expand(len(points), *value.shape[1:]) for key, value in conditions.items()}
        return HSpace(network).encode(points, t.expand(len(points)), **rows)

    sigma = georeg.diagnostics.singular_values(encode, x, domain=georeg.Sphere())
    got = [value["value"] * entry["scale"]["value"] for value in entry["singular_values"]]
    assert got == pytest.approx(sigma[:, :3].mean(0).tolist(), rel=2e-3)
    c = sigma.square().mean(1).sqrt().mean()
    assert entry["scale"]["value"] == pytest.approx(float(c), rel=0.25)


def test_of_tensors_alone_whatever_the_batch():
    matrix = torch.diag(torch.linspace(1, 2, 20)).double()
    x = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = [[torch.Generator().manual_seed(i) for i in range(6)] for _ in range(3)]
    found = geometry(lambda x: x @ matrix, x, generator=draws[0])
    assert found.sphericity.value == pytest.approx(float(x.square().mean()))
    assert found.dimension == 19
    assert found.unconverged == 0
    flat = geometry(lambda x: x @ matrix, x, domain=georeg.Euclidean(), num_probes=64, top=1, generator=draws[1])
    truth = torch.linspace(1, 2, 20).square()
    expected = float(20 * truth.square().sum() / truth.sum() ** 2)
    assert abs(flat.isometry.value - expected) < 4 * flat.isometry.stderr
    assert flat.singular_values[0].value * flat.scale.value == pytest.approx(2, rel=1e-3)
    assert close(vars(geometry(lambda x: x @ matrix, x, top=0, generator=draws[2]))["singular_values"], ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 7), (2, 3, 1, 5)])
def test_odd_shapes_and_fewer_directions_than_asked_for(dtype, shape):
    found = geometry(lambda x: 2 * x.flatten(1)[:, :3], torch.ones(shape, dtype=dtype), top=8)
    assert found.dimension == 3
    assert len(found.singular_values) == 3


def test_points_that_cannot_be_measured():
    with pytest.raises(ValueError, match="got no points"):
        geometry(lambda x: x, torch.ones(0, 4))
    with pytest.raises(ValueError, match="J is 0 or not finite"):
        geometry(lambda x: 0 * x, torch.ones(2, 4), top=0)
    with pytest.raises(ValueError, match="not finite"):
        geometry(lambda x: x * math.nan, torch.ones(2, 4))


@pytest.mark.parametrize(("name", "number"), [("num_probes", 0), ("top", 0), ("spectrum_images", -1)])
def test_numbers_that_are_too_small(setting, name, number):
    with pytest.raises(ValueError, match=f"{name}: got {number}"):
        Inspection(setting(torch.eye(64)), **{name: number})
