"""The lab: each training and each score once, by all that it follows from."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from georeg_diffusion.bundle import load
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.weights import weights_hash
from georeg_diffusion.experiments import lab as module
from georeg_diffusion.experiments.lab import SEED_STRIDE, Lab
from georeg_diffusion.report.panels import save_image


@pytest.fixture
def runs(monkeypatch):
    """The configurations that are trained while a test runs."""
    found, run = [], module.run

    def counted(config, *args, **kwargs):
        found.append(config)
        return run(config, *args, **kwargs)

    monkeypatch.setattr(module, "run", counted)
    return found


def hash_of(model):
    return weights_hash(load(str(model)).network)


def test_a_model_is_trained_once_and_continues_its_seeds_pretrained_one(lab, runs):
    ours, base = lab.model(0), lab.model(0, lambda_iso=0.0)
    count = len(runs)
    assert lab.model(0) == ours
    assert len(runs) == count
    assert lab.pretrained(0) == lab.pretrained(0)
    assert len({hash_of(one) for one in (ours, base, lab.pretrained(0))}) == 3
    assert not (ours.parent / "checkpoints").exists()
    assert hash_of(lab.pretrained(1)) != hash_of(lab.pretrained(0))


def test_a_model_that_was_deleted_is_trained_again(lab, tmp_path):
    lab = replace(lab, folder=tmp_path)
    model = lab.model(0)
    before = hash_of(model)
    shutil.rmtree(model)
    assert hash_of(lab.model(0)) == before


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_a_model_that_was_cut_off_is_trained_again(lab, tmp_path, name):
    lab = replace(lab, folder=tmp_path)
    model = lab.model(0)
    before = hash_of(model)
    file = model / name
    file.write_bytes(file.read_bytes()[:100])
    assert hash_of(lab.model(0)) == before


def test_a_classifier_that_was_cut_off_is_trained_again(lab, tmp_path):
    lab = replace(lab, folder=tmp_path)
    folder = lab._classifier(8)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert (lab._classifier(8) / "model.safetensors").read_bytes() == whole


def test_what_the_base_ignores_makes_no_other_base(lab):
    base = lab.model(0, lambda_iso=0.0)
    assert lab.model(0, lambda_iso=0.0, metric="ambient", num_probes=3) == base
    assert lab.model(0, isometry_skip=1.0) == base
    assert lab.model(0, lambda_iso=0.0, train_batch_size=4) != base


def test_a_changed_recipe_reuses_nothing(lab, tiny, runs):
    lab.model(0)
    runs.clear()
    other = replace(lab, recipe=replace(tiny, steps=3))
    assert other.model(0) != lab.model(0)
    assert [config.max_train_steps for config in runs] == [3]  # the pre-trained model is the same
    assert replace(lab, recipe=replace(tiny, pretraining_steps=3)).pretrained(0) != lab.pretrained(0)


def test_changes_of_the_model_itself_reach_its_pretraining(lab):
    large = lab.model(0, resolution=12)
    assert load(str(large)).sample_shape == (1, 12, 12)
    assert lab.pretrained(0, resolution=12) != lab.pretrained(0)


def test_an_interrupted_training_goes_on(lab, tiny, tmp_path, monkeypatch, runs):
    """Bit for bit what an uninterrupted one gives, from the checkpoint of its first step."""
    from georeg_diffusion.objective import IsometricDiffusionLoss

    lab = replace(lab, folder=tmp_path, recipe=replace(tiny, training={**tiny.training, "checkpointing_steps": 1}))
    lab.pretrained(0)
    forward, calls = IsometricDiffusionLoss.forward, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.model(0)
    monkeypatch.setattr(IsometricDiffusionLoss, "forward", forward)
    torn = hash_of(lab.model(0))
    shutil.rmtree(lab.model(0).parent)
    assert hash_of(lab.model(0)) == torn


def test_a_score_is_measured_once_and_again_for_other_sizes(lab, monkeypatch):
    model, calls, evaluate = lab.model(0), [], module.evaluate

    def counted(settings, scores, **kwargs):
        calls.append((next(iter(scores)), settings["model"].num_samples, settings["model"].seed))
        return evaluate(settings, scores, **kwargs)

    first = lab.score(model, 1, "isometry")
    monkeypatch.setattr(module, "evaluate", counted)
    assert lab.score(model, 1, "isometry") == first
    assert calls == []
    assert lab.score(model, 1, "isometry", num_samples=3)["isometry"]["n"] == 3
    assert calls == [("isometry", 3, SEED_STRIDE)]
    assert first["isometry"]["n"] == 4


@pytest.mark.parametrize("damage", ["{", "[1, 2]", '{"value": 1.0}', "null"])
def test_a_damaged_score_is_measured_anew(lab, damage):
    model = lab.model(0)
    first = lab.score(model, 0, "isometry")
    file = lab._score_file(model, 0, "isometry", {})
    assert json.loads(file.read_text()) == first["isometry"]
    file.write_text(damage)
    assert lab.score(model, 0, "isometry") == first


def test_a_foreign_model_is_known_by_its_content(lab, model, tmp_path):
    """As it may be trained on, after a score of it was kept."""
    copied = shutil.copytree(model, tmp_path / "model")
    first = lab.score(copied, 0, "isometry")["isometry"]["value"]
    assert lab.score(model, 0, "isometry")["isometry"]["value"] == first
    other = tmp_path / "other"
    bundle = load(str(model))
    with torch.no_grad():
        next(bundle.network.parameters()).mul_(1.5)
    bundle.save(other)
    assert lab.score(other, 0, "isometry")["isometry"]["value"] != first


def test_what_measures_is_known_by_its_content(lab, tmp_path):
    """As a classifier may be trained anew in the same folder."""
    model, folder = lab.model(0), tmp_path / "classifier"
    folder.mkdir()
    lab = replace(lab, measures={"features": str(folder), "lpips_backbone": "features"})
    (folder / "config.json").write_text("{}")
    first, given = lab._score_file(model, 0, "fid", {}), lab.given()
    copied = replace(lab, measures={**lab.measures, "features": str(shutil.copytree(folder, tmp_path / "copy"))})
    assert copied._score_file(model, 0, "fid", {}) == first
    (folder / "config.json").write_text('{"other": 1}')
    module._content.cache_clear()
    assert lab._score_file(model, 0, "fid", {}) != first
    assert lab.given() != given


def test_images_and_model_of_a_recipe_are_known_by_their_content(lab, model, tmp_path):
    save_image(torch.zeros(3, 8, 8), tmp_path / "a.png")
    training = {"train_data_dir": tmp_path, "pretrained_model_name_or_path": str(model)}
    lab = replace(lab, recipe=replace(lab.recipe, pretraining_steps=None, training=training))
    with pytest.raises(RunError, match=f"^--data-dir: {tmp_path / 'none'} does not exist"):
        replace(lab, recipe=replace(lab.recipe, training={"train_data_dir": tmp_path / "none"})).given()
    first = lab.given()
    assert set(first) == {"images", "training pretrained_model_name_or_path"}
    save_image(torch.ones(3, 8, 8), tmp_path / "b.png")
    module._fingerprint.cache_clear()
    assert {key for key, value in lab.given().items() if value != first[key]} == {"images"}


def test_all_seeds_are_measured_by_one_classifier(lab):
    names = {lab.score(lab.model(seed), seed, "fid")["fid"]["details"]["measure"] for seed in lab.seeds}
    assert len(names) == 1


def test_mistakes_are_named(lab):
    with pytest.raises(UsageError, match="lambda_isometry: no option of training, expected one of"):
        lab.model(0, lambda_isometry=1.0)
    with pytest.raises(UsageError, match="--metric: got 'round'"):
        lab.model(0, metric="round")
    with pytest.raises(UsageError, match="--scores: got 'beauty'"):
        lab.score(lab.model(0), 0, "beauty")
    with pytest.raises(RunError, match="fid: .* is no classifier"):
        broken = replace(lab, measures={"features": str(lab.folder / "classifiers")}, known_tools={})
        broken.score(lab.model(0), 0, "fid")


def test_a_checkpoint_is_chosen_by_what_measures_the_fid(lab, tiny):
    chosen = replace(tiny, training={**tiny.training, "validation_steps": 1})
    assert replace(lab, recipe=chosen, measures={"features": "resnet50"})._config(0, {}).features == "resnet50"
    assert replace(lab, measures={"features": "resnet50"})._config(0, {}).features is None


def test_files_of_an_experiment_lie_in_its_folder(lab):
    assert replace(lab, experiment="fig5").path("rtl.png") == lab.folder / "fig5" / "rtl.png"


def test_another_device_does_not_make_another_model(lab):
    config = Lab(lab.recipe, (0,), lab.folder, device=torch.device("meta"))._config(0, {})
    assert lab._key(config) == lab._key(lab._config(0, {}))
