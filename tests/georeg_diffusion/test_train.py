"""The trainer from the command line inwards: results, resume, refusals."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import load
from georeg_diffusion.cli import main
from georeg_diffusion.training.phase import read_log
from tests.georeg_diffusion.conftest import small_unet

TINY = ["--resolution", "8", "--train-batch-size", "8", "--logging-steps", "1", "--report-to", "none", "--cpu"]


def cli(*arguments):
    """Exit code of the command line."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model as a diffusers folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "small"
    diffusers.DDPMPipeline(unet=small_unet(), scheduler=diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


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


def weights(folder):
    return load(folder).network.state_dict()


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


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path, model):
    """Images, noise, timesteps and probes follow from the draw's number; means are pooled over both processes."""
    shared = [
        "train",
        "--resolution",
        "8",
        "--logging-steps",
        "1",
        "--report-to",
        "none",
        "--no-evaluate",
        "--pretrained-model-name-or-path",
        str(model),
        "--max-train-steps",
        "3",
        "--lambda-iso",
        "0.1",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            "29611",
            "-m",
            "georeg_diffusion",
            *shared,
            "--cpu",
            "--train-batch-size",
            "4",
            "--output-dir",
            str(tmp_path / "two"),
        ],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert cli(*shared, "--cpu", "--train-batch-size", 8, "--output-dir", tmp_path / "one") == 0
    one, two = weights(tmp_path / "one" / "isometric"), weights(tmp_path / "two" / "isometric")
    moved = max((one[name] - before).abs().max() for name, before in weights(model).items())
    apart = max((one[name] - two[name]).abs().max() for name in one)
    assert moved > 1e-4
    assert apart < 1e-5  # float32 after three Adam steps, which enlarge rounding where a gradient is all but zero


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


def error_of(capsys, *arguments):
    code = cli("train", *arguments)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, " ".join(error.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--train-data-dir", "nowhere"], 1, "nowhere does not exist"),
        (["--resolution", "10"], 2, "--resolution: got 10, expected a multiple of the network's stride 4, such as 8 or 12"),
        (["--resolution", "0"], 2, "--resolution: got 0"),
        (["--pretrained-model-name-or-path", "./none"], 1, "./none is not a folder"),
        (["--lambda-iso", "-1"], 2, "--lambda-iso: got -1"),
        (["--lambda-iso", "nan"], 2, "--lambda-iso: got nan"),
        (["--metric", "round"], 2, "round"),
        (["--nonsense"], 2, "nonsense"),
        (["--h-module", "nowhere"], 2, "--h-module: at: got 'nowhere'"),
        (["--output-dir", "/proc/nowhere"], 1, "/proc/nowhere"),
        (["--estimator", "guess"], 2, "--estimator: got 'guess', expected one of"),
        (["--estimator", "exact", "--num-probes", "3"], 2, "--num-probes: got 3, but the estimator 'exact' takes no probes"),
        (["--estimator", "xtrace", "--num-probes", "1"], 2, "--num-probes"),
        (["--max-train-steps", "many"], 2, "--max-train-steps"),
        (["--config", "none.yaml"], 2, "cannot read none.yaml"),
        (["--model-config-name-or-path", "none.json"], 2, "cannot build a UNet2DModel from none.json"),
    ],
)
def test_a_users_mistake_gets_one_line_and_a_code(tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    got, error = error_of(capsys, "--output-dir", tmp_path / "out", *arguments, "--report-to", "none", "--cpu")
    assert got == code
    assert message in error.replace("│", "").replace("  ", " ")


def test_a_refused_start_does_not_claim_the_folder(tmp_path, model):
    arguments = ["train", *TINY, "--pretrained-model-name-or-path", model, "--max-train-steps", 1, "--no-evaluate",
                 "--output-dir", tmp_path / "out"]  # fmt: skip
    assert cli(*arguments, "--h-module", "nowhere") == 2
    assert cli(*arguments) == 0


def test_foreign_folders_are_never_deleted(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    for extra in ([], ["--overwrite-output-dir"]):
        code, error = error_of(capsys, *TINY, "--output-dir", tmp_path, *extra)
        assert code == 2
        assert str(tmp_path) in error
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_configuration_files(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    for text, message in (
        ("sed: 1", "unknown key 'sed'"),
        ("seed: many", "--seed: got 'many', expected int"),
        ("[1, 2]", "holds a list"),
        ("a: [", "is not YAML"),
        ("metric: round", "expected one of sphere"),
    ):
        file.write_text(text)
        code, error = error_of(capsys, "--config", file, "--output-dir", tmp_path / "out")
        assert code == 2
        assert message in error


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


def test_help_needs_no_torch_and_teaches():
    script = "import sys; from georeg_diffusion.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    script += "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--isometry-skip" in done.stdout
    assert "run the same command again" in " ".join(done.stdout.split())


def test_presets_hold_valid_options_and_come_with_the_package(capsys):
    from georeg_diffusion import presets
    from georeg_diffusion.options import resolve
    from georeg_diffusion.training.config import TrainConfig

    assert "digits" in presets.names()
    for name in presets.names():
        assert resolve(TrainConfig, [presets.path_of(name)], {}) != TrainConfig() or name == "digits"
    code, error = error_of(capsys, "--preset", "nope")
    assert code == 2
    assert "expected one of digits" in error


def test_the_command_line_offers_what_there_is():
    """Choices that are spelled out, because --help loads no torch, against the code they name."""
    from dataclasses import fields

    from georeg.registry import registered
    from georeg_diffusion.latent_metrics import METRICS
    from georeg_diffusion.training.config import TrainConfig

    entries = {entry.name: entry for entry in fields(TrainConfig)}
    assert entries["metric"].metadata["choices"] == METRICS
    assert all(name in entries["estimator"].metadata["help"] for name in registered("estimator"))


def test_models_that_are_none(tmp_path, capsys):
    from georeg_diffusion.errors import RunError

    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    for place, message in (("empty", "model_index.json"), ("other", "AutoencoderKL")):
        with pytest.raises(RunError, match=message):
            load(tmp_path / place)
