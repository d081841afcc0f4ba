import numpy as np
import pytest
import torch
from PIL import Image

from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.folder import ImageFolder
from georeg_diffusion.data.images import Draws, TrainingOrder, draw_generators
from georeg_diffusion.errors import RunError


@pytest.fixture
def folder(tmp_path):
    """Pictures of many kinds, two of them broken."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    ramp = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (20, 1))
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([ramp] * 3, -1)).save(tmp_path / "deep" / "colour.jpg", quality=100)
    Image.fromarray(np.stack([ramp] * 3, -1)).convert("P").save(tmp_path / "deep" / "er" / "palette.gif")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(np.stack([ramp] * 3, -1)).convert("CMYK").save(tmp_path / "print.jpg")
    transparent = np.zeros((20, 40, 4), np.uint8)
    Image.fromarray(transparent).save(tmp_path / "clear.png")
    (tmp_path / "empty.png").touch()
    whole = (tmp_path / "grey.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_unreadable_images_are_left_out_by_name(folder):
    images = ImageFolder(folder, 16, channels=1)
    assert len(images) == 6
    assert sorted(file.name for file, _ in images.skipped) == ["empty.png", "torn.png"]


def test_strict_names_the_first_unreadable_image(folder):
    with pytest.raises(RunError, match="empty.png"):
        ImageFolder(folder, 16, strict=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_becomes_the_same_tensor(folder, channels):
    images = ImageFolder(folder, 16, channels=channels)
    batch = images.batch(range(len(images)))
    assert batch.shape == (6, channels, 16, 16)
    assert batch.min() >= -1
    assert batch.max() <= 1
    names = [file.name for file in images.files]
    grey, sixteen = batch[names.index("grey.png")], batch[names.index("sixteen.png")]
    torch.testing.assert_close(grey, sixteen, rtol=0, atol=2 / 127.5)  # 16 bits are scaled, not clipped to white
    assert (batch[names.index("clear.png")] == 1).all()  # transparency on white


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert ImageFolder(tmp_path, 8).image(0)[0, 0].tolist() == [-1.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("make", ["missing", "file", "empty", "broken"])
def test_unusable_folders(tmp_path, make):
    place = tmp_path / "x"
    if make == "file":
        place.write_text("")
    elif make != "missing":
        place.mkdir()
    if make == "broken":
        (place / "bad.png").write_bytes(b"nonsense")
    expected = {"missing": "does not exist", "file": "is not a folder", "empty": "holds no image", "broken": "bad.png"}
    with pytest.raises(RunError, match=expected[make]):
        ImageFolder(place, 8)


def test_the_order_is_a_permutation_each_epoch_and_can_start_anywhere():
    whole = list(TrainingOrder(7, 3, first=0, stop=21))
    assert [draw for draw, _ in whole] == list(range(21))
    for epoch in range(3):
        assert sorted(i for _, i in whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [i for _, i in whole[:7]] != [i for _, i in whole[7:14]]
    assert list(TrainingOrder(7, 3, first=9, stop=21)) == whole[9:]
    assert list(TrainingOrder(7, 4, first=0, stop=21)) != whole


def test_flips_follow_from_the_draws_number():
    draws = Draws(Digits(8, random_flip=True), seed=0)
    plain = Digits(8)
    flipped = [not torch.equal(draws[(n, 5)]["image"], plain.image(5)) for n in range(200)]
    assert flipped == [not torch.equal(draws[(n, 5)]["image"], plain.image(5)) for n in range(200)]
    assert abs(sum(flipped) - 100) < 4 * 50**0.5


def test_draw_generators_are_distinct_and_reproducible():
    first = [torch.randn(3, generator=g) for g in draw_generators(1, [4, 5])]
    again = [torch.randn(3, generator=g) for g in draw_generators(1, [5, 4])]
    assert torch.equal(first[0], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], torch.randn(3, generator=draw_generators(2, [4])[0]))


def test_digits():
    digits = Digits(16)
    batch = digits.batch(range(len(digits)))
    assert batch.shape == (1797, 1, 16, 16)
    assert float(batch.min()) == -1.0
    assert float(batch.max()) == 1.0
    assert sorted(digits.labels.unique().tolist()) == list(range(10))
