"""``georeg-diffusion edit``: every method end to end, its files, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from georeg_diffusion import editing, load
from georeg_diffusion._compat import diffusers
from georeg_diffusion.evaluation.classifier import KIND, assemble, build
from georeg_diffusion.sampling.ddim import ddim_sample
from georeg_diffusion.sampling.noise import seeded_noise
from tests.georeg.test_docstrings import without_errors, without_example
from tests.georeg_diffusion.conftest import cli
from tests.georeg_diffusion.networks import adm

QUICK = ["--num-inference-steps", "3", "--device", "cpu", "--num-directions", "2", "--gammas", "-1,0,1"]


@pytest.fixture
def edit(model, tmp_path, capsys):
    def run(*options, model=model, out="out"):
        code = cli("edit", model, "--output-dir", tmp_path / out, *QUICK, *options)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        file = tmp_path / out / "edits.json"
        text = " ".join((captured.out + captured.err).split())
        return code, json.loads(file.read_text()) if file.is_file() else None, text

    return run


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 8_000


def test_local_basis_writes_grids_images_and_directions(edit, model, tmp_path):
    code, record, text = edit("--combine", "1,2")
    assert code == 0, text
    out = tmp_path / "out"
    each = {f"images/seed-{s}/v{k}_{g}.png" for s in (0, 1) for k in (1, 2) for g in ("-1", "+0", "+1")}
    grids = {f"{kind}-seed-{s}.png" for kind in ("edits", "combination") for s in (0, 1)}
    written = {"edits.json", "directions.safetensors", *each, *grids}
    assert files(out) == written | {"run.json"}
    assert set(json.loads((out / "run.json").read_text())["files"]) == written
    assert all(is_picture(out / grid) for grid in grids)
    bundle = load(model)
    plain = ddim_sample(bundle, seeded_noise((1, 8, 8), [1]), 3)[0, 0]
    shown = np.asarray(Image.open(out / "images" / "seed-1" / "v2_+0.png"), dtype=float)
    np.testing.assert_allclose(shown, (plain.numpy() + 1) * 127.5, atol=1)
    vectors = load_file(out / "directions.safetensors")["directions"]
    assert vectors.shape == (2, 2, 1, 8, 8)
    torch.testing.assert_close(vectors.flatten(2).norm(dim=2), torch.ones(2, 2))
    assert record["space"] == "x"
    distances = torch.tensor(record["samples"][0]["distances"])
    assert distances.shape == (2, 3)
    assert float(distances[:, 1].max()) < 1e-4 < float(distances[:, [0, 2]].min())
    assert "local-basis at t = 666" in text
    assert "seed" in text or "v1" in text
    assert edit()[0] == 2  # never over a finished run


def test_saved_directions_do_the_same_again(edit, tmp_path):
    edit("--timestep", "400")
    code, record, text = edit("--directions", tmp_path / "out" / "directions.safetensors", "--timestep", "400", out="again")
    assert code == 0, text
    for name in ("seed-0/v1_+1.png", "seed-1/v2_-1.png"):
        first, second = (np.asarray(Image.open(tmp_path / o / "images" / name), dtype=int) for o in ("out", "again"))
        assert np.abs(first - second).max() <= 1
    assert record["timestep"] == 333
    code, _, text = edit("--directions", tmp_path / "out" / "directions.safetensors", "--num-images", "3", out="three")
    assert code == 2
    assert "directions of 2 samples (seed 0, seed 1)" in text
    code, _, text = edit("--directions", tmp_path / "out" / "directions.safetensors", "--space", "h", out="h")
    assert code == 1
    assert "expected directions of this model" in text


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "global", "--num-samples", "3"],
        ["--space", "h", "--combine", "2,1"],
        ["--space", "h", "--method", "global", "--num-samples", "3", "--no-asymmetric"],
        ["--method", "shooting", "--shooting-rank", "4"],
    ],
)
def test_other_methods(edit, tmp_path, options):
    code, record, text = edit(*options, "--num-images", "1")
    assert code == 0, text
    assert is_picture(tmp_path / "out" / "edits-seed-0.png")
    assert record["directions"] == (
        ["v1 great circle", "v1 shooting", "v2 great circle", "v2 shooting"] if "shooting" in options else ["v1", "v2"]
    )
    distances = torch.tensor(record["samples"][0]["distances"])
    assert float(distances[:, 1].max()) < 1e-4 < float(distances[:, [0, 2]].min())
    vectors = load_file(tmp_path / "out" / "directions.safetensors")["directions"]
    assert vectors.shape[2:] == ((16, 4, 4) if "h" in options else (1, 8, 8))


def test_content_injection(edit, model, tmp_path):
    code, record, text = edit("--method", "injection", "--contents", "5,6,7")
    assert code == 0, text
    assert is_picture(tmp_path / "out" / "injection.png")
    assert record["contents"] == ["seed 5", "seed 6", "seed 7"]
    assert torch.tensor([s["distances"] for s in record["samples"]]).shape == (2, 3)
    assert len(files(tmp_path / "out" / "images")) == 2 * 4
    code, none, text = edit("--method", "injection", "--strength", "0", out="zero")
    assert code == 0, text
    assert none["contents"] == ["seed 2", "seed 3", "seed 4"]
    assert max(max(s["distances"]) for s in none["samples"]) < 1e-4


@pytest.fixture(scope="module")
def classifier(model, tmp_path_factory):
    """Attributes that half of the model's images have."""
    torch.manual_seed(0)
    features, head = build("small", channels=1, resolution=8, outputs=2)
    images = ddim_sample(load(model), seeded_noise((1, 8, 8), range(40)), 3)
    with torch.no_grad():
        head.bias -= head(features(images)).median(0).values
    config = {"_class_name": KIND, "architecture": "small", "channels": 1, "resolution": 8, "accuracy": 1.0}
    folder = tmp_path_factory.mktemp("classifier")
    assemble(config | {"names": ["a", "b"], "exclusive": False, "data": "a test's"}, features, head).save(folder)
    return folder


