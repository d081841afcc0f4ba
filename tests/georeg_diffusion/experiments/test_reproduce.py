"""``georeg-diffusion reproduce`` and what it writes, on a recipe of seconds."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.experiments import available, bench, chosen, find, recipe
from georeg_diffusion.experiments.bench import claim, worked_off
from georeg_diffusion.experiments.comparison import BASE, is_fid, replicated
from georeg_diffusion.experiments.finding import Cell, Claim, Finding, Table
from tests.georeg_diffusion.conftest import cli


@pytest.fixture
def reproduce(tiny, lab_folder, monkeypatch, capsys):
    """Run the command on the tiny recipe: exit code, and all that it said, on one line."""
    monkeypatch.setattr(recipe, "_QUICK", tiny)
    claim(lab_folder) if not any(lab_folder.iterdir()) else (lab_folder / "reproduce.json").write_text("{}")

    def run(*arguments, out=lab_folder):
        device = () if "--device" in arguments else ("--device", "cpu")
        code = cli("reproduce", *arguments, "--quick", "--output-dir", out, *device)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, " ".join((said.out + said.err).split())

    return run


def test_every_experiment_says_what_it_is():
    for name in available():
        module = find(name)
        assert module.TITLE
        assert module.SOURCE
        assert module.DATA in ("digits", "none")
        assert callable(module.run)
    assert chosen(["all"]) == available()
    assert chosen(["TABLE1", "table1"]) == ("table1",)


def test_table1_trains_scores_and_prints_the_papers_numbers_beside_ours(reproduce, lab, lab_folder):
    code, said = reproduce("table1", "--seeds", 2)
    assert code == 0, said
    assert "do not compare with digits" in said
    record = json.loads((lab_folder / "table1" / "finding.json").read_text())
    (table,) = record["tables"]
    assert table["columns"][-3] == "paper: CelebA-HQ"
    assert table["columns"][-2:] == ["paper: Church", "paper: Bedrooms"]
    ppl = next(row for row in table["rows"] if row[0] == "PPL ↓")
    base, ours = (replicated(lab, ["ppl"], **changes).values["ppl"] for changes in (BASE, {}))
    assert ppl[1]["value"] == pytest.approx(sum(base) / 2)
    assert ppl[3]["value"] == pytest.approx(sum(b - a for a, b in zip(base, ours, strict=True)) / 2)
    differences = [b - a for a, b in zip(base, ours, strict=True)]
    assert ppl[3]["stderr"] == pytest.approx(abs(differences[1] - differences[0]) / 2)  # std/√2 of two numbers
    assert [cell["value"] for cell in ppl[4:]] == [76, 570, 1587, 3809]
    assert all(cell["published"] for cell in ppl[4:])
    assert {one["text"].split()[0] for one in record["claims"]} == {"PPL", "mRTL", "MCN", "VoR", "FID"}
    rows = list(csv.reader((lab_folder / "table1" / "table.csv").open()))
    assert float(rows[2][1]) == ppl[1]["value"]
    assert "| PPL ↓ |" in (lab_folder / "table1" / "table.md").read_text()


def test_a_finished_experiment_is_shown_again_without_work(reproduce, monkeypatch):
    reproduce("table1", "--seeds", 2)
    monkeypatch.setattr("georeg_diffusion.experiments.paper.table1.run", None)
    code, said = reproduce("table1", "--seeds", 2)
    assert code == 0, said
    assert "mRTL falls" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "NAME: got 'table9', expected table1"),
        ([], "NAME: got nothing"),
        (["TABLE9"], "NAME: got 'TABLE9', expected table1"),
        (["table1", "--seeds", 0], "--seeds: got 0, expected at least 1"),
        (["table1", "--seeds", "x"], "Error: --seeds: got 'x', expected int"),
        (["table1", "--seeds", "1.5"], "Error: --seeds: got '1.5', expected int"),
        (["table1", "--dataset", "imagenet"], "Error: --dataset: got 'imagenet', expected one of digits, cifar10"),
        (["table1", "--lpips-backbone", "eye"], "Error: --lpips-backbone: got 'eye', expected one of alex"),
        (["table1", "--data-dir", "."], "--data-dir: got . with the digits"),
        (["table1", "--dataset", "cifar10", "--data-dir", "nowhere"], "--data-dir: nowhere is not a folder"),
        (["table1", "--lambda-iso", "-1"], "--lambda-iso: got -1"),
        (["table1", "--max-train-steps", "0"], "--max-train-steps: got 0, expected at least 1"),
        (["table1", "--num-samples", "1"], "--num-samples: got 1, expected at least 2"),
        (["table1", "--lambda-iso", "inf"], "--lambda-iso: got inf, expected a finite number"),
        (["table1", "--device", "abacus"], "--device: got 'abacus'"),
        (["table1", "--device", "meta"], "--device: got 'meta', which cannot be used here"),
    ],
)
def test_a_users_mistake_gets_one_line_and_touches_nothing(reproduce, tmp_path, arguments, message):
    code, said = reproduce(*arguments, out=tmp_path / "out")
    assert code == 2
    assert message in said.replace("│ ", "").replace(" │", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrained", "nowhere"], "Error: --pretrained: nowhere is not a folder, nor a hub id"),
        (["--pretrained", "empty"], "Error: --pretrained: empty is not a diffusers model"),
        (["--dataset", "cifar10", "--data-dir", "empty"], "Error: --data-dir: empty holds no image"),
        (["--dataset", "cifar10", "--data-dir", "texts"], "Error: --data-dir: texts holds no image"),
    ],
)
def test_what_is_not_there_is_told_by_its_option_before_anything_is_written(
    reproduce, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("one")
    code, said = reproduce("table1", *arguments, out=tmp_path / "out")
    assert code == 1
    assert said.startswith(message)
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else_are_refused(reproduce, tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    code, said = reproduce("table1", out=tmp_path)
    assert code == 2
    assert "holds no experiments of ours" in said
    code, said = reproduce("table1", out=tmp_path / "thesis.txt")
    assert code == 2
    assert "is a file" in said
    code, said = reproduce("table1", out=tmp_path / "thesis.txt" / "chapter")
    assert code == 2
    assert f"--output-dir: {tmp_path / 'thesis.txt' / 'chapter'} cannot be made: {tmp_path / 'thesis.txt'} is a file" in said
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_an_experiment_that_fails_does_not_keep_the_others_from_running(reproduce, monkeypatch, lab_folder):
    def fails(lab):
        raise RunError("the moon is in the way")

    from georeg_diffusion.experiments.paper import table1

    modules = {"one": SimpleNamespace(TITLE="One", run=fails), "table1": table1}
    monkeypatch.setattr("georeg_diffusion.experiments.chosen", lambda names: tuple(modules))
    monkeypatch.setattr("georeg_diffusion.experiments.find", modules.__getitem__)
    monkeypatch.setattr(bench, "_key", lambda lab, module: "key")
    code, said = reproduce("one", "table1", "--seeds", 2)
    assert code == 1
    assert "one: the moon is in the way" in said
    assert "mRTL falls" in said


def test_an_interrupted_experiment_goes_on(reproduce, tmp_path, monkeypatch):
    """Stopped in a score; what was trained and measured before is not touched again."""
    from georeg_diffusion.experiments import lab as lab_module

    evaluate, run, calls = lab_module.evaluate, lab_module.run, []

    def stopped(settings, scores, **kwargs):
        calls.append(next(iter(scores)))
        if calls[-1] == "mrtl":
            raise KeyboardInterrupt
        return evaluate(settings, scores, **kwargs)

    monkeypatch.setattr(lab_module, "evaluate", stopped)
    code, said = reproduce("table1", "--seeds", 1, out=tmp_path / "out")
    assert code == 130
    assert "run the same command again" in said
    assert calls == ["fid", "ppl", "mrtl"]
    trained = []
    monkeypatch.setattr(lab_module, "evaluate", lambda s, n, **k: calls.append(next(iter(n))) or evaluate(s, n, **k))
    monkeypatch.setattr(lab_module, "run", lambda *a, **k: trained.append(a) or run(*a, **k))
    code, said = reproduce("table1", "--seeds", 1, out=tmp_path / "out")
    assert code == 0, said
    assert len(trained) == 1  # the isometric model
    assert calls.count("fid") == 2
    assert "one seed, so no standard errors" in said
    assert "✓" not in said


def test_several_processes_are_refused(reproduce, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = reproduce("table1", out=tmp_path / "out")
    assert code == 2
    assert "reproduce runs in one process" in said


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--classifier", 1, "--classifier: "),
        ("--features", 2, "--features: got"),
        ("--inception-weights", 2, "--inception-weights: "),
        ("--lpips-backbone-weights", 2, "--lpips-backbone-weights: "),
    ],
)
def test_what_measures_is_looked_for_before_anything_is_trained(reproduce, tmp_path, option, code, message):
    given, said = reproduce("table1", option, tmp_path / "nowhere", out=tmp_path / "out")
    assert given == code, said
    assert message in said
    assert not (tmp_path / "out").exists()


def experiment(tmp_path, text="found"):
    """A module in a file, with a count of how often it ran."""
    file = tmp_path / "experiment.py"
    file.write_text(text)
    calls = []

    def run(lab):
        calls.append(1)
        picture = lab.path("one.png")
        picture.write_bytes(b"png")
        table = Table("t", ("a", "b"), (("x", Cell(1.0, 0.25)), ("y", Cell(None))), "c")
        return Finding((table,), (picture,), (Claim("it holds", None, "e"),), ("n",))

    return SimpleNamespace(TITLE="T", SOURCE="S", run=run, __file__=str(file)), calls


def test_what_was_found_is_read_back_unless_anything_it_follows_from_changed(lab, tmp_path):
    lab = replace(lab, folder=tmp_path)
    module, calls = experiment(tmp_path)
    first = worked_off(lab, "one", module)
    table = tmp_path / "one" / "table.csv"
    written = table.read_text()
    table.unlink()
    assert worked_off(lab, "one", module) == first
    assert len(calls) == 1
    assert table.read_text() == written
    worked_off(replace(lab, seeds=(0, 1, 2)), "one", module)
    worked_off(replace(lab, recipe=replace(lab.recipe, lambda_iso=0.5)), "one", module)
    worked_off(replace(lab, measures={"features": "inception"}), "one", module)
    (tmp_path / "experiment.py").write_text("another source")
    worked_off(lab, "one", module)
    assert len(calls) == 5
    first.pictures[0].unlink()
    worked_off(lab, "one", module)
    assert len(calls) == 6
    (tmp_path / "one" / "finding.json").write_text('{"key": ')
    worked_off(lab, "one", module)
    assert len(calls) == 7


def test_nothing_of_another_recipe_stays_beside_what_is_found(lab, tmp_path):
    lab, other = replace(lab, folder=tmp_path), replace(lab, folder=tmp_path, seeds=(0,))
    module, _ = experiment(tmp_path)
    table = Table("t", ("a", "b"), (("x", Cell(1.0)),))
    several = SimpleNamespace(**{**vars(module), "run": lambda lab: Finding((table,) * 3)})
    worked_off(lab, "one", several)
    (tmp_path / "one" / "mine.png").touch()  # no picture of ours
    worked_off(other, "one", module)
    assert {file.name for file in (tmp_path / "one").iterdir()} == {
        *("finding.json", "table.md", "table.csv", "one.png", "mine.png"),
    }

    def stopped(lab):
        lab.path("one.png").write_bytes(b"of another recipe")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worked_off(lab, "one", SimpleNamespace(**{**vars(module), "run": stopped}))
    worked_off(other, "one", module)
    assert (tmp_path / "one" / "one.png").read_bytes() == b"png"


@pytest.mark.parametrize("value", ["0", "nan", "-1"])
def test_lambda_that_leaves_nothing_to_compare_is_refused(reproduce, tmp_path, value):
    code, said = reproduce("table1", f"--lambda-iso={value}", out=tmp_path / "out")
    assert code == 2
    assert "--lambda-iso: got" in said
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_is_the_same_in_small():
    for earnest in (recipe.recipe_of("digits"), recipe.recipe_of("celebahq256")):
        small = earnest.rehearsed(max_train_steps=3, num_samples=4, num_inference_steps=2)
        assert small.steps == small.autoencoder_steps == 3
        assert small.pretraining_steps == (3 if earnest.pretraining_steps else None)
        for score in ("fid", "mcn", "edit"):
            assert small.sizes_of(score) == {"num_samples": 4, "num_inference_steps": 2}
        assert not [key for key in small.training if "validation" in key]  # of 10,000 images
        assert earnest.rehearsed() == earnest
        assert earnest.rehearsed(num_samples=4).steps == earnest.steps


def test_a_rehearsal_leaves_what_was_found_in_earnest_alone(lab):
    small = replace(lab, recipe=lab.recipe.rehearsed(max_train_steps=1, num_samples=3))
    assert small._key(small._config(0, {})) != lab._key(lab._config(0, {}))
    assert small._score_file("model", 0, "fid", {}) != lab._score_file("model", 0, "fid", {})


def test_weights_of_other_losses_change_with_lambda():
    known = recipe.recipe_of("digits")
    assert recipe.recipe_of("digits", lambda_iso=2 * known.lambda_iso).weights == {
        loss: pytest.approx(2 * weight) for loss, weight in known.weights.items()
    }


def test_a_frechet_distance_is_an_fid_by_inceptions_features_alone(lab):
    real = replace(lab, recipe=replace(lab.recipe, dataset="celebahq256"))
    given = ({}, {"features": "inception"}, {"features": "resnet18"})
    assert [is_fid(replace(lab, measures=one)) for one in given] == [False, True, False]
    assert [is_fid(replace(real, measures=one)) for one in given] == [True, True, False]


def test_a_folder_is_claimed_once(tmp_path):
    claim(tmp_path / "new")
    claim(tmp_path / "new")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="holds no experiments of ours"):
        claim(tmp_path / "other")
