"""The trainer from the command line inwards: results and resume."""

import json
import shutil

import pytest
import torch
from PIL import Image

from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import load
from georeg_diffusion.training.log import read_log
from tests.georeg_diffusion.conftest import TINY, cli, error_of, weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    """A finished comparison, scores and pictures included."""
    out = tmp_path_factory.mktemp("runs") / "comparison"
    code = cli(
        "train",
        *TINY,
        "--with-baseline",
        "--pretrained-model-name-or-path",
        model,
        "--max-train-steps",
        3,
        "--output-dir",
        out,
    )
    assert code == 0
    return out


def test_the_comparison_writes_all_it_promises(finished):
    for name in ("samples.png", "interpolation.png", "loss.png"):
        assert Image.open(finished / name).size[0] > 600
    record = json.loads((finished / "metrics.json").read_text())
    for name in ("base", "isometric"):
        scores = record["models"][name]
        assert {"denoising", "isometry", "isometry_pooled", "mcn", "vor", "vor_log", "mrtl", "frechet"} <= set(scores)
        assert all({"value", "stderr", "n", "protocol"} <= set(entry) for entry in scores.values())
    assert (finished / "config.yaml").is_file()
    assert not list(finished.rglob("*.partial*"))


def test_the_result_samples_in_plain_diffusers(finished):
    pipeline = diffusers.DDPMPipeline.from_pretrained(finished / "isometric")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, batch_size=2).images[0].size == (8, 8)


def test_base_and_isometric_saw_the_same_draws_and_differ_only_by_the_loss(finished):
    base, isometric = (read_log(finished / "logs" / f"{name}.jsonl") for name in ("base", "isometric"))
    assert base[0]["denoising"] == isometric[0]["denoising"]
    assert [e["isometry"] for e in base] == [0.0] * 3
    assert all(e["isometry"] > 0 for e in isometric if e["gated"])
    assert all(e["gradient_ratio"] > 0 for e in isometric if e["gated"])
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(finished / "base").values(), weights(finished / "isometric").values(), strict=True)
    )


