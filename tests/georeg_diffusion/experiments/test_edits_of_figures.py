"""Moves along directions, contents in h and RTL over λ: what is measured, and the figures that show them."""

import math
from dataclasses import replace

import pytest
import torch

from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.experiments import find, linearity
from georeg_diffusion.experiments.comparison import BASE, Replicated
from georeg_diffusion.experiments.linearity import FLIPPED, LINEAR, LINEAR_SEEN, MATCHED, SIZE, additive_share, linear_share
from georeg_diffusion.experiments.paper import fig5, fig_vi


@pytest.fixture
def small(lab, tiny):
    """Two samples, two DDIM steps."""
    sizes = dict.fromkeys(("edit", "injection"), 2)
    recipe = replace(
        tiny,
        num_samples={**tiny.num_samples, **sizes},
        num_inference_steps={**tiny.num_inference_steps, **dict.fromkeys(sizes, 2)},
    )
    return replace(lab, recipe=recipe, experiment="pictures")


def is_picture(file):
    return file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 8_000


def test_linear_share_is_the_r_squared_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    weights = linearity.grid_of([-2.0, -1.0, 0.0, 1.0, 2.0])
    noise = torch.randn(25, 3, 7, generator=generator, dtype=torch.float64)
    linear = torch.einsum("sk,kbd->sbd", weights.double(), torch.randn(2, 3, 7, generator=generator, dtype=torch.float64))
    changes = linear + 0.7 * noise
    for b in range(3):  # by numpy's solver, sample by sample
        solved = torch.linalg.lstsq(weights.double(), changes[:, b]).solution
        left = (changes[:, b] - weights.double() @ solved).square().sum()
        expected = 1 - float(left / changes[:, b].square().sum())
        assert float(linear_share(changes, weights)[b]) == pytest.approx(expected)
    assert linear_share(linear, weights).tolist() == pytest.approx([1, 1, 1])
    assert linear_share(weights.square().sum(1)[:, None, None], weights).tolist() == pytest.approx([0], abs=1e-12)
    assert linear_share(torch.zeros(25, 1, 4), weights).tolist() == [1]
    assert linear_share(1e3 * changes.float(), weights).tolist() == pytest.approx(linear_share(changes, weights).tolist())


def test_additive_share_needs_no_linearity():
    gammas = [-1.0, 0.0, 2.0]
    weights = linearity.grid_of(gammas)
    a, b = weights.double().unbind(1)
    sums = torch.stack([a**3 + b.abs(), a.exp() - 1 + b], -1)[:, None]
    assert additive_share(sums, weights) == pytest.approx(1)
    assert float(linear_share(sums, weights)[0]) < 0.95
    mixed = (a + b + 0.5 * a * b)[:, None, None]
    corners = [(x, y) for x in (-1.0, 2.0) for y in (-1.0, 2.0)]
    left = sum((0.5 * x * y) ** 2 for x, y in corners)
    total = sum((x + y + 0.5 * x * y) ** 2 for x, y in corners)
    assert additive_share(mixed, weights) == pytest.approx(1 - left / total)
    with pytest.raises(ValueError, match="row of zeros"):
        linearity.origin(torch.tensor([[1.0]]))


def test_moves_are_measured_from_the_unedited(small):
    setting = small.setting(small.model(0, **BASE), 0, "edit")
    weights = torch.tensor([[-1.0], [0.0], [1.0]])
    generator = torch.Generator().manual_seed(0)
    plain, step = (torch.randn(1, 2, 1, 8, 8, generator=generator) / 4 for _ in range(2))
    images = plain + weights[:, :, None, None, None] * step
    found = linearity.measured(setting, images, weights, lambda changes: {"extra": float(changes.abs().max())})
    assert found[LINEAR] == pytest.approx(1)
    assert found[SIZE] == pytest.approx(float(step[0].flatten(1).norm(dim=1).mean()))
    assert 0 <= found[FLIPPED] <= 1
    assert found[LINEAR_SEEN] <= 1
    assert found["extra"] == pytest.approx(float(step.abs().max()))
    bare = replace(setting, features=Once.missing("none"), classifier=Once.missing("none"))
    found = linearity.measured(bare, images, weights, lambda changes: {})
    assert (found[LINEAR_SEEN], found[FLIPPED]) == (None, None)


@pytest.mark.parametrize("name", ["fig7", "figV"])
def test_figures_of_moves_also_match_the_size_of_the_change(small, name):
    found = find(name).run(replace(small, experiment=name, seeds=(0,)))
    (table,) = found.tables
    base, ours, matched = next(row for row in table.rows if row[0] == SIZE)[1:4]
    assert table.columns[3] == MATCHED
    assert abs(math.log(matched.value / base.value)) <= abs(math.log(ours.value / base.value)) + 0.05
    assert all(is_picture(picture) for picture in found.pictures)
    assert any("as much as the base's" in claim.text for claim in found.claims)


