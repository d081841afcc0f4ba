"""FID and KID as scores: streaming, resumable, honest about too few images, with an interval that covers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from georeg_diffusion.data.digits import Digits
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.feature_moments import FeatureMoments
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.fid import Fid
from georeg_diffusion.evaluation.frechet import frechet_distance, frechet_of_gaussians
from georeg_diffusion.evaluation.generated import GROUPS, PIECE, STUDENT, GeneratedFeatures
from georeg_diffusion.evaluation.kid import Kid
from georeg_diffusion.evaluation.mmd import polynomial_mmd
from georeg_diffusion.evaluation.reference import Reference, reference_from_file, reference_of
from georeg_diffusion.evaluation.score import OutOfTimeError
from georeg_diffusion.sampling.noise import seeded_noise

PIXELS = FeatureNetwork("the pixels", nn.Flatten())
SHAPE = (1, 2, 3)


def sample(seeds):
    return 1.5 * seeded_noise(SHAPE, seeds) + 0.5


def generated(count, **options):
    return GeneratedFeatures(sample, PIXELS, count, 0, options.pop("batch_size", 16), "no steps", **options)


def real(count=500):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(99))
    moments = FeatureMoments.of(x)
    return Reference("real noise", moments.mean, moments.covariance, count, x)


def run(score, pieces=None):
    for piece in range(score.pieces() if pieces is None else pieces):
        score.update(piece)
    return score.compute()


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_the_result_does_not_depend_on_the_batch_size(batch_size):
    for score in (Fid, Kid):
        expected = run(score(generated(150), real()))
        got = run(score(generated(150, batch_size=batch_size), real()))
        assert got.value == pytest.approx(expected.value, abs=1e-9)
        assert got.ci == pytest.approx(expected.ci, abs=1e-9)
        assert got.n == 150


def test_values_are_those_of_all_images_at_once():
    images = sample(range(150)).flatten(1)
    assert run(Fid(generated(150), real())).value == pytest.approx(frechet_distance(real().features, images), rel=1e-9)
    # With 150 images the subsets have 150 of the 500 real ones: the mean over 100 of them is near that of all.
    kid = run(Kid(generated(150), real()))
    assert kid.value == pytest.approx(polynomial_mmd(real().features, images), rel=0.02)


@pytest.mark.parametrize("score", [Fid, Kid])
def test_an_interrupted_score_goes_on(score):
    whole = run(score(generated(150), real()))
    first = score(generated(150), real())
    first.update(0)
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second = score(generated(150, batch_size=5), real())
    second.load_state(state)
    for piece in range(1, second.pieces()):
        second.update(piece)
    assert second.compute().value == pytest.approx(whole.value, rel=1e-9)
    assert first.compute().n == PIECE
    fresh = score(generated(150), real())
    fresh.load_state(fresh.state())
    assert fresh.compute().value is None


def test_too_few_images_are_named_with_the_rank():
    result = run(Fid(generated(5), real()))
    assert result.value is not None
    assert "rank is at most 4 of 6" in result.protocol
    assert "take more than 6" in result.protocol
    assert result.ci is None
    assert "no interval" in result.protocol
    assert "rank" not in run(Fid(generated(150), real())).protocol
    assert "real images' covariance has a rank of at most 3 of 6" in run(Fid(generated(20), real(4))).protocol
    for score in (Fid, Kid):
        result = run(score(generated(1), real()))
        assert result.value is None
        assert "at least 2 images" in result.protocol


def test_every_result_names_its_features_and_is_no_fid_by_another_name():
    for score in (Fid, Kid):
        result = run(score(generated(40), real()))
        assert result.protocol.startswith("the pixels; 40 generated images, no steps, against real noise")
        assert "Inception" not in result.protocol


def test_the_interval_covers_the_scores_spread_over_seeds():
    """100 repetitions: the groups' standard error against the true one, for distributions that differ."""
    values, errors = [], []
    generator = torch.Generator().manual_seed(5)
    reference = real()
    for _ in range(100):
        x = 1.5 * torch.randn(400, 6, generator=generator) + 0.5
        groups = [FeatureMoments.of(x[g::GROUPS]) for g in range(GROUPS)]
        fid = Fid(generated(400), reference)
        fid.groups = groups
        result = fid.compute()
        values.append(result.value)
        errors.append((result.ci[1] - result.ci[0]) / 2 / STUDENT)
    true = float(np.std(values, ddof=1))
    assert float(np.mean(np.square(errors)) ** 0.5) == pytest.approx(true, rel=0.25)


def test_students_quantile():
    from scipy.stats import t

    assert pytest.approx(t.ppf(0.975, GROUPS - 1), abs=1e-3) == STUDENT


