"""Training images from folders with captions, data sets of Hugging Face and torch, and what is done to them."""

import json
import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import lfw_subset

import georeg_diffusion
from georeg_diffusion._compat import repair_torchvision
from georeg_diffusion.bundle import load
from georeg_diffusion.data.dataset import DatasetImages
from georeg_diffusion.data.folder import ImageFolder
from georeg_diffusion.data.hub import HubImages, open_dataset
from georeg_diffusion.data.images import Draws, Images
from georeg_diffusion.data.subset import FirstImages
from georeg_diffusion.data.transform import Transform
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.training.config import TrainConfig
from tests.georeg_diffusion.conftest import TINY, cli, error_of

repair_torchvision()


def faces(count):
    """Real face crops, 25 × 25, grey."""
    return [Image.fromarray((face * 255).astype(np.uint8)) for face in lfw_subset()[:count]]


def noise(width, height, mode="RGB"):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def captioned(tmp_path):
    """Six faces in two folders, captioned at two levels."""
    place = tmp_path / "faces"
    (place / "b").mkdir(parents=True)
    for i, face in enumerate(faces(6)):
        face.save(place / ("b" if i > 3 else ".") / f"{i}.png")
    lines = [{"file_name": f"{i}.png", "text": f"face {i}"} for i in range(3)]
    lines += [{"file_name": "3.png", "text": ["one", "two"]}, {"file_name": "b/4.png", "text": "from above"}]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    near = [{"file_name": "4.png", "text": "near"}, {"file_name": "5.png", "text": "fünf"}]
    (place / "b" / "metadata.jsonl").write_text("\n".join(map(json.dumps, near)))
    return place


@pytest.mark.parametrize("size", [(40, 31), (31, 40), (17, 33), (32, 32), (9, 5), (100, 33)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_resize_and_centre_crop_are_torchvisions_pixel_for_pixel(size, mode):
    from torchvision import transforms

    theirs = transforms.Compose(
        [transforms.Resize(16), transforms.CenterCrop(16), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    )
    picture = noise(*size, mode)
    torch.testing.assert_close(Transform(16, len(mode))(picture), theirs(picture), rtol=0, atol=1e-6)


def test_windows_and_flips_are_uniform_and_follow_from_the_generator():
    ramp = torch.arange(20.0).expand(1, 4, 20) / 20
    transform = Transform(4, 1)
    seen = [transform.of_tensor(ramp, np.random.default_rng(i)) for i in range(2000)]
    assert all(torch.equal(a, transform.of_tensor(ramp, np.random.default_rng(i))) for i, a in enumerate(seen[:5]))
    flips = sum(bool(a[0, 0, 0] > a[0, 0, -1]) for a in seen)
    assert abs(flips - 1000) < 4 * 500**0.5
    lefts = np.bincount([round(float(a.min()) * 20) for a in seen], minlength=17)
    assert len(lefts) == 17
    assert ((lefts - 2000 / 17) ** 2 / (2000 / 17)).sum() < 40  # χ² with 16 degrees of freedom: 39.25 at 0.1 %
    still = Transform(4, 1, center_crop=True, random_flip=False)
    assert torch.equal(still.of_tensor(ramp, np.random.default_rng(1)), still.of_tensor(ramp))


def test_a_tensor_is_treated_as_the_picture_it_came_from():
    picture = noise(33, 40)
    tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1
    for channels in (1, 3):
        transform = Transform(16, channels)
        torch.testing.assert_close(transform.of_tensor(tensor), transform(picture), rtol=0, atol=2.1 / 127.5)
    grey = Transform(16, 3).of_tensor(tensor[:1])
    assert grey.shape == (3, 16, 16)


def test_captions_come_from_the_nearest_metadata(captioned):
    images = ImageFolder(captioned, 8, channels=None)
    found = dict(zip([file.name for file in images.files], images.captions, strict=True))
    assert found == {
        "0.png": ("face 0",), "1.png": ("face 1",), "2.png": ("face 2",), "3.png": ("one", "two"),
        "4.png": ("near",), "5.png": ("fünf",),
    }  # fmt: skip
    assert images.channels == 1
    assert FirstImages(images, 2).captions == images.captions[:2]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", RunError, "line 1: it is not JSON"),
        ('{"file_name": "0.png", "text": "a"}\n[1]', RunError, "line 2: it holds a list"),
        ('{"name": "0.png"}', RunError, "line 1: no file_name, but 'name'"),
        ('{"file_name": "0.png", "text": 3}', RunError, "line 1: the caption is 3"),
        ('{"file_name": "gone.png", "text": "a"}', RunError, "none of the 1 images is among them"),
        ('{"file_name": "0.png", "text": "a"}', UsageError, "--caption-column: got 'label', expected one of text"),
    ],
)
def test_metadata_that_is_wrong_is_named(tmp_path, text, kind, message):
    faces(1)[0].save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(kind, match=message) as caught:
        ImageFolder(tmp_path, 8, caption_column="label" if kind is UsageError else None)
    assert "\n" not in str(caught.value)


def test_metadata_without_captions_is_no_error(tmp_path):
    faces(1)[0].save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "bbox": [1, 2]}\n')
    assert ImageFolder(tmp_path, 8).captions is None