def test_a_finished_run_started_again_prints_its_table(finished, capsys, model):
    before = (finished / "metrics.json").read_bytes()
    assert (
        cli(
            "train",
            *TINY,
            "--with-baseline",
            "--pretrained-model-name-or-path",
            model,
            "--max-train-steps",
            3,
            "--output-dir",
            finished,
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "denoising loss" in printed
    assert "Look at:" in printed
    assert (finished / "metrics.json").read_bytes() == before


def test_scores_can_be_asked_for_later(tmp_path, model, monkeypatch):
    from georeg_diffusion.training import run

    out = tmp_path / "out"
    arguments = ["train", *TINY, "--pretrained-model-name-or-path", model, "--max-train-steps", 1, "--output-dir", out]
    assert cli(*arguments, "--no-evaluate") == 0
    before = weights(out / "isometric")
    monkeypatch.setattr(run, "score", lambda *args, **kwargs: {"denoising": {"value": 1.0, "stderr": None}})
    assert cli(*arguments) == 0
    assert json.loads((out / "metrics.json").read_text())["models"]["isometric"]["denoising"]["value"] == 1
    after = weights(out / "isometric")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_runs_folder_is_refused_and_kept(finished, capsys, model):
    code = cli(
        "train",
        *TINY,
        "--with-baseline",
        "--pretrained-model-name-or-path",
        model,
        "--max-train-steps",
        3,
        "--lambda-iso",
        0.5,
        "--output-dir",
        finished,
    )
    assert code == 2
    assert "--lambda-iso 0.01 → 0.5" in " ".join(capsys.readouterr().err.split())
    assert (finished / "metrics.json").is_file()


def test_resumed_is_bit_identical_to_uninterrupted(tmp_path, model, monkeypatch):
    """Interrupted by an exception in step 5, after the checkpoint of step 4."""
    arguments = [
        "train",
        *TINY,
        "--pretrained-model-name-or-path",
        model,
        "--max-train-steps",
        6,
        "--checkpointing-steps",
        2,
        "--no-evaluate",
    ]
    assert cli(*arguments, "--output-dir", tmp_path / "whole") == 0

    from georeg_diffusion.objective import IsometricDiffusionLoss

    forward, calls = IsometricDiffusionLoss.forward, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", interrupted)
    assert cli(*arguments, "--output-dir", tmp_path / "torn") == 130
    monkeypatch.setattr(IsometricDiffusionLoss, "forward", forward)
    assert not (tmp_path / "torn" / "isometric").exists()
    assert cli(*arguments, "--output-dir", tmp_path / "torn") == 0
    whole, torn = weights(tmp_path / "whole" / "isometric"), weights(tmp_path / "torn" / "isometric")
    assert all(torch.equal(whole[name], torn[name]) for name in whole)
    assert read_log(tmp_path / "whole/logs/isometric.jsonl") == read_log(tmp_path / "torn/logs/isometric.jsonl")


def test_a_folder_of_images_trains_from_scratch(tmp_path):
    """Real face crops; the base model of three channels is built on the spot."""
    from skimage.data import lfw_subset

    pictures = tmp_path / "faces"
    pictures.mkdir()
    for i, face in enumerate(lfw_subset()[:12]):
        Image.fromarray((face * 255).astype("uint8")).save(pictures / f"{i}.png")
    (pictures / "broken.png").write_bytes(b"no")
    out = tmp_path / "out"
    code = cli(
        "train",
        "--train-data-dir",
        pictures,
        "--resolution",
        16,
        "--train-batch-size",
        4,
        "--max-train-steps",
        2,
        "--report-to",
        "none",
        "--cpu",
        "--no-evaluate",
        "--output-dir",
        out,
    )
    assert code == 0
    assert load(out / "isometric").sample_shape == (3, 16, 16)


def test_the_command_line_wins_over_the_file(tmp_path, model):
    file, out = tmp_path / "c.yaml", tmp_path / "out"
    file.write_text("seed: 7\nmax-train-steps: 50\ntrain_batch_size: 4\n")
    code = cli(
        "train",
        "--config",
        file,
        "--max_train_steps",
        1,
        "--pretrained-model-name-or-path",
        model,
        "--report-to",
        "none",
        "--cpu",
        "--no-evaluate",
        "--output-dir",
        out,
    )
    assert code == 0
    import yaml

    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert (resolved["seed"], resolved["max_train_steps"], resolved["train_batch_size"]) == (7, 1, 4)
    again = tmp_path / "again"
    shutil.copy(out / "config.yaml", tmp_path / "full.yaml")
    assert cli("train", "--config", tmp_path / "full.yaml", "--output-dir", again) == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(out / "isometric").values(), weights(again / "isometric").values(), strict=True)
    )


def test_a_weak_isometry_term_is_pointed_out(tmp_path, capsys, model):
    assert (
        cli(
            "train",
            *TINY,
            "--pretrained-model-name-or-path",
            model,
            "--max-train-steps",
            6,
            "--lambda-iso",
            1e-7,
            "--isometry-skip",
            0.0,
            "--no-evaluate",
            "--output-dir",
            tmp_path / "out",
        )
        == 0
    )
    assert "trains nothing" in capsys.readouterr().out


def test_a_non_finite_gradient_is_skipped_and_then_stops_the_run(tmp_path, capsys, model):
    broken = tmp_path / "broken"
    bundle = load(model)
    bundle.network.conv_out.bias.data.fill_(float("nan"))
    bundle.save(broken)
    code, error = error_of(
        capsys,
        *TINY,
        "--pretrained-model-name-or-path",
        broken,
        "--max-train-steps",
        20,
        "--no-evaluate",
        "--output-dir",
        tmp_path / "out",
    )
    assert code == 1
    assert "non-finite gradient" in error