def test_features_are_generated_once_and_kept(tmp_path):
    calls = []

    def counted(seeds):
        calls.extend(seeds)
        return sample(seeds)

    def with_cache(key="model", network=PIXELS, how="20 steps"):
        return GeneratedFeatures(counted, network, 70, 3, 16, how, tmp_path, key)

    fid = run(Fid(with_cache(), real()))
    assert calls == list(range(3, 73))
    kid = run(Kid(with_cache(), real()))
    assert len(calls) == 70, "KID generated anew what FID had"
    assert fid.n == kid.n == 70
    for other in (with_cache("another"), with_cache(how="21 steps"), with_cache(network=FeatureNetwork("x", nn.Flatten()))):
        before = len(calls)
        run(Fid(other, real()))
        assert len(calls) == before + 70
    next(iter(tmp_path.glob("generated-*"))).write_bytes(b"damaged")
    assert run(Fid(with_cache(), real())).value == pytest.approx(fid.value)


def test_the_reference_is_kept_by_features_images_and_resolution(tmp_path):
    class Counting(nn.Flatten):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(nn.functional.adaptive_avg_pool2d(x, 2))

    network = FeatureNetwork("pooled", Counting())
    first = reference_of(Digits(8), network, cache=tmp_path)
    calls = Counting.calls
    again = reference_of(Digits(8), network, cache=tmp_path)
    assert Counting.calls == calls
    torch.testing.assert_close(again.covariance, first.covariance, rtol=0, atol=0)
    features = nn.functional.adaptive_avg_pool2d(Digits(8).pixels, 2).flatten(1)
    torch.testing.assert_close(first.covariance, torch.cov(features.double().T), rtol=1e-6, atol=1e-9)
    assert first.count == 1797
    assert first.features.shape == (1797, 4)
    reference_of(Digits(10), network, cache=tmp_path)
    reference_of(Digits(8), FeatureNetwork("other", Counting()), cache=tmp_path)
    assert len(list(tmp_path.glob("reference-*"))) == 3
    for file in tmp_path.glob("reference-*"):
        file.write_bytes(b"damaged")
    assert reference_of(Digits(8), network, cache=tmp_path).count == 1797


def test_a_reference_out_of_time_goes_on_where_it_was(tmp_path, monkeypatch):
    seen = []

    class Counting(nn.Flatten):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(nn.functional.adaptive_avg_pool2d(x, 2))

    network = FeatureNetwork("pooled", Counting())
    whole = reference_of(Digits(8), network)
    seen.clear()
    clock = iter(range(10_000))  # of this module alone: threads of other libraries read time too, when they like
    monkeypatch.setattr("georeg_diffusion.evaluation.reference.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(OutOfTimeError, match="1,216 of 1,797 real images"):
        reference_of(Digits(8), network, cache=tmp_path, deadline=19)
    found = reference_of(Digits(8), network, cache=tmp_path)
    assert sum(seen) == 1797 + 192, "only the part that was not finished is measured again"
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-12, atol=0)
    assert torch.equal(found.features, whole.features)
    assert len(list(tmp_path.iterdir())) == 1, "parts were left behind"


def test_published_statistics(tmp_path):
    moments = FeatureMoments.of(torch.randn(50, 6, generator=torch.Generator().manual_seed(1)))
    np.savez(tmp_path / "stats.npz", mu=moments.mean.numpy(), sigma=moments.covariance.numpy())
    reference = reference_from_file(tmp_path / "stats.npz")
    fid = run(Fid(generated(100), reference))
    got = FeatureMoments.of(sample(range(100)).flatten(1))
    assert fid.value == pytest.approx(
        frechet_of_gaussians(moments.mean, moments.covariance, got.mean, got.covariance), rel=1e-9
    )
    assert "the statistics in stats.npz" in fid.protocol
    kid = Kid(generated(100), reference)
    assert kid.pieces() == 0, "nothing is generated for a score that cannot be had"
    assert run(kid).value is None
    assert "published moments hold no features" in run(kid).protocol


def test_published_statistics_of_other_features(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ValueError, match="statistics of 4 features, expected 6"):
        run(Fid(generated(100), reference_from_file(tmp_path / "stats.npz")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": np.zeros(3)}, "has no sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "expected \\(F,\\) and"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.array([{}, {}]), "sigma": np.eye(2)}, "cannot be read"),
    ],
)
def test_bad_statistics(tmp_path, content, message):
    np.savez(tmp_path / "stats.npz", **content)
    with pytest.raises(RunError, match=message):
        reference_from_file(tmp_path / "stats.npz")


def test_statistics_that_are_no_npz(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        reference_from_file(tmp_path / "none.npz")
    for content in (b"", b"text", b"PK\x03\x04broken"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(RunError, match="bad.npz"):
            reference_from_file(tmp_path / "bad.npz")
    np.save(tmp_path / "array.npy", np.eye(2))
    with pytest.raises(RunError, match="cannot be read"):
        reference_from_file(tmp_path / "array.npy")


def test_a_reference_of_one_image(tmp_path):
    digits = Digits(8)
    digits.pixels = digits.pixels[:1]
    with pytest.raises(RunError, match="holds 1 image"):
        reference_of(digits, PIXELS)