def test_folders_of_classes_are_labels(tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        for i, face in enumerate(faces(2)):
            face.save(tmp_path / name / f"{i}.png")
    assert ImageFolder(tmp_path, 8).labels.tolist() == [0, 0, 1, 1]
    assert ImageFolder(tmp_path / "dog", 8).labels is None


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A small data set as a parquet folder and as save_to_disk writes it."""
    place = tmp_path_factory.mktemp("hub")
    features = datasets.Features(
        {"name": datasets.Value("string"), "img": datasets.Image(), "caption": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["no", "yes"])}
    )  # fmt: skip
    columns = {"name": list("abcde"), "img": faces(5), "caption": [f"face {i}" for i in range(4)] + [None]}
    dataset = datasets.Dataset.from_dict({**columns, "label": [0, 1, 0, 1, 1]}, features=features)
    (place / "parquet").mkdir()
    dataset.to_parquet(place / "parquet" / "train.parquet")
    dataset.save_to_disk(place / "disk")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(place / "dict")
    return place


@pytest.mark.parametrize("kind", ["parquet", "disk", "dict"])
def test_a_data_set_from_a_local_path(table, kind, tmp_path):
    images = HubImages(open_dataset(str(table / kind), cache_dir=tmp_path), 25, name=kind)
    assert len(images) == 5
    assert (images.channels, images.column) == (1, "img")
    assert images.labels.tolist() == [0, 1, 0, 1, 1]
    assert images.captions[1] == ("face 1",)
    assert images.captions[4] == ()
    expected = torch.stack([Transform(25, 1)(face) for face in faces(5)])
    assert torch.equal(images.batch(range(5)), expected)


def test_data_sets_that_do_not_serve(table, tmp_path, monkeypatch):
    dataset = open_dataset(str(table / "disk"))
    for error, message, arguments in (
        (UsageError, "--image-column: got 'name', which holds Value; expected one of img", {"image_column": "name"}),
        (UsageError, "--caption-column: got 'nope', which is not there; .* name, caption", {"caption_column": "nope"}),
    ):
        with pytest.raises(error, match=message):
            HubImages(dataset, 8, **arguments)
    with pytest.raises(RunError, match="no column of images, but name, caption"):
        HubImages(dataset.select_columns(["name", "caption"]), 8)
    with pytest.raises(RunError, match="is empty"):
        HubImages(dataset.select([]), 8)
    with pytest.raises(UsageError, match="--dataset-split: got 'dev', expected one of train, test"):
        open_dataset(str(table / "dict"), split="dev")
    with pytest.raises(UsageError, match="--dataset-split"):
        open_dataset(str(table / "parquet"), split="dev", cache_dir=tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RunError, match="--dataset-name: cannot load") as caught:
        open_dataset(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
    broken = datasets.Dataset.from_dict({"image": [{"bytes": b"no", "path": None}]}).cast_column("image", datasets.Image())
    with pytest.raises(RunError, match="cannot read image 0 of the data set"):
        HubImages(broken, 8, channels=1).image(0)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(RunError, match=r"pip install 'georeg\[data\]'"):
        open_dataset("anything")


class Mapped(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_torch_data_sets_of_every_kind_of_item():
    face = faces(1)[0]
    pixels = torch.from_numpy(np.asarray(face).copy())[None]
    expected = Transform(25, 1)(face)
    kinds = [
        face,
        np.asarray(face),
        np.asarray(face)[..., None],
        pixels,
        pixels[0],
        pixels / 255,
        (face, 3),
        {"image": face},
    ]
    for item in kinds:
        torch.testing.assert_close(DatasetImages(Mapped([item]), 25).image(0), expected, rtol=0, atol=1e-6)
    shifted = DatasetImages(Mapped([pixels / 127.5 - 1]), 25, value_range=(-1, 1))
    torch.testing.assert_close(shifted.image(0), expected, rtol=0, atol=1e-6)
    spoken = DatasetImages(
        Mapped([{"image": face, "text": "a", "label": 2}, {"image": face, "text": ["b", "c"], "label": 0}]), 8
    )
    assert list(spoken.captions) == [("a",), ("b", "c")]
    assert spoken.labels.tolist() == [2, 0]
    tensors = torch.utils.data.TensorDataset(torch.rand(3, 1, 8, 8), torch.tensor([2, 0, 1]))
    assert DatasetImages(tensors, 8).labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], RunError, "Mapped is empty"),
        ([torch.full((1, 8, 8), -0.5)], RunError, r"item 0 of Mapped runs from -0.5 to -0.5, expected \[0, 1\]"),
        ([torch.full((1, 8, 8), torch.nan)], RunError, "runs from nan"),
        ([torch.zeros(1, 8, 8, dtype=torch.int64)], RunError, "is of torch.int64"),
        ([{"picture": 1}], RunError, "has picture, expected image"),
        (["a path"], RunError, "is a str, expected an image"),
        ([torch.zeros(4, 8, 8)], RunError, r"of shape \(4, 8, 8\), expected an image \(1 or 3, H, W\)"),
        ([np.zeros((8, 8, 5), np.uint8)], RunError, r"of shape \(8, 8, 5\)"),
        ([np.zeros((8, 8))], RunError, "is a ndarray"),
        ([torch.zeros(1, 0, 8)], RunError, r"of shape \(1, 0, 8\)"),
    ],
)
def test_torch_data_sets_that_do_not_serve(items, error, message):
    with pytest.raises(error, match=message):
        DatasetImages(Mapped(items), 8).image(0)


def test_a_stream_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield faces(1)[0]

    with pytest.raises(TypeError, match="expected a map-style Dataset"):
        DatasetImages(Stream(), 8)


def test_processes_that_load_change_nothing(captioned):
    images = ImageFolder(captioned, 8, channels=1)
    keys = [(draw, draw % 6) for draw in range(12)]

    def batches(workers):
        loader = torch.utils.data.DataLoader(Draws(images, 3), sampler=keys, batch_size=4, num_workers=workers)
        return torch.cat([batch["image"] for batch in loader])

    assert torch.equal(batches(0), batches(2))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_fails_on_the_way_is_named_in_one_line(tmp_path, model, workers):
    items = Mapped([torch.full((1, 8, 8), 0.5), *[torch.full((1, 8, 8), 7.0)] * 9])
    config = TrainConfig(
        pretrained_model_name_or_path=str(model), max_train_steps=2, train_batch_size=4, evaluate=False, cpu=True,
        report_to="none", output_dir=tmp_path / "out", dataloader_num_workers=workers,
    )  # fmt: skip
    with pytest.raises(RunError, match=r"^item \d of Mapped runs from 7 to 7, expected \[0, 1\]; .* range$"):
        georeg_diffusion.train(config, items)


@pytest.mark.slow
def test_a_run_that_fails_ends_with_its_processes(tmp_path, model):
    """In a process of its own, which must not wait for those that load."""
    script = tmp_path / "run.py"
    script.write_text(
        "import torch\nfrom georeg_diffusion import TrainConfig, train\n"
        "class D(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 9\n"
        "    def __getitem__(self, i): return torch.full((1, 8, 8), 7.0 if i else 0.5)\n"
        f"train(TrainConfig(pretrained_model_name_or_path={str(model)!r}, max_train_steps=2, train_batch_size=4, cpu=True,\n"
        f"    report_to='none', output_dir={str(tmp_path / 'out')!r}, dataloader_num_workers=2), D())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "RunError: item" in done.stderr


def test_the_trainer_takes_a_data_set_by_name_and_evaluate_finds_it_again(tmp_path, table, model):
    from georeg_diffusion.evaluation.real_images import real_images

    out = tmp_path / "out"
    code = cli(
        "train", *TINY, "--dataset-name", table / "disk", "--pretrained-model-name-or-path", model, "--max-train-steps", 1,
        "--train-batch-size", 4, "--no-evaluate", "--output-dir", out,
    )  # fmt: skip
    assert code == 0
    images = real_images(None, str(out / "isometric"), (1, 8, 8))
    assert len(images) == 5
    assert images.name == str(table / "disk")


def test_a_grey_data_set_trains_a_grey_model_from_scratch(tmp_path, table):
    code = cli(
        "train", *TINY, "--dataset-name", table / "parquet", "--max-train-steps", 1, "--max-train-samples", 4,
        "--train-batch-size", 4, "--no-evaluate", "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert load(tmp_path / "out" / "isometric").sample_shape == (1, 8, 8)


def test_training_on_a_torch_data_set_through_python(tmp_path, model):
    config = TrainConfig(
        pretrained_model_name_or_path=str(model), max_train_steps=1, train_batch_size=4, evaluate=False, cpu=True,
        report_to="none", output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    georeg_diffusion.train(config, torch.utils.data.TensorDataset(torch.rand(5, 1, 12, 9)))
    assert load(tmp_path / "out" / "isometric").sample_shape == (1, 8, 8)
    with pytest.raises(UsageError, match="--learning-rate: got nan"):
        georeg_diffusion.train(replace(config, learning_rate=float("nan")))
    with pytest.raises(RunError, match=r"TensorDataset \(given in Python\)"):
        from georeg_diffusion.evaluation.real_images import real_images

        real_images(None, str(tmp_path / "out" / "isometric"), (1, 8, 8))
    georeg_diffusion.train(config, torch.utils.data.TensorDataset(torch.rand(5, 1, 12, 9)))  # finished: prints its table
    assert issubclass(DatasetImages, Images)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dataset-name", "./nowhere"], 1, "--dataset-name: cannot load ./nowhere"),
        (["--caption-column", "text", "--train-data-dir", "FACES"], 2, "--caption-column: got 'text'"),
    ],
)
def test_mistakes_get_one_line(tmp_path, capsys, arguments, code, message):
    (tmp_path / "FACES").mkdir()
    faces(1)[0].save(tmp_path / "FACES" / "0.png")
    arguments = [str(tmp_path / a) if a == "FACES" else a for a in arguments]
    got, error = error_of(capsys, *TINY, *arguments, "--output-dir", tmp_path / "out")
    assert got == code
    assert message in error
