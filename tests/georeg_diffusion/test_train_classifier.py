"""train-classifier: CelebA's attributes read strictly, trained, resumed, loaded."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from georeg_diffusion.data.attributes import AttributeImages, read_attributes
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.classifier import load_classifier
from georeg_diffusion.training import classifier as training
from tests.georeg_diffusion.conftest import cli


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Forty images, bright or dark, with a red or a blue cast: two attributes that can be seen, and one that cannot."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    marks = rng.choice([-1, 1], (40, 3))
    for i, (bright, red, _) in enumerate(marks):
        base = np.array([40, 40, 40]) + 120 * (bright > 0) + (np.array([60, 0, 0]) if red > 0 else np.array([0, 0, 60]))
        pixels = (base + rng.integers(0, 20, (12, 10, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.png")
    lines = [f"{i:06}.png " + " ".join(f"{m:2d}" for m in row) for i, row in enumerate(marks)]
    table = folder / "list_attr_celeba.txt"
    table.write_text("\n".join(["40", "Bright Red Noise", *lines]) + "\n")
    return folder, table, marks


def train(folder, table, out, *extra):
    return cli("train-classifier", "--train-data-dir", folder, "--attributes", table, "--architecture", "small",
               "--resolution", 8, "--train-batch-size", 16, "--max-train-steps", 60, "--learning-rate", 1e-2,
               "--output-dir", out, "--device", "cpu", *extra)  # fmt: skip


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "classifier"
    assert train(*faces[:2], out, "--held-out", 0.25) == 0
    return out


def test_it_learns_what_can_be_seen(trained, faces):
    classifier = load_classifier(trained)
    assert classifier.names == ("Bright", "Red", "Noise")
    images = AttributeImages(*faces[:2], 8)
    decided = classifier.probabilities(images.batch(range(40))) > 0.5
    right = (decided == images.labels.bool()).float().mean(0)
    assert right[0] > 0.9
    assert right[1] > 0.9
    assert right[2] < 0.95, "noise cannot be learnt from the images"
    config = json.loads((trained / "config.json").read_text())
    assert config["accuracies"].keys() == {"Bright", "Red", "Noise"}
    assert "10 held-out images" in classifier.name
    assert classifier.accuracy == pytest.approx(np.mean(list(config["accuracies"].values())))
    assert json.loads((trained / "run.json").read_text())["files"] == ["model.safetensors", "config.json"]


def test_a_finished_run_is_not_repeated(trained, faces, capsys):
    assert train(*faces[:2], trained, "--held-out", 0.25) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_an_interrupted_run_ends_with_the_same_weights(faces, trained, tmp_path, monkeypatch):
    out, original = tmp_path / "out", training._save

    def stop(file, parts, step):
        original(file, parts, step)
        if step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    extra = ("--held-out", 0.25, "--checkpointing-steps", 10)
    assert train(*faces[:2], out, *extra) == 130
    assert (out / "checkpoint.pt").is_file()
    assert not (out / "config.json").exists()
    monkeypatch.setattr(training, "_save", original)
    assert train(*faces[:2], out, *extra) == 0
    assert not (out / "checkpoint.pt").exists()
    a, b = load_classifier(out), load_classifier(trained)
    for one, other in zip(a.features.parameters(), b.features.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_damaged_checkpoint(faces, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    assert train(*faces[:2], tmp_path / "out", "--checkpointing-steps", 2) == 130
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"damaged")
    assert train(*faces[:2], tmp_path / "out", "--checkpointing-steps", 2) == 1
    assert "cannot resume" in capsys.readouterr().err


def test_the_digits_are_the_default(tmp_path):
    assert cli("train-classifier", "--resolution", 8, "--output-dir", tmp_path / "digits", "--device", "cpu") == 0
    assert load_classifier(tmp_path / "digits").accuracy > 0.9


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--train-data-dir", "."], 2, "--train-data-dir: needs --attributes as well"),
        (["--attributes", "a.txt"], 2, "--attributes: needs --train-data-dir as well"),
        (["--train-data-dir", ".", "--attributes", "none.txt"], 1, "cannot read none.txt"),
        (["--held-out", "1"], 2, "--held-out"),
    ],
)
def test_a_users_mistake_gets_one_line(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert cli("train-classifier", *arguments) == code
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert not (tmp_path / "outputs").exists() or not any((tmp_path / "outputs").rglob("run.json"))


def test_an_unknown_architecture_leaves_nothing_behind(faces, tmp_path, capsys):
    assert train(*faces[:2], tmp_path / "out", "--architecture", "resnet1") == 2
    assert "--architecture: got 'resnet1'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file is empty"),
        ("image_id,Smiling\n000001.jpg,1\n", "line 1: got 'image_id,Smiling'"),
        ("-1\nA\n", "line 1"),
        ("1\n", "line 2: no names"),
        ("1\nA A\nx.jpg 1 1\n", "line 2: the attribute A is named twice"),
        ("2\nA\nx.jpg 1\n", "1 images are listed, but the first line says 2"),
        ("1\nA B\nx.jpg 1\n", "line 3: 1 values, expected one for each of 2"),
        ("1\nA\nx.jpg 0\n", "line 3: got '0', expected 1 or -1"),
        ("2\nA\nx.jpg 1\nx.jpg -1\n", "line 4: x.jpg is listed twice"),
        ("2\nA\nx.jpg 1\n\ny.jpg 1\n", "3 images are listed"),
        ("2\nA\n\ny.jpg 1\n", "line 3: 0 values"),
    ],
)
def test_attributes_are_read_strictly(tmp_path, text, message):
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(RunError, match=message):
        read_attributes(file)


def test_attributes_that_are_no_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RunError, match="is no text"):
        read_attributes(tmp_path / "list.txt")
    with pytest.raises(RunError, match="cannot read"):
        read_attributes(tmp_path)


def test_attributes_as_they_come(tmp_path):
    """Two spaces, Windows line ends, a byte order mark, blank lines at the end: seen in copies of the file."""
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeff2\r\nA  B\r\nx.jpg -1  1\r\ny.jpg  1 -1\r\n\r\n".encode())
    table = read_attributes(file)
    assert table.names == ("A", "B")
    assert table.values.tolist() == [[0, 1], [1, 0]]


def test_images_and_attributes_that_do_not_belong_together(faces, tmp_path):
    folder, table, _ = faces
    Image.new("RGB", (8, 8)).save(tmp_path / "stranger.png")
    with pytest.raises(RunError, match="says nothing about 1 of the 1 images .* such as stranger.png"):
        AttributeImages(tmp_path, table, 8)
    for place in ("a", "b"):
        (tmp_path / "twice" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "twice" / place / "000001.png")
    with pytest.raises(RunError, match="more than one 000001.png"):
        AttributeImages(tmp_path / "twice", table, 8)
    images = AttributeImages(folder, table, 8)
    assert len(images) == 40
    assert images.labels.shape == (40, 3)
