"""``report.html``: all of it there, nothing of it from elsewhere, and no text that a browser would take for markup."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.progress import progress
from georeg_diffusion.report.curves import Curve, plot
from georeg_diffusion.report.page import page
from georeg_diffusion.report.plots import plots
from georeg_diffusion.report.strips import FRAMES, PAIRS, SAMPLES, Strips, data_uri, strips
from georeg_diffusion.report.table import cautions, change, comparison, measures, number

ROWS = [("isometry", "isometry loss", True), ("mrtl", "mRTL", True), ("vor", "VoR", True), ("fid", "FID", True)]


def entry(value, *, ci=None, **details):
    record = {"value": value, "ci": ci, "n": 8, "seed": 0, "protocol": "as <it> was & is", "finished": True}
    return record | {"details": details}


def model(scale=1.0, **more):
    t = [550, 750, 950]
    profile = {
        "timesteps": t,
        "isometry": [3 * scale, 2 * scale, 1.5],
        "isometry_stderr": [0.1, 0.1, 0.1],
        "conformality": [2.0, 1.5, 1.2],
        "effective_rank": [10.0, 20.0, 30.0],
        "dimension": 63,
        "sphericity": [0.9, 1.0, 1.0],
        "sphericity_std": [0.1, None, 0.1],
    }
    rtl = {"perfect": 1.11, "rtl": [1.1, 1.2], "rtl_stderr": None, "segments": {"16": 1.2, "8": 1.19, "4": 1.15}}
    spectrum = [{"index": [1, 2, 3], "low": [2.0, 1.0, 0.5], "median": [3.0, 2.0, 1.0], "high": [4.0, 3.0, 2.0]}] * 3
    walk = {"measure": "the pixels", "adjacent": [0.1, 0.3, 0.2], "adjacent_stderr": [0.01, 0.01, 0.01]}
    back = {"measure": "the pixels", "steps": [5, 10, 50], "mse": [0.3, 0.1, 0.0], "distance": [3.0, 2.0, 1.0]}
    scores = {
        "interpolation": entry(0.3, **walk),
        "inversion": entry(0.1, **back),
        "isometry": entry(2.0 * scale, ci=[1.9 * scale, 2.1 * scale], **profile),
        "mrtl": entry(1.2, **rtl),
        "vor": entry(0.5, timesteps=t, spectrum=spectrum),
        "mcn": entry(9.0, timesteps=t, per_t=[10.0, 9.0, 8.0]),
    }
    return scores | more


class Reader(HTMLParser):
    """Tags with their attributes, and the text, as a browser sees them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def images():
    draw = torch.Generator().manual_seed(0)
    sheet = torch.rand(SAMPLES, 1, 8, 8, generator=draw) * 2 - 1
    paths = torch.rand(PAIRS, FRAMES, 1, 8, 8, generator=draw) * 2 - 1
    return {"base": Strips(sheet, paths), "isometric": Strips(-sheet, -paths)}


def test_everything_is_embedded(images):
    text = page({"models": {"base": model(), "isometric": model(0.5)}}, ROWS, images=images)
    reader = Reader(text)
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 2 * (SAMPLES + PAIRS * FRAMES) + 11
    assert all(source.startswith("data:image/") for source in sources)
    assert not any(tag in ("script", "link", "iframe", "object", "base", "form") for tag, _ in reader.tags)
    assert all(not key.startswith("on") and key != "href" for _, attributes in reader.tags for key in attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img"), "a picture without words"
    drawings = [base64.b64decode(source.split(",")[1]) for source in sources if "svg" in source[:30]]
    assert len(drawings) == 11
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        links = re.findall(rb'(?:href|src)="([^"]*)"', drawing)
        assert all(link.startswith(b"#") for link in links)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b $x$ _c", "_lead", "$", "ü" * 80]
)
def test_text_is_text(name):
    scores = model() | {"fid": entry(None) | {"protocol": f"not measured: {name}"}}
    text = page({"models": {"base": model(), name: scores}}, ROWS, notes=[name])
    reader = Reader(text)
    plain = Reader(page({"models": {"base": model(), "other": scores}}, ROWS, notes=["other"]))
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in plain.tags], "a name changed the markup"
    assert any(name in one for one in reader.texts)


