"""``georeg-diffusion sweep``, on a recipe of seconds."""

import csv
import json
from dataclasses import replace

import pytest

from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.experiments import lab as lab_module
from georeg_diffusion.experiments import recipe, sweep
from georeg_diffusion.experiments.comparison import Replicated
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.sweep import BASE, SCORES, Setting, grid
from tests.georeg_diffusion.conftest import cli
from tests.georeg_diffusion.experiments.conftest import TINY

NAMES = ["λ = 0", "λ = 0.01, constant", "λ = 0.01, linear-decay"]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command on the tiny recipe: exit code, and all that it said, on one line."""
    monkeypatch.setattr(recipe, "_QUICK", TINY)

    def run(*arguments, out):
        code = cli("sweep", "--quick", "--device", "cpu", "--output-dir", out, *arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, " ".join((said.out + said.err).split())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shared by the tests, so that each model is trained once."""
    return tmp_path_factory.mktemp("sweep")


ARGUMENTS = ("--lambda-iso", "0,1e-2", "--seeds", 2)


def test_it_trains_scores_and_writes_all_it_promises(command, folder):
    code, said = command(*ARGUMENTS, out=folder)
    assert code == 0, said
    record = json.loads((folder / "sweep.json").read_text())
    assert [one["name"] for one in record["settings"]] == NAMES
    base, constant, decay = record["settings"]
    for name in SCORES:
        before, after = base["scores"][name]["values"], constant["scores"][name]["values"]
        assert constant["scores"][name]["mean"]["value"] == pytest.approx(sum(after) / 2)
        differences = [b - a for a, b in zip(before, after, strict=True)]
        assert constant["scores"][name]["difference"]["value"] == pytest.approx(sum(differences) / 2)
        assert constant["scores"][name]["difference"]["stderr"] == pytest.approx(abs(differences[1] - differences[0]) / 2)
        assert base["scores"][name]["difference"]["value"] == 0
    assert constant["scores"]["isometry"]["values"] != decay["scores"]["isometry"]["values"]
    fid = [one["scores"]["fid"]["values"] for one in (base, constant)]
    rise = [b / a - 1 for a, b in zip(*fid, strict=True)]
    assert constant["against_fid"]["ppl"]["bargain"]["rise"]["value"] == pytest.approx(sum(rise) / 2)
    assert base["against_fid"]["ppl"]["bargain"] is None
    assert set(record["found"]) == {"ppl", "mrtl"}
    assert "Is there something for nothing?" in said
    assert "A setting lowers PPL at no cost in" in said
    assert "(a rise of at most 5%)" in said
    for name in ("scores", "differences", "front"):
        rows = list(csv.reader((folder / f"{name}.csv").open()))
        assert len(rows) == (3 if name == "differences" else 4)
        assert (folder / f"{name}.md").read_text().startswith("**")
    assert (folder / "pareto.png").stat().st_size > 10_000


def test_the_same_command_takes_up_what_is_there(command, folder, monkeypatch):
    command(*ARGUMENTS, out=folder)
    before = (folder / "sweep.json").read_text()
    monkeypatch.setattr(lab_module, "run", None)
    monkeypatch.setattr(lab_module, "evaluate", None)
    (folder / "sweep.json").unlink()
    code, said = command(*ARGUMENTS, out=folder)
    assert code == 0, said
    assert (folder / "sweep.json").read_text() == before


def test_an_interrupted_sweep_goes_on(command, folder, tmp_path, monkeypatch):
    command(*ARGUMENTS, out=folder)
    run, calls = lab_module.run, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(lab_module, "run", interrupted)
    early = ("--lambda-iso", "1e-2", "--lambda-iso-schedule", "early", "--seeds", 1, "--seed", 1, "--models-dir", folder)
    code, said = command(*early, out=tmp_path / "out")
    assert code == 130
    assert "run the same command again" in said
    code, said = command(*early, out=tmp_path / "out")
    assert (code, len(calls)) == (0, 2)
    assert "one seed has no standard errors" in said
    settings = json.loads((tmp_path / "out" / "sweep.json").read_text())["settings"]
    shared = json.loads((folder / "sweep.json").read_text())["settings"]
    assert settings[0]["scores"]["fid"]["values"] == [shared[0]["scores"]["fid"]["values"][1]]  # seed 1 is seed 1
    assert settings[1]["scores"]["fid"]["mean"]["stderr"] is None


