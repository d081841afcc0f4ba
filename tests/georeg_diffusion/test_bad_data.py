"""A corpus of bad images: each is used or named, nothing crashes without a file's name, and processes agree on the set."""

import multiprocessing
import os
import struct
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from georeg_diffusion.data.dataset import DatasetImages
from georeg_diffusion.data.folder import ImageFolder, printable
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError
from georeg_diffusion.training.data import check_listing
from tests.georeg_diffusion.conftest import TINY, cli

RAMP = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (20, 1))
RGB = np.stack([RAMP] * 3, -1)


def png(width, height, data=b"\0" * 1000):
    """A PNG that claims a size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.fixture
def corpus(tmp_path):
    """A folder, the names that must be usable and the names that must be reported."""
    place = tmp_path / "corpus"
    place.mkdir()
    frames = [Image.fromarray(np.roll(RGB, 5 * i, 1)) for i in range(3)]
    good = {
        "grey.png": Image.fromarray(RAMP),
        "palette.png": frames[0].convert("P"),
        "print.jpg": frames[0].convert("CMYK"),
        "sixteen.png": Image.fromarray(RAMP.astype(np.uint16) * 257),
        "bits.png": Image.fromarray(RAMP > 100),
        "lab.tiff": frames[0].convert("LAB"),
        "strip.png": Image.new("RGB", (20_000, 1), "red"),
        "two\nlines.png": frames[0],
        "[red]markup[b].png": frames[0],
    }
    for name, picture in good.items():
        picture.save(place / name)
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tiff"):
        frames[0].save(place / name, save_all=True, append_images=frames[1:])
        good[name] = None
    frames[0].save(place / "in truth a png.jpg", "PNG")
    whole = (place / "grey.png").read_bytes()
    foreign = os.fsencode(place) + b"/caf\xe9.png"
    with open(foreign, "wb") as file:
        file.write(whole)
    good |= {"in truth a png.jpg": None, os.fsdecode(b"caf\xe9.png"): None}

    photo = (place / "print.jpg").read_bytes()
    bad = {
        "nothing.png": b"",
        "torn.png": whole[: len(whole) // 2],
        "torn.jpg": photo[: len(photo) // 2],
        "bomb.png": png(60_000, 60_000),
        "claims.png": png(11_000, 10_000),
        "line.png": png(100_000_000, 1),
        "no size.png": png(0, 0),
        "words.jpg": b"no picture at all",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF",
    }
    for name, content in bad.items():
        (place / name).write_bytes(content)
    os.symlink(place / "loop.png", place / "loop.png")
    os.symlink(place / "nowhere", place / "dangling.png")
    os.mkfifo(place / "pipe.png")
    os.symlink(place, place / "round")  # a loop of folders
    return place, set(good), {*bad, "loop.png", "dangling.png", "pipe.png"}


def test_every_file_is_used_or_named(corpus):
    folder, good, bad = corpus
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warning of large images names no file
        images = ImageFolder(folder, 8)
    assert {file.name for file in images.files} == good
    assert {file.name for file, _ in images.skipped} == bad
    assert all(reason for _, reason in images.skipped)
    for index in range(len(images)):
        image = images.image(index, np.random.default_rng(index))
        assert image.shape == (3, 8, 8)
        assert image.isfinite().all()
        assert image.abs().max() <= 1
    reasons = {file.name: reason for file, reason in images.skipped}
    assert "no regular file" in reasons["pipe.png"]
    assert "link to nowhere" in reasons["loop.png"]
    assert "PostScript" in reasons["program.png"]
    assert "100000000 × 1" in reasons["line.png"]


def test_the_first_frame_of_an_animation_is_the_image(corpus):
    images = ImageFolder(corpus[0], 8, center_crop=True, random_flip=False)
    at = {file.name: i for i, file in enumerate(images.files)}
    still = images.image(at["grey.png"])
    for name in ("moving.png", "pages.tiff", "moving.gif"):
        torch.testing.assert_close(images.image(at[name]), still, rtol=0, atol=8 / 127.5)


def test_flipped_bytes_never_crash(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    rng, count = np.random.default_rng(0), 150
    for number in range(count):
        source = tmp_path / ("a.png" if number % 2 else "a.jpg")
        content = bytearray(source.read_bytes())
        for _ in range(rng.integers(1, 5)):
            content[rng.integers(len(content))] = rng.integers(256)
        source.with_name(f"{number}{source.suffix}").write_bytes(
            bytes(content[: rng.integers(len(content))] if number % 3 else content)
        )
    images = ImageFolder(tmp_path, 8)
    assert len(images) + len(images.skipped) == count + 2
    assert images.skipped
    for index in range(len(images)):
        assert images.image(index).isfinite().all()


def test_strict_names_what_it_refuses(corpus):
    with pytest.raises(RunError, match=r"--strict: cannot read .*(bomb|claims)\.png"):
        ImageFolder(corpus[0], 8, strict=True)


def test_a_decoder_out_of_memory_is_named(corpus, monkeypatch):
    images = ImageFolder(corpus[0], 8)

    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr("georeg_diffusion.data.folder.as_mode", exhausted)
    with pytest.raises(RunError, match=r"cannot read .*\.png any more: MemoryError"):
        images.image(0)


def test_what_may_not_be_read_is_named(corpus, monkeypatch):
    """By patches, since tests may run as root, whom no permission stops."""
    folder = corpus[0]
    real = Image.open

    def refused(file, *args, **kwargs):
        if getattr(file, "name", "") == "grey.png":
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", refused)
    skipped = {file.name: reason for file, reason in ImageFolder(folder, 8).skipped}
    assert "Permission denied" in skipped["grey.png"]

    scandir = os.scandir
    (folder / "locked").mkdir()
    monkeypatch.setattr(
        os,
        "scandir",
        lambda top: (
            (_ for _ in ()).throw(PermissionError(13, "Permission denied", str(top)))
            if "locked" in str(top)
            else scandir(top)
        ),
    )
    assert ("locked", "Permission denied") in [(place.name, reason) for place, reason in ImageFolder(folder, 8).skipped]
    with pytest.raises(RunError, match="cannot list .*locked"):
        ImageFolder(folder, 8, strict=True)


def test_an_image_that_goes_bad_during_a_run_is_named(corpus):
    images = ImageFolder(corpus[0], 8)
    victim = images.files[3]
    victim.write_bytes(b"gone")
    with pytest.raises(RunError, match="any more") as error:
        images.image(3)
    assert printable(victim) in str(error.value)


def test_an_item_of_a_torch_data_set_that_cannot_be_read_is_named():
    class Half:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 2:
                raise OSError("bad block")
            return Image.fromarray(RGB)

    with pytest.raises(RunError, match="item 2 of Half: bad block"):
        DatasetImages(Half(), 8).image(2)


class Group:
    """Two processes, of which this one's row is known and the other's given."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self):
        self.rows = []

    def gather(self, mine):
        self.rows.append(mine)
        return torch.cat(self.rows)