def test_the_numbers_of_the_table_are_those_of_the_metrics():
    text = " ".join(Reader(page({"models": {"base": model(), "isometric": model(0.5)}}, ROWS)).texts)
    words = " ".join(text.split())
    assert "2 ± 0.1" in words
    assert "1 ± 0.05" in words
    assert "↓ -50.0% better" in words
    assert "1 better" in words
    assert "in 8 segments 1.190 1.190" in words
    assert "a perfect isometry of the sphere has 1.110 1.110" in words


def test_what_was_not_measured_is_said():
    unfinished = {"isometry": entry(None)}
    text = " ".join(Reader(page({"models": {"base": model(), "late": unfinished}}, ROWS)).texts)
    assert "not measured yet" in text
    assert "—" in text
    page({"models": {}}, ROWS)
    page({"models": {"base": {}}}, ROWS)


@pytest.mark.parametrize("broken", [{}, {"timesteps": [1]}, {"timesteps": [1], "isometry": [None], "conformality": [None]}])
def test_scores_without_their_curves_have_no_plot(broken):
    scores = {"isometry": entry(1.0, **broken), "mrtl": entry(1.0), "vor": entry(1.0), "mcn": entry(None)}
    assert not any(plots({"base": scores}).values())


def test_a_curve_with_gaps_is_drawn_and_one_without_points_is_not():
    gaps = Curve([1, 2, 3], [1.0, None, math.inf], [None, 1.0, 1.0], [2.0, 2.0, 2.0])
    drawn = plot("t", "c", {"a": gaps, "b": Curve([], [])}, xlabel="x", ylabel="y", log=("y",))
    assert drawn.svg.startswith("<svg")
    assert plot("t", "c", {"a": Curve([1, 2], [0.0, -1.0])}, xlabel="x", ylabel="y", log=("y",)) is None
    assert (
        plot("t", "c", {"a": Curve([1], [1.0])}, xlabel="x", ylabel="y").svg
        == plot("t", "c", {"a": Curve([1], [1.0])}, xlabel="x", ylabel="y").svg
    ), "equal plots have equal bytes"


def test_a_model_keeps_its_colour_where_another_is_missing():
    both = plot("t", "c", {"a": Curve([], []), "b": Curve([1, 2], [1.0, 2.0])}, xlabel="x", ylabel="y").svg
    assert "#d55e00" in both.lower()
    assert "#0072b2" not in both.lower()


def test_pictures_are_the_images_pixel_for_pixel():
    image = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])
    png = base64.b64decode(data_uri(image).split(",")[1])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert pixels.tolist() == [[0, 128], [255, 255]]


def test_strips_are_samples_and_the_ends_of_slerps(make_setting, tmp_path):
    setting = make_setting(cache=tmp_path)
    found = strips(setting, "pictures")
    torch.testing.assert_close(found.samples, setting.sample(range(SAMPLES), 3), rtol=1e-4, atol=1e-4)
    for i in range(PAIRS):
        ends = torch.randn(2, 1, *setting.bundle.sample_shape, generator=setting.draws([i])[0])
        for end, frame in zip(ends, (0, -1), strict=True):
            expected = setting.bundle.decode(setting.decode(end, [i], 3))[0]
            torch.testing.assert_close(found.paths[i, frame], expected, rtol=1e-4, atol=1e-4)
    kept = strips(make_setting(cache=tmp_path), "pictures", deadline=0.0)
    assert torch.equal(kept.samples, found.samples), "made anew"
    again = strips(make_setting(batch_size=5), "pictures")
    torch.testing.assert_close(again.paths, found.paths, rtol=1e-4, atol=1e-4)