@pytest.mark.parametrize("options", [["--space", "h", "--label-method", "means"], ["--labels", "b"]])
def test_directions_from_labels(edit, classifier, tmp_path, options):
    code, record, text = edit("--method", "labels", "--classifier", classifier, "--num-samples", "40", *options)
    assert code == 0, text
    assert record["directions"] == (["b"] if "--labels" in options else ["a", "b"])
    assert "held out" in text
    assert load_file(tmp_path / "out" / "directions.safetensors")["directions"].shape[1] == 1


def test_images_latents_and_seeds_are_edited_together(edit, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "a picture.png")
    save_file({"latents": torch.randn(2, 1, 8, 8)}, tmp_path / "z.safetensors")
    sources = f"{tmp_path / 'a picture.png'}, {tmp_path / 'z.safetensors'}:1, 4"
    code, record, text = edit("--sources", sources)
    assert code == 0, text
    assert [s["name"] for s in record["samples"]] == ["a picture.png", "z:1", "seed 4"]
    assert {"edits-a-picture.png.png", "edits-z-1.png", "edits-seed-4.png"} <= files(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-4), ("bfloat16", 0.5)])
def test_precisions(edit, tmp_path, dtype, tolerance):
    edit("--num-images", "1")
    code, record, text = edit("--num-images", "1", "--dtype", dtype, out=dtype)
    assert code == 0, text
    first, second = (load_file(tmp_path / o / "directions.safetensors") for o in ("out", dtype))
    torch.testing.assert_close(first["values"], second["values"], rtol=tolerance / 10, atol=0)
    assert second["directions"].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert max(record["samples"][0]["distances"][0]) < 100


