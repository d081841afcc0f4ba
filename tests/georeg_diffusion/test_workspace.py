"""Output folders of commands: claimed, recorded, never lost."""

import json
from dataclasses import dataclass, replace

import pytest

from georeg_diffusion.commands.options import ModelOptions
from georeg_diffusion.commands.workspace import workspace
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.weights import weights_hash
from georeg_diffusion.options import option, resolve


@dataclass(frozen=True)
class Options(ModelOptions):
    number: int = option(3, "A number.")


@pytest.fixture
def options(model, tmp_path):
    return Options(model=str(model), output_dir=tmp_path / "out", device="cpu")


def run(config, *names, fail=None):
    with workspace(config, "try") as work:
        work.open(config.model)
        for name in names:
            work.path(name).write_text(str(config.number))
        if fail:
            raise fail
    return work


def record(config):
    return json.loads((config.output_dir / "run.json").read_text())


def test_a_run_is_recorded(options):
    run(options, "a.txt", "deep/b.txt")
    written = record(options)
    assert written["finished"]
    assert written["files"] == ["a.txt", "deep/b.txt"]
    assert written["arguments"]["number"] == 3
    assert written["seed"] == 0
    assert written["versions"]["torch"]
    assert len(written["models"][0]["sha256"]) == 64


def test_a_finished_run_is_kept_unless_told_otherwise(options):
    run(options, "a.txt", "old.txt")
    with pytest.raises(UsageError, match="--overwrite"):
        run(options, "a.txt")
    run(replace(options, number=4, overwrite=True), "a.txt")
    assert (options.output_dir / "a.txt").read_text() == "4"
    assert not (options.output_dir / "old.txt").exists()
    assert record(options)["arguments"]["number"] == 4


def test_a_failed_overwrite_loses_nothing(options):
    run(options, "a.txt")
    before = record(options)
    with pytest.raises(RunError):
        run(replace(options, model="./nowhere", overwrite=True), "a.txt")
    assert (options.output_dir / "a.txt").read_text() == "3"
    assert record(options) == before


def test_a_refused_run_leaves_no_folder(options):
    with pytest.raises(RunError):
        run(replace(options, model="./nowhere"))
    assert not options.output_dir.exists()


def test_an_unfinished_run_goes_on(options):
    with pytest.raises(KeyboardInterrupt):
        run(options, "a.txt", fail=KeyboardInterrupt())
    assert not record(options)["finished"]
    with pytest.raises(UsageError, match="--number 3 → 4"):
        run(replace(options, number=4))
    assert run(replace(options, batch_size=2), "a.txt").resumed
    assert record(options)["finished"]


def test_foreign_files_are_refused(options):
    options.output_dir.mkdir()
    (options.output_dir / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        run(replace(options, overwrite=True))


def test_a_record_cannot_reach_outside(options):
    run(options, "a.txt")
    outside = options.output_dir.parent / "precious.txt"
    outside.write_text("")
    tampered = record(options) | {"files": ["../precious.txt", "a.txt"]}
    (options.output_dir / "run.json").write_text(json.dumps(tampered))
    run(replace(options, overwrite=True), "b.txt")
    assert outside.exists()
    assert not (options.output_dir / "a.txt").exists()


def test_another_commands_folder_is_refused(options):
    run(options, "a.txt")
    with pytest.raises(UsageError, match="georeg-diffusion try"), workspace(replace(options, overwrite=True), "other"):
        pass


def test_an_unknown_device_is_refused(options):
    with pytest.raises(UsageError, match="--device: got 'gpu'"):
        run(replace(options, device="gpu"))


def test_the_folder_of_a_training_run_names_its_models(options, model, tmp_path):
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "base").symlink_to(model)
    with pytest.raises(RunError, match=r"name one of them: .*base"):
        run(replace(options, model=str(tmp_path / "trained")))


def test_the_hash_follows_the_weights(unet):
    before = weights_hash(unet)
    assert weights_hash(unet) == before
    unet.conv_in.bias.data[0] += 1
    assert weights_hash(unet) != before


def test_positional_arguments(model, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(f"model: {model}\nnumber: 5\n")
    assert resolve(Options, [file], {}).model == str(model)
    with pytest.raises(UsageError, match="MODEL: got nothing"):
        resolve(Options, [], {})