def test_strips_out_of_time_are_none(make_setting, tmp_path):
    assert strips(make_setting(cache=tmp_path), "pictures", deadline=0.0) is None
    assert not list(tmp_path.iterdir())


def test_strips_of_latents_are_refused(make_setting, monkeypatch):
    from georeg_diffusion.errors import RunError

    monkeypatch.setattr(Setting, "image_shape", (4, 8, 8))
    with pytest.raises(RunError, match="images of 4 channels"):
        strips(make_setting(), "pictures")


@pytest.mark.parametrize(
    ("value", "ci", "text"),
    [
        (None, None, "—"),
        (1.23456, None, "1.235"),
        (1.0, [0.9, 1.1], "1 ± 0.1"),
        (149.06, [-73.0, 371.0], "150 ± 200"),
        (36047.6, [-23216.0, 95311.0], "36,000 ± 60,000"),
        (36047.6, [36042.6, 36052.6], "36,048 ± 5"),
        (16155.26, None, "16,155"),
        (0.0, [0.0, 0.0], "0"),
        (1e-7, None, "1e-07"),
        (1.0, [None, None], "1"),
    ],
)
def test_numbers_show_the_digits_that_they_have(value, ci, text):
    assert number({"value": value, "ci": ci}) == text


def test_a_change_within_the_noise_is_unclear():
    base = entry(1.0, ci=[0.9, 1.1])
    assert change(base, entry(0.5, ci=[0.4, 0.6]), True) == ("↓ -50.0%", "better")
    assert change(base, entry(0.5, ci=[0.4, 0.6]), False) == ("↓ -50.0%", "worse")
    assert change(base, entry(0.95, ci=[0.85, 1.05]), True)[1] == "unclear"
    assert change(base, entry(None), True) == ("", "")
    assert change(entry(-2.0), entry(-1.0), True) == ("↑ +1", "worse")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width):
    models = {"base": model(), "isometric": model(0.5)}
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(comparison(models, "Scores", ROWS))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert any("in 8 segments" in line and "1.19" in line for line in lines)
    assert any("-50.0% better" in line for line in lines)


def test_what_images_were_measured_by_is_named():
    models = {"a": {"fid": entry(1.0, measure="the pixels"), "kid": entry(2.0, measure="the pixels"), "mcn": entry(1.0)}}
    assert measures(models) == {"the pixels": ["fid", "kid"]}
    text = " ".join(Reader(page({"models": models}, ROWS)).texts)
    assert "lower is better · by the pixels" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_not_markup_on_the_terminal(terminal, monkeypatch):
    name = "[/b] [red]x"
    console = Console(width=100, file=io.StringIO(), force_terminal=terminal)
    monkeypatch.setattr("georeg_diffusion.progress.console", console)
    console.print(comparison({"base": model(), name: model()}, "Scores", ROWS))
    with progress(f"{name}: mrtl", 2) as bar:
        bar.advance(steps=2)
    assert console.file.getvalue().count(name) >= 2


def test_long_names_stay_inside_the_drawing():
    names = ["a" * 60, "b" * 60]
    svg = plot("t", "c", {n: Curve([1, 2], [1.0, 2.0]) for n in names}, xlabel="x", ylabel="y", perfect=(1, "perfect")).svg
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])
    legend = svg[svg.index('id="legend_1"') :]
    places = [float(x) for x in re.findall(r"translate\(([\d.]+) [\d.]+\) scale", legend)]
    assert places
    assert max(places) < 0.5 * width, "names begin in the left half, one below the other"


def test_cautions_name_what_is_missing_and_what_to_beware_of():
    models = {"a": {"fid": entry(1.0, caution="too few images"), "kid": entry(2.0)}, "b": {"ls": entry(None)}}
    assert cautions(models) == {"fid": "too few images", "ls": "as <it> was & is"}
    json.dumps(models)
