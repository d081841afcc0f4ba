"""Fig. 2, II, III and IV: what they draw, say and decide, with trainings of a few steps."""

from dataclasses import replace

import pytest

from georeg_diffusion.experiments import find
from georeg_diffusion.experiments.paper import fig_ii, fig_iii
from georeg_diffusion.experiments.sphere_region import Region
from georeg_diffusion.experiments.sphere_scores import COLUMNS, LOSSES, alike, less, scores_of_maps, table_of


def found(lab, name, tmp_path, monkeypatch, steps=4):
    module = find(name)
    monkeypatch.setattr(module, "QUICK_STEPS", steps)
    return module.run(replace(lab, folder=tmp_path, experiment=name))


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def row(table, name):
    return next(cells for cells in table.rows if cells[0] == name)


def test_fig2_has_a_row_for_each_loss_and_a_picture(lab, tmp_path, monkeypatch):
    finding = found(lab, "fig2", tmp_path, monkeypatch, steps=50)
    (table,) = finding.tables
    loss = 1 + list(COLUMNS).index("loss")
    none, flat, sphere = (row(table, name)[loss] for name in LOSSES.values())
    assert sphere.value < min(none.value, flat.value)
    assert all(cell.stderr > 0 for cell in (none, flat, sphere))  # two seeds
    assert row(table, "map: stereographic")[1 + list(COLUMNS).index("condition")].value == pytest.approx(1, abs=1e-3)
    assert row(table, "map: equidistant")[1].value is None  # it has no decoder
    assert [p.name for p in finding.pictures] == ["fig2.png"]
    assert is_picture(finding.pictures[0])
    assert len(finding.claims) == 5
    assert all("2 seeds" in claim.evidence for claim in finding.claims)


def test_fig_iv_has_a_table_for_each_part_of_the_sphere(lab, tmp_path, monkeypatch):
    finding = found(replace(lab, seeds=(0,)), "figIV", tmp_path, monkeypatch, steps=3)
    assert len(finding.tables) == 3
    assert len(finding.claims) == 12
    assert is_picture(finding.pictures[0])


def test_fig_ii_measures_how_far_the_estimators_latents_are(lab, tmp_path, monkeypatch):
    finding = found(lab, "figII", tmp_path, monkeypatch, steps=25)
    apart = {cells[0]: cells[1].value for cells in finding.tables[1].rows}
    assert set(apart) == set(fig_ii.NAMES.values()) - {"Exact trace"}
    assert 0 < apart["One fixed-norm probe"] < apart["Reconstruction only"]
    assert 0 < apart["One Gaussian probe"] < apart["Reconstruction only"]
    assert is_picture(finding.pictures[0])
    assert finding.claims[-1].holds is not False


def test_fig_iii_repeats_differ_in_their_probes_alone(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(fig_iii, "REPEATS", 2)
    finding = found(lab, "figIII", tmp_path, monkeypatch, steps=15)
    (table,) = finding.tables
    assert row(table, "one Gaussian probe")[2].value > 0
    assert row(table, "exact trace")[2].value is None
    assert is_picture(finding.pictures[0])


def test_one_seed_decides_nothing(lab, tmp_path, monkeypatch):
    finding = found(replace(lab, seeds=(3,)), "fig2", tmp_path, monkeypatch)
    assert all(claim.holds is None for claim in finding.claims)
    assert "seed 3" not in str(finding.tables[0].rows)
    assert is_picture(finding.pictures[0])


def test_less_is_decided_by_paired_differences():
    """The seeds differ by far more than the two kinds, which differ always in one direction."""
    before = [{"loss": 10.0}, {"loss": 20.0}, {"loss": 30.0}]
    after = [{"loss": 9.0}, {"loss": 18.9}, {"loss": 29.1}]
    assert less("", after, before, "loss").holds is True
    assert less("", before, after, "loss").holds is False
    mixed = [{"loss": 9.0}, {"loss": 21.0}, {"loss": 30.1}]
    claim = less("c", mixed, before, "loss")
    assert claim.holds is None
    assert "isometry loss" in claim.evidence
    assert "3 seeds" in claim.evidence


def test_alike_needs_the_whole_interval_below_a_tenth():
    assert alike("", [0.0, 0.01, -0.01]).holds is True
    assert alike("", [-0.01, -0.02, -0.03]).holds is True  # the estimator ended lower: as alike
    assert alike("", [-0.5, -0.52, -0.48]).holds is False
    assert alike("", [0.05, 0.15, 0.1]).holds is None
    assert alike("", [0.05]).holds is None


def test_a_table_shows_a_dash_for_what_a_row_lacks():
    scores = scores_of_maps(Region(60.0), points=256)["map: equidistant"]
    table = table_of("t", {"one": [scores, scores], "two": [{}]})
    assert "error" not in scores
    assert str(table.rows[0][1]) == "—"
    assert table.rows[0][2].value == pytest.approx(scores["loss"])
    assert all(cell.value is None for cell in table.rows[1][1:])
