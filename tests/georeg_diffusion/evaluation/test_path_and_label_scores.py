"""Interpolation, inversion and linear separability of models whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import georeg
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.classifier import Classifier
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.interpolation import Interpolation
from georeg_diffusion.evaluation.inversion import Inversion
from georeg_diffusion.evaluation.ls import Ls, LsRadial
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.perceptual import feature_distance
from georeg_diffusion.evaluation.separability import (
    conditional_entropy,
    gram,
    joint_table,
    predictions,
    separability,
)
from georeg_diffusion.evaluation.setting import Setting
from tests.georeg_diffusion.evaluation.contract import run

PIXELS = FeatureNetwork("the pixels", nn.Flatten())


@pytest.fixture
def setting(linear_bundle, digits):
    """A generator x₀ = c·x_T on 8 × 8 (the prediction is a multiple of x_t), small enough that nothing is clipped."""

    def make(gain=0.0, **options):
        parts = {
            "num_samples": 5,
            "num_inference_steps": 3,
            "images": Once(lambda: digits),
            "distance": Once(lambda: feature_distance(PIXELS)),
            "at": "mid",
        }
        return Setting(bundle=linear_bundle(torch.eye(64), gain=gain), **(parts | options))

    return make


def test_steps_between_frames_of_a_linear_generator(setting):
    """Squared pixel distances, by hand from the slerps and the factor that the sampler has."""
    one = setting(gain=1.0)
    factor = float(one.decode(torch.ones(1, 1, 8, 8), [0], 3)[0, 0, 0, 0])
    assert 0 < abs(factor) < 0.3
    largest, curves = [], []
    for i in range(5):
        ends = torch.randn(2, 1, 1, 8, 8, generator=one.draws([i])[0]).double()
        path = factor * georeg.slerp(ends[0], ends[1], torch.linspace(0, 1, 17, dtype=torch.float64))
        d = path.clamp(-1, 1).diff(dim=0).flatten(1).square().sum(1)
        curves.append(d)
        largest.append(d.max())
    result = run(Interpolation(one))
    assert result.value == pytest.approx(float(torch.stack(largest).mean()), rel=1e-4)
    assert result.details["adjacent"] == pytest.approx(torch.stack(curves).mean(0).tolist(), rel=1e-4)
    ratio = torch.stack([d.std(correction=0) / d.mean() for d in curves]).mean()
    assert result.details["variation"]["value"] == pytest.approx(float(ratio), rel=1e-3)
    assert "squared distance of the pixels" in result.protocol
    assert (result.n, len(result.details["adjacent"])) == (5, 16)


def test_a_generator_that_makes_one_image_is_perfectly_even(setting):
    one = setting()

    class Constant(nn.Module):
        def forward(self, a, b):
            return torch.zeros(len(a))

    still = replace(one, distance=Once(lambda: replace(feature_distance(PIXELS), network=Constant())))
    result = run(Interpolation(still))
    assert (result.value, result.details["variation"]["value"]) == (0, 0)
    with pytest.raises(ValueError, match="at least 3"):
        Interpolation(one, frames=2)


def test_inversion_of_a_model_that_predicts_no_noise_is_exact(setting):
    """Every step is then a multiplication, which inversion takes back."""
    result = run(Inversion(setting(num_inference_steps=20)))
    assert result.value == pytest.approx(0, abs=1e-10)
    assert result.details["steps"] == [5, 10, 20]
    assert result.details["distance"] == pytest.approx([0, 0, 0], abs=1e-8)


def test_errors_of_inversion_are_the_closed_form_and_fall_with_the_steps(setting, digits):
    """A linear model multiplies by a product of factors in each direction; x̂₀ = c·x₀ with c from scalars alone."""
    from georeg_diffusion.sampling.ddim import ddim, ddim_steps
    from georeg_diffusion.sampling.inversion import ddim_invert

    one = setting(gain=0.05, num_inference_steps=50, num_samples=4)
    result = run(Inversion(one))
    power = float(one.real(range(4)).double().square().flatten(1).mean(1).mean())
    for count, error in zip(result.details["steps"], result.details["mse"], strict=True):
        steps, scalar = ddim_steps(one.bundle.scheduler, count), torch.ones(1, 1, dtype=torch.float64)
        predict = lambda x, t: 0.05 * x  # noqa: E731
        c = float(ddim(predict, steps, ddim_invert(predict, steps, scalar).latents))
        if c <= 1:  # larger ones are clipped
            assert error == pytest.approx((1 - c) ** 2 * power, rel=1e-2, abs=1e-9)
    errors = result.details["mse"]
    assert errors == sorted(errors, reverse=True), "more steps invert better"
    assert result.details["psnr"] == sorted(result.details["psnr"])
    assert result.value == pytest.approx(errors[-1])


def test_inversion_without_a_distance_has_its_error_all_the_same(setting):
    one = setting(gain=0.05, distance=Once.missing("no weights; put them there"))
    result = run(Inversion(one))
    assert result.value > 0
    assert "no weights; put them there" in result.details["caution"]
    assert "distance" not in result.details
    with pytest.raises(RunError, match="real images"):
        Inversion(Setting(bundle=one.bundle))


def latents(n=400, d=20, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table_of(x, y, kernel="linear", **options):
    said = predictions(gram(x, kernel), y, **options)
    return joint_table(torch.arange(len(y)), said, y, len(y))


def test_labels_by_a_hyperplane_are_separable_and_random_ones_are_at_chance():
    x = latents()
    normal = latents(1, 20, 5)[0]
    split = (x @ normal > 0).long()
    margin = (x @ normal).abs() > 0.5 * normal.norm()
    good, details = separability([table_of(x[margin], split[margin])])
    assert good.value < 1.2
    assert details["chance"] == pytest.approx(2, rel=0.01)
    random = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(1))
    bad, details = separability([table_of(x, random)])
    # The plug-in entropy of an independent table is below ln 2 by about 1/2n; twice that and more stays within 2 %.
    assert bad.value == pytest.approx(details["chance"], rel=0.02)


def test_in_sample_any_labels_are_separable_in_many_dimensions():
    """Why held-out is the default."""
    x = latents(100, 2000)
    random = torch.randint(0, 2, (100,), generator=torch.Generator().manual_seed(1))
    assert separability([table_of(x, random, in_sample=True)])[0].value == pytest.approx(1)
    assert separability([table_of(x, random)])[0].value > 1.9


def test_a_shell_is_for_the_radial_kernel():
    x = latents(600, 2)
    inside = (x.norm(dim=1) < 1.18).long()
    assert separability([table_of(x, inside)])[0].value > 1.8
    assert separability([table_of(x, inside, "radial")])[0].value < 1.4


def test_kernels_are_those_of_scikit_learn():
    from sklearn.svm import SVC

    x, y = latents(60, 7), torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(3))
    for ours, theirs in (("linear", "linear"), ("radial", "rbf")):
        said = predictions(gram(x, ours), y, in_sample=True)
        assert (
            said.tolist() == SVC(kernel=theirs, C=1.0, gamma="scale").fit(x.numpy(), y.numpy()).predict(x.numpy()).tolist()
        )
    with pytest.raises(ValueError, match="kernel"):
        gram(x, "cubic")
    with pytest.raises(ValueError, match="at least 2"):
        predictions(gram(x, "linear"), torch.zeros(60, dtype=torch.long))


def test_conditional_entropy_against_its_definition():
    table = torch.tensor([[7.0, 2.0, 0.0], [1.0, 5.0, 3.0]])
    p = table / table.sum()
    expected = -sum(
        float(p[i, j]) * math.log(float(p[i, j] / p[i].sum())) for i in range(2) for j in range(3) if float(p[i, j]) > 0
    )
    assert float(conditional_entropy(table)) == pytest.approx(expected, rel=1e-6)
    y = torch.tensor([0, 0, 1, 1])
    one = joint_table(torch.arange(4), torch.tensor([0, 1, 0, 1]), y, 4)
    assert separability([one])[0].value == pytest.approx(2)
    in_bits, details = separability([one], bits=True)
    assert details["entropies"] == pytest.approx([1])
    assert in_bits.value == pytest.approx(2), "2 to the power of bits is e to the power of nats"
    assert separability([one, one])[0].value == pytest.approx(4), "entropies add up"


def test_the_error_is_the_jackknife_over_samples_by_brute_force():
    draw = torch.Generator().manual_seed(4)
    y, said = (torch.randint(0, 2, (30,), generator=draw) for _ in range(2))
    rows = torch.arange(30)[::2]
    tables = [joint_table(torch.arange(30), said, y, 30), joint_table(rows, y[rows], said[rows], 30)]

    def value(keep):
        total = 0.0
        for (_, where), size in zip(tables, (2, 2), strict=True):
            cells = where[keep][where[keep] >= 0]
            total += float(conditional_entropy(torch.bincount(cells, minlength=4).reshape(size, size).double()))
        return math.exp(total)

    each = torch.tensor([value([j for j in range(30) if j != i]) for i in range(30)], dtype=torch.float64)
    expected = float((29 / 30 * (each - each.mean()).square().sum()).sqrt())
    assert separability(tables)[0].stderr == pytest.approx(expected, rel=1e-9)


class Sign(nn.Module):
    """Logits of attributes from single pixels of the image."""

    def forward(self, flat):
        return 40 * flat[:, :2]


@pytest.fixture
def attributes():
    return Classifier(
        name="signs of two pixels", features=nn.Flatten(), head=Sign(), names=("first", "second"), exclusive=False
    )


def test_ls_of_attributes_that_are_hyperplanes_in_x(setting, attributes):
    """A linear generator keeps signs of pixels, which hyperplanes of x_T separate, at the confident half with a margin."""
    one = setting(gain=1.0, num_samples=800, classifier=Once(lambda: attributes), batch_size=200)
    result = run(Ls(one))
    assert result.n == 800
    assert result.details["attributes"] == ["first", "second"]
    assert result.value < 1.6
    assert result.details["chance"] == pytest.approx(4, rel=0.02)
    assert "400 most confident of 800" in result.protocol
    bits = run(Ls(replace(one, options={"ls_entropy": "bits"})))
    assert bits.value == pytest.approx(2 ** sum(bits.details["entropies"]), rel=1e-9)
    assert bits.value == pytest.approx(result.value, rel=1e-9)
    paper = run(Ls(replace(one, protocol="paper")))
    assert "trained" in paper.protocol
    assert paper.value <= result.value
    assert 1 <= run(LsRadial(one)).value < 4


def test_ls_of_classes_names_those_that_are_missing(setting):
    class Two(nn.Module):
        def forward(self, flat):
            return torch.stack([40 * flat[:, 0], -40 * flat[:, 0], flat[:, 0] - 1e3], dim=1)

    classes = Classifier(name="halves", features=nn.Flatten(), head=Two(), names=("up", "down", "never"), exclusive=True)
    one = setting(gain=1.0, num_samples=200, classifier=Once(lambda: classes), batch_size=200)
    result = run(Ls(one))
    assert "never" in result.details["caution"]
    assert "up" not in result.details["caution"].split(":")[1]
    assert result.details["chance"] == pytest.approx(2, rel=0.05)


def test_ls_of_one_class_has_none_and_says_so(setting):
    class One(nn.Module):
        def forward(self, flat):
            return torch.stack([flat[:, 0] + 1e3, flat[:, 0] - 1e3], dim=1)

    classes = Classifier(name="one", features=nn.Flatten(), head=One(), names=("always", "never"), exclusive=True)
    one = setting(gain=1.0, num_samples=100, classifier=Once(lambda: classes), batch_size=200)
    result = run(Ls(one))
    assert result.value is None
    assert "one class only" in result.protocol
    assert "at least 20 images" in run(Ls(replace(one, num_samples=8))).protocol


@pytest.mark.parametrize("options", [{"ls_split": "both"}, {"ls_entropy": "digits"}])
def test_unknown_protocols_are_refused(setting, attributes, options):
    with pytest.raises(UsageError, match="--ls-"):
        Ls(setting(classifier=Once(lambda: attributes), options=options))
