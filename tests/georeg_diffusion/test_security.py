"""What comes from outside is data: nothing in weights, configurations, metadata or checkpoints is run or reaches out."""

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

import georeg
import georeg_diffusion
from georeg_diffusion.bundle import load
from georeg_diffusion.data.metadata import read_captions
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.weights import read_weights
from tests.georeg_diffusion.conftest import TINY, cli

PACKAGES = [Path(package.__file__).parent for package in (georeg, georeg_diffusion)]


class Payload:
    """Unpickled, it runs a command."""

    def __reduce__(self):
        return (os.system, ("echo code has run",))


def calls():
    """Every call in both packages, as (file, dotted name, keywords)."""
    for file in (file for package in PACKAGES for file in package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                yield (
                    f"{file.name}:{node.lineno}",
                    ast.unparse(node.func),
                    {k.arg: ast.unparse(k.value) for k in node.keywords},
                )


def test_no_reader_in_the_packages_runs_what_it_reads():
    """The rule itself: whoever adds a reader meets it here."""
    found = list(calls())
    assert len(found) > 1000
    for place, name, keywords in found:
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", place
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False", place
        assert keywords.get("trust_remote_code", "False") == "False", place
        assert not name.startswith(
            ("pickle.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "marshal.", "shelve.")
        ), place
        assert name not in ("eval", "exec", "os.system", "torch.hub.load", "joblib.load"), place
        assert not name.endswith((".extractall", ".register_for_checkpointing")), place


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
def test_weights_that_are_programs_are_not_run(tmp_path, capfd, name):
    file = tmp_path / name
    torch.save({"x": Payload()}, file)
    with pytest.raises(RunError, match="cannot read the weights"):
        read_weights(file)
    file.write_bytes(pickle.dumps({"x": Payload()}))
    with pytest.raises(RunError, match="cannot read the weights"):
        read_weights(file)
    assert "code has run" not in capfd.readouterr().out


def test_a_model_of_pickled_weights_is_refused_unread(tmp_path, model, capfd):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.unlink()
    torch.save({"x": Payload()}, weights.with_suffix(".bin"))
    with pytest.raises(RunError, match="safetensors"):
        load(folder)
    assert "code has run" not in capfd.readouterr().out


def test_a_configuration_makes_no_objects(tmp_path, capfd):
    file = tmp_path / "c.yaml"
    file.write_text("seed: !!python/object/apply:os.system ['echo code has run']\n")
    assert cli("train", "--config", file, *TINY, "--output-dir", tmp_path / "out") == 2
    told = capfd.readouterr()
    assert "code has run" not in told.out
    assert "is not YAML" in " ".join(told.err.split())
    assert not (tmp_path / "out").exists()


def test_the_record_of_a_run_makes_no_objects_either(tmp_path, capfd):
    (tmp_path / "config.yaml").write_text("seed: !!python/object/apply:os.system ['echo code has run']\n")
    assert cli("train", *TINY, "--output-dir", tmp_path) == 1
    assert "code has run" not in capfd.readouterr().out


def test_captions_name_images_and_open_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_text("secret")
    lines = [{"file_name": name, "text": "a"} for name in ("../secret.png", str(secret), "a.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_captions(folder, [folder / "a.png"]) == [("a",)]  # names are compared, never followed
    assert read_captions(folder, [folder / "a.png", folder / "b.png"]) == [("a",), ()]


def test_another_commands_files_outside_the_folder_are_left(tmp_path):
    """run.json names the files of the run that --overwrite replaces; a doctored one must not delete others."""
    from georeg_diffusion.commands.workspace import _stale

    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious.txt").write_text("")
    (out / "old.png").write_text("")
    before = {"files": ["../precious.txt", str(tmp_path / "precious.txt"), "old.png"]}
    assert _stale(out, before, []) == [out / "old.png"]
