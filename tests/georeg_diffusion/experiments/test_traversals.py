"""Paths between latents: what is measured of them, and the figures that show them."""

from dataclasses import replace

import pytest
import torch

from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.perceptual import feature_distance
from georeg_diffusion.experiments import find, traversals
from georeg_diffusion.experiments.comparison import BASE
from georeg_diffusion.experiments.measured import absent, labels_of, models_of, share
from georeg_diffusion.experiments.paper import fig_vii, fig_viii
from georeg_diffusion.experiments.traversals import ABRUPT, CONFIDENCE, LARGEST, LARGEST_SEEN, LENGTH, MEASURES, RATIO, STRAY
from georeg_diffusion.sampling.ddim import ddim_sample
from georeg_diffusion.sampling.noise import seeded_noise


@pytest.fixture
def small(lab, tiny):
    """Two pairs, two DDIM steps."""
    sizes = dict.fromkeys(("interpolation", "edit", "injection"), 2)
    recipe = replace(
        tiny,
        num_samples={**tiny.num_samples, **sizes},
        num_inference_steps={**tiny.num_inference_steps, **dict.fromkeys(sizes, 2)},
    )
    return replace(lab, recipe=recipe, experiment="pictures", known_tools=lab.known_tools)


@pytest.fixture
def setting(small):
    return small.setting(small.model(0, **BASE), 0, "interpolation")


def by_pixels(setting):
    """The setting whose perceptual distance is the squared one of pixels."""
    distance = feature_distance(FeatureNetwork("the pixels", torch.nn.Flatten()))
    return replace(setting, distance=Once(lambda: distance))


def test_frames_are_ddims_images_of_the_slerp(setting):
    ends, note = traversals.noises({"a": setting, "b": setting}, 2)
    assert note == ""
    torch.testing.assert_close(ends["a"], ends["b"])
    noise = seeded_noise((1, 8, 8), [setting.seed + i for i in range(4)])
    torch.testing.assert_close(ends["a"], torch.stack([noise[::2], noise[1::2]]))
    frames = traversals.walked(setting, ends["a"], frames=3)
    assert frames.shape == (3, 2, 1, 8, 8)
    x, y = noise[2].double().flatten(), noise[3].double().flatten()
    theta = torch.arccos(x @ y / x.norm() / y.norm())
    unit = (x / x.norm() + y / y.norm()) / (2 * torch.cos(theta / 2))  # the middle of the arc bisects the angle
    middle = (unit * (x.norm() * y.norm()).sqrt()).reshape(1, 1, 8, 8).float()
    between = traversals.interpolate(ends["a"][0], ends["a"][1], 3)[1, 1:]
    cosine = torch.nn.functional.cosine_similarity(between.flatten(1), middle.flatten(1))
    assert float(cosine) > 0.9999
    torch.testing.assert_close(frames[1, 1:], ddim_sample(setting.bundle, between, 2), atol=1e-5, rtol=0)
    straight = traversals.walked(setting, ends["a"], path="lerp", frames=3)
    torch.testing.assert_close(straight[0], frames[0])
    assert not torch.allclose(straight[1], frames[1])


def test_an_even_path_and_one_with_a_jump(setting):
    """Frames 0, 1, 2, 3, 4 of one pixel against 0, 0, 0, 4, 4: the same chord and length, all in one step."""
    even, jump = torch.arange(5.0) / 4, torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
    direction = torch.zeros(1, 1, 8, 8)
    direction[0, 0, 0, 0] = 2.0
    measured = [
        traversals.smoothness(by_pixels(setting), (one[:, None, None, None, None] * direction)) for one in (even, jump)
    ]
    assert [one[LENGTH] for one in measured] == pytest.approx([2, 2])
    assert [one[RATIO] for one in measured] == pytest.approx([1, 1])
    assert [one[LARGEST] for one in measured] == pytest.approx([0.5, 2])
    assert [one[LARGEST_SEEN] for one in measured] == pytest.approx([0.5, 2])  # the root of a squared distance
    assert [one[ABRUPT] for one in measured] == pytest.approx([1, 4])
    zigzag = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None, None, None] * direction
    assert traversals.smoothness(by_pixels(setting), zigzag)[RATIO] == pytest.approx(3)
    still = traversals.smoothness(by_pixels(setting), torch.zeros(4, 1, 1, 8, 8))
    assert still[RATIO] is None
    assert still[ABRUPT] == 1