def test_transferred_classes_are_counted_against_chance(small, monkeypatch):
    """Images of one value, which is their class: 3 contents, 2 samples."""
    setting = small.setting(small.model(0, **BASE), 0, "injection")

    def by_value(_, images):
        return torch.nn.functional.one_hot(images.flatten(-3)[..., 0].long(), 10).bool(), torch.ones(images.shape[:-3])

    monkeypatch.setattr("georeg_diffusion.experiments.measured.labels_of", by_value)

    def images(classes):
        return torch.tensor(classes, dtype=torch.float)[..., None, None, None].expand(*torch.tensor(classes).shape, 1, 8, 8)

    plain, source = images([0, 1]), images([1, 2, 3])
    # Pairs (content, sample) of different classes: (1, 0), (2, 0), (2, 1), (3, 0), (3, 1).
    edited = images([[1, 1], [0, 2], [2, 1]])
    found = fig_vi.transferred(setting, plain, source, edited)
    assert found[fig_vi.TAKEN] == pytest.approx(2 / 5)  # (1, 0) and (2, 1)
    assert found[fig_vi.KEPT] == pytest.approx(2 / 5)  # (2, 0) and (3, 1)
    # Third classes: (1, 0): 2, 3. (2, 0): 1, 3. (2, 1): 3. (3, 0): 1, 2, of which it is 2. (3, 1): 2.
    assert found[fig_vi.OTHER] == pytest.approx((0 + 0 + 0 + 1 / 2 + 0) / 5)
    same = fig_vi.transferred(setting, images([4, 4]), images([4]), images([[4, 4]]))
    assert (same[fig_vi.TAKEN], same[fig_vi.OTHER]) == (None, None)
    assert fig_vi.transferred(setting, plain, source, source[:, None].expand(3, 2, 1, 8, 8))[fig_vi.CLOSER] < 1e-3
    unmoved = plain.expand(3, 2, 1, 8, 8)
    assert fig_vi.transferred(setting, plain, source, unmoved)[fig_vi.CLOSER] == pytest.approx(1)
    bare = replace(setting, distance=Once.missing("none"), classifier=Once.missing("none"))
    assert set(fig_vi.transferred(bare, plain, source, edited).values()) == {None}


def test_figure_vi_shows_both_models(small):
    found = find("figVI").run(replace(small, experiment="figVI", seeds=(0,)))
    assert [picture.parent.name for picture in found.pictures] == ["base", "isometric"]
    assert all(is_picture(picture) for picture in found.pictures)
    assert len(found.claims) == 3
    assert "c = 1.5" in found.tables[0].rows[-1][0]


def test_figure_5_has_each_reverse_step_of_each_weight(small):
    lab = replace(small, experiment="fig5", seeds=(0,))
    found = find("fig5").run(lab)
    (table,) = found.tables
    assert table.columns[3:] == ("λ = 0", "λ = 0.001", "λ = 0.01", "λ = 0.1")
    assert [row[2] for row in table.rows[:2]] == ["no", "no"]  # steps at 500 and 0, and the loss acts at t > 500
    entry = lab.score(lab.model(0), 0, "mrtl")["mrtl"]
    assert table.rows[1][5].value == pytest.approx(entry["details"]["rtl"][1])
    assert table.rows[2][5].value == pytest.approx(entry["value"])  # mRTL
    assert is_picture(found.pictures[0])


def means(acts, rests):
    kinds = {fig5.ACTS: acts, fig5.RESTS: rests, fig5.ALL: [(a + b) / 2 for a, b in zip(acts, rests, strict=True)]}
    return Replicated({kind: tuple(values) for kind, values in kinds.items()}, {}, {})


def test_claims_of_figure_5_follow_from_the_numbers():
    base = means([1.40, 1.42, 1.38], [1.50, 1.51, 1.49])
    some, much = means([1.30, 1.31, 1.29], [1.48, 1.50, 1.47]), means([1.12, 1.13, 1.11], [1.46, 1.47, 1.45])
    verdicts = [claim.holds for claim in fig5.claims_of({"λ = 0": base, "λ = 1": some, "λ = 2": much}, 1.11)]
    assert verdicts == [True, True, True, True, False]  # 1.12 is not 1
    turned = [claim.holds for claim in fig5.claims_of({"λ = 0": much, "λ = 1": base, "λ = 2": base}, 1.11)]
    assert turned == [False, False, False, False, False]
    same = fig5.claims_of({"λ = 0": base, "λ = 1": base}, 1.11)
    assert [claim.holds for claim in same] == [None, None, None, None, False]
    flat = means([1.001, 0.999, 1.0], [1.2, 1.21, 1.19])
    assert fig5.claims_of({"λ = 0": base, "λ = 1": flat}, 1.11)[-1].holds is True
    noisy = means([1.0, 1.3, 1.1], [1.2, 1.21, 1.19])
    assert fig5.claims_of({"λ = 0": base, "λ = 1": noisy}, 1.11)[-1].holds is None  # not known to be above 1 is not 1
    ungated = Replicated({**base.values, fig5.ACTS: (None, None, None)}, {}, {})
    assert [claim.holds for claim in fig5.claims_of({"λ = 0": ungated, "λ = 1": ungated}, 1.11)][2:] == [None, None, None]