def test_models_are_shared_with_reproduce(command, folder, monkeypatch):
    command(*ARGUMENTS, out=folder)
    monkeypatch.setattr(lab_module, "run", None)  # nothing is trained
    lab = Lab(TINY, (0, 1), folder, quick=True)
    assert lab.model(0) != lab.model(0, lambda_iso=0.0)  # the two of table1
    assert lab.model(1, lambda_iso_schedule="linear-decay").is_dir()


def test_models_are_kept_where_they_are_shared(command, folder, tmp_path, monkeypatch):
    command(*ARGUMENTS, out=folder)
    monkeypatch.setattr(lab_module, "run", None)
    code, said = command(*ARGUMENTS, "--models-dir", folder, out=tmp_path / "tables")
    assert code == 0, said
    assert (tmp_path / "tables" / "pareto.png").is_file()
    assert not (tmp_path / "tables" / "models").exists()


def test_a_setting_that_fails_leaves_the_others(command, folder, monkeypatch):
    replicated = sweep.replicated

    def failing(lab, names, **changes):
        if changes.get("lambda_iso_schedule") == "constant":
            raise RunError("the moon is in the way")
        return replicated(lab, names, **changes)

    monkeypatch.setattr(sweep, "replicated", failing)
    code, said = command(*ARGUMENTS, out=folder)
    assert code == 1
    assert "λ = 0.01, constant: the moon is in the way" in said
    settings = {one["name"]: one for one in json.loads((folder / "sweep.json").read_text())["settings"]}
    failed = settings["λ = 0.01, constant"]
    assert failed["failure"] == "the moon is in the way"
    assert failed["scores"]["fid"] == {"values": [None, None], "mean": None, "difference": None}
    assert failed["against_fid"]["ppl"]["standing"]["state"] == "not measured"
    assert settings["λ = 0.01, linear-decay"]["scores"]["fid"]["mean"] is not None


def test_without_a_base_there_is_nothing_to_compare_with(command, tmp_path, monkeypatch):
    def failing(lab, names, **changes):
        raise RunError("no weights of Inception")

    monkeypatch.setattr(sweep, "replicated", failing)
    code, said = command(*ARGUMENTS, out=tmp_path / "out")
    assert code == 1
    assert "Error: no weights of Inception" in said
    assert not (tmp_path / "out" / "sweep.json").exists()


def test_values_that_are_no_numbers_are_left_out(folder, monkeypatch):
    found = {name: (float("nan"), 1.0) for name in SCORES}
    monkeypatch.setattr(sweep, "replicated", lambda lab, names, **changes: Replicated(found, {}, {}))
    one = sweep.measure(Lab(TINY, (0, 1), folder), [BASE])
    assert one.values[BASE.name]["fid"] == (None, 1.0)


def test_the_grid_is_the_base_and_every_combination():
    assert grid("1e-2") == (BASE, Setting(0.01))
    found = grid(" 0.1, 0,0.1 ,1", "early,constant,early", "0,0.5")
    assert len(found) == 1 + 2 * 2 * 2
    assert found[1] == Setting(0.1, "early", 0.0)
    assert found[1].name == "λ = 0.1, early, p = 0"
    assert found[1].changes == {"lambda_iso": 0.1, "lambda_iso_schedule": "early", "isometry_skip": 0.0}
    assert (BASE.name, BASE.changes) == ("λ = 0", {"lambda_iso": 0.0})
    assert len({setting.name for setting in found}) == len(found)