def test_without_anything_that_measures_pixels_are_left(setting):
    bare = replace(setting, distance=Once.missing("none"), classifier=Once.missing("none"))
    found = traversals.smoothness(bare, torch.rand(4, 2, 1, 8, 8))
    assert set(found) == set(MEASURES)
    assert found[LARGEST] is not None
    assert [found[name] for name in (LARGEST_SEEN, ABRUPT, STRAY, CONFIDENCE)] == [None] * 4
    (note,) = absent(perceptual_distance=bare.distance, features=setting.features)
    assert note == "nothing was measured by the perceptual distance: none"
    with pytest.raises(RunError, match="finite"):
        traversals.walked(bare, torch.full((2, 1, 1, 8, 8), float("nan")))


def test_strays_of_classes_and_of_attributes():
    one_hot = torch.nn.functional.one_hot
    path = one_hot(torch.tensor([[1], [1], [4], [2], [2]])).bool()  # 1 1 4 2 2: the 4 belongs to neither end
    assert traversals.stray(path).tolist() == pytest.approx([1 / 3])
    attributes = torch.tensor([[[1, 0]], [[0, 0]], [[1, 1]], [[1, 0]]]).bool()  # each inner frame is off in one of two
    assert traversals.stray(attributes).tolist() == pytest.approx([0.5])
    assert float(share(attributes[1], attributes[2])) == 1
    assert float(share(attributes[0], attributes[1])) == 0.5


def test_labels_of_a_classifier_keep_the_shape(setting):
    labels, confidence = labels_of(setting, torch.rand(3, 2, 1, 8, 8))
    assert labels.shape == (3, 2, 10)
    assert labels.sum(-1).eq(1).all()
    assert confidence.shape == (3, 2)
    assert (confidence >= 0.1).all()


def test_pairs_of_one_class_are_found(small, setting, monkeypatch):
    """Classes by the sign of a noise: every pair must then be of one sign, though seeds alternate as they like."""
    images = setting.noise(range(setting.seed, setting.seed + 12))
    truth = images.flatten(1).mean(1) > 0

    def by_sign(one, found):
        sign = found.flatten(-3).mean(-1) > 0
        return torch.stack([sign, ~sign], -1), torch.ones(found.shape[:-3])

    monkeypatch.setattr("georeg_diffusion.experiments.measured.labels_of", by_sign)
    monkeypatch.setattr("georeg_diffusion.editing.subjects.Subjects.images", lambda self, *_: self.latents)
    ends, note = fig_vii.same_class({"base": setting, "isometric": setting}, 2)
    assert note == "2 of 2 pairs have one class at both ends"
    signs = ends["base"].flatten(2).mean(2) > 0
    assert torch.equal(signs[0], signs[1])
    assert 0 < int(truth.sum()) < 12
    monkeypatch.setattr("georeg_diffusion.experiments.measured.labels_of", lambda *_: None)
    ends, note = fig_vii.same_class({"base": setting}, 2)
    assert note.startswith("0 of 2")
    torch.testing.assert_close(ends["base"][:, 0], images[:2])


def test_inverted_ends_come_back_as_the_real_images(small, setting):
    fine = replace(setting, num_inference_steps=30)
    ends, note = fig_viii.inverted({"base": fine}, 2)
    real = fine.real(range(4)).unflatten(0, (2, 2)).transpose(0, 1)
    images = ddim_sample(fine.bundle, ends["base"].flatten(0, 1), 30).reshape(real.shape)
    error = float((images - real).square().mean())
    assert error < 0.05 * float(real.square().mean())
    assert float(note.rsplit(" ", 1)[1]) == pytest.approx(error, rel=0.1, abs=1e-6)
    assert isinstance(fine.images(), Images)


@pytest.mark.parametrize("name", ["fig1", "fig6", "figVII", "figVIII"])
def test_figures_measure_all_pairs_and_draw_some(small, name):
    lab = replace(small, experiment=name, seeds=(0, 1) if name == "fig6" else (0,))
    found = find(name).run(lab)
    (table,) = found.tables
    assert len(table.rows) == len(MEASURES)
    assert all(picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 8_000 for picture in found.pictures)
    assert all(picture.parent == lab.folder / name for picture in found.pictures)
    assert len(found.claims) == (5 if name == "fig1" else 3)
    length = next(row for row in table.rows if row[0].startswith(LENGTH))
    setting = lab.setting(lab.model(0, **BASE), 0, "interpolation")
    if name == "fig6":
        assert list(table.columns[1:3]) == list(models_of(lab))
        values = []
        for seed in lab.seeds:
            setting = lab.setting(lab.model(seed, **BASE), seed, "interpolation")
            ends, _ = traversals.noises({"base": setting}, 2)
            frames = traversals.walked(setting, ends["base"])
            values.append(float((frames[1:] - frames[:-1]).flatten(2).norm(dim=2).sum(0).mean()))
        assert length[1].value == pytest.approx(sum(values) / 2, rel=1e-5)
        assert length[1].stderr == pytest.approx(abs(values[1] - values[0]) / 2, rel=1e-3)