def test_processes_that_see_other_images_are_refused(tmp_path):
    for place, names in (("one", "abc"), ("same", "abc"), ("fewer", "ab"), ("other", "abd")):
        (tmp_path / place).mkdir()
        for name in names:
            Image.fromarray(RGB).save(tmp_path / place / f"{name}.png")
    folders = {place: ImageFolder(tmp_path / place, 8) for place in ("one", "same", "fewer", "other")}
    group = Group()
    check_listing(folders["one"], group)
    check_listing(folders["same"], group)  # another path, the same files
    for place, numbers in (("fewer", "3, 2"), ("other", "3, 3")):
        group = Group()
        check_listing(folders["one"], group)
        with pytest.raises(RunError, match=f"different images.*{numbers}"):
            check_listing(folders[place], group)
    check_listing(folders["fewer"], SimpleNamespace(num_processes=1))


def test_any_images_have_a_listing():
    class Few(Images):
        name, channels, resolution = "few", 1, 8

        def __len__(self):
            return 2

        def image(self, index, rng=None):
            return torch.zeros(1, 8, 8)

    assert Few().listing() == "few 2"


def test_training_on_the_corpus_names_what_it_skips(corpus, tmp_path, capsys):
    more = ["--max-train-steps", 2, "--no-evaluate", "--output-dir", tmp_path / "out"]
    code = cli("train", "--train-data-dir", corpus[0], *TINY, *more)
    printed = capsys.readouterr().out
    assert code == 0
    for name in ("bomb.png", "pipe.png", "torn.jpg", "program.png"):
        assert f"/{name}: " in printed
    assert "12 unreadable images skipped" in printed


@pytest.mark.slow
def test_a_folder_whose_name_is_no_text_can_be_trained_on(tmp_path):
    place = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(place)
    for number in range(8):
        Image.fromarray(RGB).save(f"{place}/{number}.png")
    arguments = ["train", "--train-data-dir", place, *TINY, "--max-train-steps", 1, "--no-evaluate"]
    process = multiprocessing.get_context("spawn").Process(target=cli_or_fail, args=(arguments, tmp_path / "out"))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def cli_or_fail(arguments, out):
    """In a process of its own, whose output is a real stream, which refuses what is no UTF-8."""
    raise SystemExit(cli(*arguments, "--output-dir", out))