def test_lambda_is_of_the_normalised_loss_for_all_data_sets(folder, monkeypatch):
    """The presets have the paper's bare ratio, whose λ is another number."""
    labs = []

    def noted(lab, names, **changes):
        labs.append(lab)
        raise RunError("enough")

    monkeypatch.setattr(sweep, "replicated", noted)
    given = replace(TINY, training={**TINY.training, "normalize": False})
    with pytest.raises(RunError, match="enough"):
        sweep.measure(Lab(given, (0,), folder), [BASE])
    assert labs[0].recipe.training["normalize"] is True


def test_lists_of_a_file_are_lists(command, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "replicated", lambda lab, names, **changes: seen.append(changes) or stop())
    seen = []

    def stop():
        raise RunError("enough")

    file = tmp_path / "sweep.yaml"
    file.write_text("lambda_iso: [0, 1e-3, 0.1]\nlambda_iso_schedule: [early]\nisometry_skip: 0.5\nseeds: 1\n")
    code, said = command("--config", file, out=tmp_path / "out")
    assert (code, seen) == (1, [{"lambda_iso": 0.0}])
    assert "1 of 3: λ = 0" in said
    file.write_text("lambda_iso: [true]\n")
    assert "--lambda-iso: got [True], expected str" in command("--config", file, out=tmp_path / "out")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lambda-iso", "0"], "--lambda-iso: got '0', expected a number above 0 too"),
        (["--lambda-iso", ""], "--lambda-iso: got '', expected numbers ≥ 0"),
        (["--lambda-iso", "1e-3,large"], "--lambda-iso: got '1e-3,large', expected numbers"),
        (["--lambda-iso", "-1"], "--lambda-iso: got '-1', expected numbers"),
        (["--lambda-iso", "nan"], "--lambda-iso: got 'nan', expected numbers"),
        (["--lambda-iso", "inf"], "--lambda-iso: got 'inf', expected numbers"),
        (["--lambda-iso-schedule", "cyclic"], "--lambda-iso-schedule: got 'cyclic', expected some of constant,warmup"),
        (["--lambda-iso-schedule", ","], "--lambda-iso-schedule: got ',', expected some of"),
        (["--isometry-skip", "0.5,1"], "--isometry-skip: got '0.5,1', expected numbers from 0 to below 1"),
        (["--fid-tolerance", "-0.1"], "--fid-tolerance: got -0.1"),
        (["--seeds", "0"], "--seeds: got 0, expected at least 1"),
        (["--data-dir", "."], "--data-dir: got . with the digits"),
        (["--device", "abacus"], "--device: got 'abacus'"),
    ],
)
def test_a_users_mistake_gets_one_line_and_touches_nothing(command, tmp_path, arguments, message):
    code, said = command(*arguments, out=tmp_path / "out")
    assert code == 2
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_results_that_is_none_leaves_that_of_models_alone(command, tmp_path):
    (tmp_path / "file").touch()
    code, said = command("--models-dir", tmp_path / "models", out=tmp_path / "file")
    assert code == 2
    assert "--output-dir: " in said
    assert "is a file, expected a folder" in said
    assert not (tmp_path / "models").exists()


def test_several_processes_are_refused(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = command(*ARGUMENTS, out=tmp_path / "out")
    assert code == 2
    assert "sweep runs in one process" in said
    assert not (tmp_path / "out").exists()


def test_the_folder_that_cannot_be_used_is_named_by_its_option(command, tmp_path):
    (tmp_path / "file").touch()
    code, said = command(*ARGUMENTS, "--models-dir", tmp_path / "file", out=tmp_path / "out")
    assert code == 2
    assert "--models-dir: " in said
    assert "is a file, expected a folder" in said


def test_folders_of_something_else_are_refused(command, tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    for more in ((), ("--models-dir", tmp_path / "new")):
        code, said = command(*ARGUMENTS, *more, out=tmp_path)
        assert code == 2
        assert "is not empty and holds no experiments of ours" in said
    with pytest.raises(UsageError, match="expected numbers"):
        grid("a")
