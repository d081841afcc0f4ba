"""The command line: refusals in one line, configuration, help."""

import subprocess
import sys

import pytest

from georeg_diffusion.bundle import load
from tests.georeg_diffusion.conftest import TINY, cli, error_of


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
        (["--max-train-steps", "many"], 2, "Error: --max-train-steps: got 'many', expected int"),
        (["--learning-rate", "inf"], 2, "Error: --learning-rate: got inf"),
        (["--output-dir", "file/below"], 2, "Error: --output-dir: file/below cannot be made: file is a file"),
        (["--config", "none.yaml"], 2, "cannot read none.yaml"),
        (["--model-config-name-or-path", "none.json"], 2, "cannot build a UNet2DModel from none.json"),
    ],
)
def test_a_users_mistake_gets_one_line_and_a_code(tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
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


def test_whole_numbers_may_have_an_exponent():
    """Which YAML reads as text where it has no point: ``1e3``."""
    from georeg_diffusion.options import resolve
    from georeg_diffusion.training.config import TrainConfig

    assert resolve(TrainConfig, [], {"max_train_steps": "1e3", "seed": "3"}).max_train_steps == 1000


@pytest.mark.parametrize("spelled", ["scaled_linear", "scaled-linear"])
def test_choices_may_have_hyphens(spelled):
    from georeg_diffusion.options import resolve
    from georeg_diffusion.training.config import TrainConfig

    assert resolve(TrainConfig, [], {"ddpm_beta_schedule": spelled}).ddpm_beta_schedule == "scaled_linear"


@pytest.mark.parametrize("name", ["reproduce", "sweep", "train", "edit"])
def test_help_is_set_in_lines_of_the_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli(name, "--help") == 0
    above = "\n".join(line.strip() for line in capsys.readouterr().out.split("╭")[0].splitlines())
    paragraphs = [part.strip().splitlines() for part in above.split("\n\n")]
    assert len(paragraphs) > 2
    assert all(len(line) > 55 for lines in paragraphs for line in lines[:-1]), above


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
