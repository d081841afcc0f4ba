"""The toy's trainings are done once, and go on after an interruption."""

import pytest
import torch

from georeg_diffusion.experiments import sphere_trainings
from georeg_diffusion.experiments.sphere_region import Region
from georeg_diffusion.experiments.sphere_trainings import train_all


@pytest.fixture
def trained(monkeypatch):
    """What was trained and not read."""
    seen = []
    real = sphere_trainings.train_autoencoder

    def counted(**given):
        seen.append({key: value for key, value in given.items() if key != "tick"})
        return real(**given)

    monkeypatch.setattr(sphere_trainings, "train_autoencoder", counted)
    return seen


def outputs(runs, x):
    return torch.cat([one.decoder(one.encoder(x)) for one in runs.values()])


def test_what_is_finished_is_read_again_equal(tmp_path, trained):
    trainings = {seed: {"metric": "sphere", "seed": seed} for seed in (0, 1)}
    first, again = (train_all(trainings, steps=2, folder=tmp_path) for _ in range(2))
    assert len(trained) == 2
    x = Region().sample(5, torch.Generator().manual_seed(0))
    assert torch.equal(outputs(first, x), outputs(again, x))
    assert [one.curve for one in first.values()] == [one.curve for one in again.values()]
    assert not any(p.requires_grad for one in again.values() for p in one.encoder.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "flat"},
        {"seed": 1},
        {"estimator": "gaussian"},
        {"region": Region(90.0)},
        {"region": Region(60.0, (0.0, -1.0, 0.0))},
    ],
)
def test_what_differs_is_trained_anew(tmp_path, trained, change):
    train_all({"a": {"metric": "sphere", "seed": 0}}, steps=1, folder=tmp_path)
    train_all({"a": {"metric": "sphere", "seed": 0, **change}}, steps=1, folder=tmp_path)
    train_all({"a": {"metric": "sphere", "seed": 0, **change}}, steps=2, folder=tmp_path)
    assert len(trained) == 3


def test_what_cannot_matter_is_not_trained_twice(tmp_path, trained):
    equal = [
        {"metric": "none", "seed": 0},
        {"metric": "none", "seed": 0, "estimator": "gaussian", "probe_seed": 3, "region": Region()},
    ]
    train_all(dict(enumerate(equal)), steps=1, folder=tmp_path)
    exact = [{"metric": "sphere", "seed": 0, "probe_seed": p} for p in (0, 7)]
    train_all(dict(enumerate(exact)), steps=1, folder=tmp_path)
    drawn = [{"metric": "sphere", "seed": 0, "probe_seed": p, "estimator": "gaussian"} for p in (0, 7)]
    train_all(dict(enumerate(drawn)), steps=1, folder=tmp_path)
    assert len(trained) == 1 + 1 + 2


@pytest.mark.parametrize("damage", [b"", b"not a model", None])
def test_a_damaged_file_is_trained_anew(tmp_path, trained, damage):
    given = {"a": {"metric": "none", "seed": 0}}
    train_all(given, steps=1, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:500] if damage is None else damage)
    train_all(given, steps=1, folder=tmp_path)
    assert len(trained) == 2
    train_all(given, steps=1, folder=tmp_path)
    assert len(trained) == 2


def test_an_interrupted_row_of_trainings_goes_on(tmp_path, trained, monkeypatch):
    given = {seed: {"metric": "none", "seed": seed} for seed in range(3)}
    counted = sphere_trainings.train_autoencoder

    def interrupted(**one):
        if one["seed"] == 2:
            raise KeyboardInterrupt
        return counted(**one)

    monkeypatch.setattr(sphere_trainings, "train_autoencoder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_all(given, steps=1, folder=tmp_path)
    monkeypatch.setattr(sphere_trainings, "train_autoencoder", counted)
    assert set(train_all(given, steps=1, folder=tmp_path)) == {0, 1, 2}
    assert [one["seed"] for one in trained] == [0, 1, 2]
