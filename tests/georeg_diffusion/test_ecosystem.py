"""Presets, model cards, the hub and trackers."""

import json
import re
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard

from georeg_diffusion import presets
from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import load
from georeg_diffusion.options import resolve
from georeg_diffusion.training.config import TrainConfig
from tests.georeg_diffusion.conftest import TINY, cli, error_of
from tests.georeg_diffusion.networks import plain

# Height and channels of the network's input and of h, from the models' published configurations.
SHAPES = {
    "cifar10": ((3, 32), (256, 4)),
    "celebahq256": ((3, 256), (512, 8)),
    "lsun-church256": ((3, 256), (512, 8)),
    "lsun-bedrooms256": ((3, 256), (512, 8)),
    "ldm-celebahq256": ((3, 64), (896, 8)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_presets_have_the_papers_settings(name):
    config = resolve(TrainConfig, [presets.path_of(name)], {})
    assert (config.train_batch_size, config.learning_rate, config.isometry_skip) == (32, 1e-4, 0.5)
    assert (config.lambda_iso, config.normalize, config.num_epochs) == (1e-4, False, 10)
    assert (config.use_ema, config.ema_max_decay, config.adam_weight_decay, config.random_flip) == (True, 0.9999, 0.0, True)
    assert config.with_baseline
    assert config.select_by == "fid"
    assert config.num_validation_images == 10_000
    assert config.pretrained_model_name_or_path.count("/") == config.dataset_name.count("/") == 1
    assert config.resolution == (32 if name == "cifar10" else 256)


@pytest.mark.parametrize("name", SHAPES)
def test_presets_state_lambda_in_both_normalisations(name):
    text = presets.path_of(name).read_text()
    (channels, size), (features, height) = SHAPES[name]
    d = min(channels * size**2 - 1, features * height**2)
    assert int(re.search(r"\) = (\d+)\.", text)[1]) == d
    normalised = float(re.search(r"1e-4 / d = ([\d.e-]+):", text)[1])
    assert normalised == pytest.approx(1e-4 / d, rel=5e-3)
    assert float(re.search(r"bare ratio is ([\d.]+)\.", text)[1]) == pytest.approx(1e-2 * d, rel=5e-3)
    assert "Published (Table" in text
    figures = dict(re.findall(r"# +(FID-10k|PPL-50k|mRTL|MCN|VoR) +([\d.]+ +[\d.]+)", text))
    assert set(figures) == {"FID-10k", "PPL-50k", "mRTL", "MCN", "VoR"}


def test_a_preset_trains_with_other_data_and_model(tmp_path, model):
    """The command line wins, so that the paper's protocol runs on whatever is there."""
    out = tmp_path / "out"
    code = cli(
        "train", "--preset", "celebahq256", *TINY, "--train-data-dir", _grey(tmp_path), "--no-evaluate",
        "--max-train-steps", 1, "--pretrained-model-name-or-path", model, "--select-by", "denoising",
        "--num-validation-images", 4, "--output-dir", out,
    )  # fmt: skip
    assert code == 0
    assert load(out / "base").sample_shape == load(out / "isometric").sample_shape == (1, 8, 8)
    assert yaml.safe_load((out / "config.yaml").read_text())["lambda_iso"] == 1e-4


def _grey(place):
    from PIL import Image

    (place / "data").mkdir()
    for i in range(8):
        Image.new("L", (9, 9), 20 * i).save(place / "data" / f"{i}.png")
    return place / "data"


def test_pipelines_in_one_folder_load_as_the_hubs_early_ones_are(tmp_path):
    network = plain()
    network.save_pretrained(tmp_path)
    diffusers.DDPMScheduler(beta_end=0.012).save_pretrained(tmp_path)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    bundle = load(tmp_path)
    assert bundle.scheduler.config.beta_end == 0.012
    assert bundle.sample_shape == (2, 8, 8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    out = tmp_path_factory.mktemp("runs") / "carded"
    assert cli("train", *TINY, "--pretrained-model-name-or-path", model, "--max-train-steps", 1, "--train-data-dir",
               _grey(out.parent), "--output-dir", out) == 0  # fmt: skip
    return out


def test_cards_say_what_the_model_is_and_how_it_was_scored(finished):
    card = ModelCard.load(finished / "isometric" / "README.md")
    assert card.data.library_name == "diffusers"
    assert {"diffusers", "isometric-diffusion"} <= set(card.data.tags)
    scores = json.loads((finished / "metrics.json").read_text())["models"]["isometric"]
    for key, label in (("mcn", "mean condition number (MCN)"), ("isometry", "isometry loss, normalised (perfect: 1)")):
        assert f"| {label} | {scores[key]['value']:.4g}" in card.text
        assert scores[key]["protocol"] in card.text
    assert "8 images of data at 8²" in card.text
    assert "λ = 0.01 (normalised" in card.text
    assert diffusers.DDPMPipeline.from_pretrained(finished / "isometric")


def test_a_finished_model_is_pushed_with_its_card(finished, model, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    class Api:
        def upload_file(self, **kwargs):
            calls.append(kwargs["path_in_repo"])

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(file.name for file in folder_path.iterdir())))
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **kwargs: SimpleNamespace(repo_id=f"me/{name}"))
    arguments = ["train", *TINY, "--pretrained-model-name-or-path", model, "--max-train-steps", 1, "--train-data-dir",
                 finished.parent / "data", "--output-dir", finished, "--push-to-hub"]  # fmt: skip
    assert cli(*arguments) == 0
    assert calls[:2] == ["samples.png", "metrics.json"]
    assert calls[2][0] == "me/carded"
    assert {"README.md", "model_index.json"} <= set(calls[2][1])
    assert "Uploaded: https://hub/commit" in capsys.readouterr().out

    def refuse(*args, **kwargs):
        raise OSError("no\nlogin")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    capsys.readouterr()
    assert cli(*arguments, "--hub-model-id", "you/x") == 1
    assert "--push-to-hub: cannot create you/x: no login" in " ".join(capsys.readouterr().err.split())


def test_the_hub_is_asked_before_training(tmp_path, model, monkeypatch, capsys):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    code, error = error_of(capsys, *TINY, "--pretrained-model-name-or-path", model, "--max-train-steps", 1, "--push-to-hub",
                           "--output-dir", tmp_path / "out")  # fmt: skip
    assert code == 1
    assert "cannot create out: offline" in error
    assert not (tmp_path / "out" / "isometric").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_there_is_named(tmp_path, model, capsys, monkeypatch, name):
    from georeg_diffusion.training import run

    monkeypatch.setattr(run, "find_spec", lambda name: None)
    code, error = error_of(capsys, *TINY[:-3], "--cpu", "--report-to", name, "--pretrained-model-name-or-path", model,
                           "--max-train-steps", 1, "--output-dir", tmp_path / "out")  # fmt: skip
    assert code == 2
    assert f"--report-to: {name} is not installed: pip install {name}" in error


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_the_configuration_and_the_name_of_the_run(tmp_path, model, monkeypatch, name):
    import accelerate

    from georeg_diffusion.training import run

    seen = {}
    original = accelerate.Accelerator.__init__

    def construct(self, *args, log_with=None, **kwargs):
        seen["log_with"] = log_with
        original(self, *args, **kwargs)

    monkeypatch.setattr(accelerate.Accelerator, "__init__", construct)
    monkeypatch.setattr(
        accelerate.Accelerator, "init_trackers", lambda self, project, **kwargs: seen.update(kwargs, project=project)
    )
    monkeypatch.setattr(run, "find_spec", lambda name: True)
    assert cli("train", *TINY[:-3], "--cpu", "--report-to", name, "--pretrained-model-name-or-path", model, "--no-evaluate",
               "--max-train-steps", 1, "--output-dir", tmp_path / "out") == 0  # fmt: skip
    assert seen["log_with"] == name
    assert seen["init_kwargs"] == {name: {"name": "out"}}
    assert seen["config"]["report_to"] == name