@pytest.mark.slow
def test_flow_matching(edit, tmp_path):
    torch.manual_seed(0)
    adm(in_channels=1, out_channels=1, num_class_embeds=None).save_pretrained(tmp_path / "flow")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "flow" / "scheduler")
    for out, options in (("x", ["--timestep", "600"]), ("h", ["--space", "h"]), ("i", ["--method", "injection"])):
        code, _, text = edit(*options, model=tmp_path / "flow", out=out)
        assert code == 0, text


def test_conditional_models(edit, tmp_path):
    torch.manual_seed(0)
    adm(in_channels=1, out_channels=1).save_pretrained(tmp_path / "adm")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "adm" / "scheduler")
    for out, options in (("one", ["--class-label", "3"]), ("own", []), ("h", ["--space", "h"])):
        code, _, text = edit(*options, model=tmp_path / "adm", out=out)
        assert code == 0, text
    code, _, text = edit("--method", "injection", model=tmp_path / "adm", out="inject")
    assert code == 0, text
    code, _, text = edit("--prompt", "a cat", model=tmp_path / "adm", out="text")
    assert (code, "--prompt" in text) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_3"])
def test_a_prompt_with_guidance(edit, tmp_path, name):
    pytest.importorskip("transformers")
    from tests.georeg_diffusion import text_model

    getattr(text_model, name)(tmp_path / "parts").save_pretrained(tmp_path / "text")
    prompt = ["--prompt", "a cat", "--negative-prompt", "dog", "--num-images", "1"]
    for out, options in (("x", []), ("h", ["--space", "h"]), ("i", ["--method", "injection", "--contents", "5"])):
        code, record, text = edit(*prompt, *options, model=tmp_path / "text", out=out)
        assert code == 0, text
        assert record["samples"][0]["name"] == "seed 0"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--gammas", "-1,x"], 2, "--gammas: got '-1,x'"),
        (["--gammas", "1,,2"], 2, "--gammas"),
        (["--gammas", "1,nan"], 2, "finite"),
        (["--gammas", "1,1.0"], 2, "each strength once"),
        (["--combine", "1,3"], 2, "two of the directions 1 to 2"),
        (["--combine", "1"], 2, "--combine"),
        (["--num-directions", "64"], 2, "k: got 64, expected 1 to 63"),
        (["--timestep", "2000"], 2, "--timestep: t: got 2000"),
        (["--space", "h", "--edit-from", "100", "--edit-until", "50"], 2, "no step lies from 100 down to 50"),
        (["--space", "h", "--method", "shooting"], 2, "--space"),
        (["--method", "shooting", "--gammas", "0.5"], 2, "multiples of 1/1"),
        (["--method", "wild"], 2, "--method"),
        (["--method", "labels"], 1, "--classifier"),
        (["--method", "labels", "--classifier", "nowhere"], 1, "nowhere is no classifier"),
        (["--sources", "missing.png"], 1, "missing.png does not exist"),
        (["--sources", "1,-3"], 2, "--sources: got -3"),
        (["--directions", "missing.safetensors"], 1, "missing.safetensors does not exist"),
        (["--h-module", "nothing"], 2, "--h-module: got 'nothing'"),
        (["--h-module", "down_blocks"], 2, "--h-module: the network ran to its end"),
        (["--h-module", "down_blocks", "--method", "injection"], 2, "--h-module: the network ran to its end"),
        (["--num-inference-steps", "5000"], 2, "--num-inference-steps"),
        (["--step-angle", "-1"], 2, "--step-angle"),
        (["--step-angle", "inf"], 2, "finite"),
    ],
)
def test_bad_input_leaves_nothing_behind(edit, tmp_path, options, code, message):
    found, _, text = edit(*options)
    assert (found, message in text) == (code, True), text
    assert not (tmp_path / "out").exists()


def test_every_public_name_explains_itself():
    assert editing.__all__
    assert without_example("georeg_diffusion.editing") == without_errors("georeg_diffusion.editing") == []
