"""``georeg-diffusion evaluate``: its files, its exit codes, and what it says when something is missing."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from georeg_diffusion._compat import diffusers
from georeg_diffusion.evaluation.mrtl import Mrtl
from tests.georeg_diffusion.conftest import cli

QUICK = ["--num-samples", "6", "--num-inference-steps", "2", "--timesteps", "600,800", "--device", "cpu"]


@pytest.fixture
def evaluate(model, tmp_path, capsys):
    def run(*options, model=model, out="out"):
        code = cli("evaluate", model, "--output-dir", tmp_path / out, *QUICK, *options)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        text = " ".join((captured.out + captured.err).split())
        file = tmp_path / out / "metrics.json"
        return code, json.loads(file.read_text()) if file.is_file() else None, text

    return run


def test_two_models_side_by_side(evaluate, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    code, metrics, text = evaluate(
        "--baseline", other, "--reference", "digits", "--scores", "fid,mrtl,mcn,vor,vor-log,isometry"
    )
    assert code == 0, text
    assert list(metrics["models"]) == ["other", model.name]
    first, second = metrics["models"].values()
    for name in ("fid", "mrtl", "mcn", "vor", "vor_log", "isometry"):
        entry = second[name]
        assert {"value", "ci", "n", "seed", "protocol"} <= entry.keys()
        assert entry["value"] == first[name]["value"], "equal models at one seed have equal scores"
        assert entry["finished"]
    assert "t = 600, 800" in second["mcn"]["protocol"]
    assert second["fid"]["n"] == 6
    assert "rank is at most 5" in second["fid"]["protocol"]
    assert "Inception" not in second["fid"]["protocol"]
    assert "fid: too few images for the covariance" in text
    assert "fid: by features of a digits classifier trained in place" in text
    assert (tmp_path / "out" / "run.json").is_file()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('class="strip small"') == 4
    assert page.count("<figure") >= 6
    assert "://" not in page


def test_models_of_one_name_are_base_and_isometric(evaluate, model):
    _, metrics, _ = evaluate("--baseline", model, "--scores", "mrtl")
    assert list(metrics["models"]) == ["base", "isometric"]


def test_a_finished_run_is_kept_and_an_unfinished_one_goes_on(evaluate, tmp_path):
    code, metrics, text = evaluate("--scores", "mrtl", "--max-minutes", "0")
    assert code == 0
    assert metrics["models"]["small"]["mrtl"]["value"] is None
    assert "stopped after 0 of 6" in metrics["models"]["small"]["mrtl"]["protocol"]
    assert "No pictures of small yet: out of time" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "goes on from here" in text
    code, metrics, _ = evaluate("--scores", "mrtl")
    assert code == 0
    assert metrics["models"]["small"]["mrtl"]["n"] == 6
    code, _, text = evaluate("--scores", "mrtl")
    assert code == 2
    assert "finished run" in text
    assert evaluate("--scores", "mrtl", "--overwrite")[0] == 0


def test_an_interrupted_run_goes_on(evaluate, monkeypatch, tmp_path):
    """Ctrl-C in the first score, before any result was written: its pieces are kept, with the record they belong to."""
    _, whole, _ = evaluate("--scores", "mrtl", out="whole")
    done, update = [], Mrtl.update

    def interrupted(self, piece):
        if piece == 3 and done.count(3) == 0:
            done.append(piece)
            raise KeyboardInterrupt
        done.append(piece)
        update(self, piece)

    monkeypatch.setattr(Mrtl, "update", interrupted)
    code, metrics, text = evaluate("--scores", "mrtl")
    assert code == 130
    assert metrics is None
    assert "the same command goes on from here" in text
    code, _, text = evaluate("--scores", "mrtl,mcn")
    assert code == 2
    assert "unfinished run of other options" in text
    code, metrics, _ = evaluate("--scores", "mrtl")
    assert code == 0
    assert done == [0, 1, 2, 3, 3, 4, 5], "what was done was done again"
    assert metrics == whole


def test_an_interrupted_overwrite_goes_on(evaluate, monkeypatch):
    evaluate("--scores", "mrtl")

    def interrupted(self, piece):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Mrtl, "update", interrupted)
        assert evaluate("--scores", "mrtl", "--seed", "7", "--overwrite")[0] == 130
    code, metrics, _ = evaluate("--scores", "mrtl", "--seed", "7")
    assert code == 0
    assert metrics["models"]["small"]["mrtl"]["seed"] == 7


def test_time_that_ends_while_real_images_are_measured(evaluate):
    options = ("--scores", "fid,mrtl", "--reference", "digits", "--features", "digits")
    code, metrics, text = evaluate(*options, "--max-minutes", "0")
    assert code == 0, text
    assert "not measured yet: out of time after the features of 0 of 1,797" in metrics["models"]["small"]["fid"]["protocol"]
    assert "goes on from here" in text
    code, metrics, text = evaluate(*options)
    assert code == 0, text
    assert metrics["models"]["small"]["fid"]["value"] > 0


def test_without_real_images_the_rest_is_measured(evaluate):
    code, metrics, text = evaluate("--scores", "mrtl,mcn")
    assert code == 1
    scores = metrics["models"]["small"]
    assert scores["mrtl"]["value"] > 1
    assert scores["mcn"]["value"] is None
    assert "name real images by --reference" in scores["mcn"]["protocol"]
    assert "name real images by --reference" in text


def test_the_runs_own_images_are_found(evaluate, model, tmp_path):
    run = tmp_path / "trained"
    shutil.copytree(model, run / "isometric")
    (run / "config.yaml").write_text(yaml.safe_dump({"train_data_dir": None, "resolution": 8}))
    code, metrics, text = evaluate("--scores", "mcn", model=run / "isometric")
    assert code == 0, text
    assert "images of digits" in metrics["models"]["isometric"]["mcn"]["protocol"]
    (run / "config.yaml").write_text(yaml.safe_dump({"train_data_dir": str(tmp_path / "gone")}))
    code, _, text = evaluate("--scores", "mcn", model=run / "isometric", out="again")
    assert code == 1
    assert "not there any more; name real images by --reference" in text


def test_a_folder_of_images(evaluate, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    code, metrics, text = evaluate("--scores", "mcn,isometry", "--reference", tmp_path / "photos")
    assert code == 0, text
    assert metrics["models"]["small"]["mcn"]["n"] == 4, "as many as there are"
    assert "4 images of photos" in metrics["models"]["small"]["mcn"]["protocol"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores", "fidd"], "--scores: got 'fidd', expected some of"),
        (["--scores", ","], "--scores: got ','"),
        (["--timesteps", "a"], "--timesteps"),
        (["--timesteps", "5000"], "--timesteps: got 5000, expected numbers from 0 to 999"),
        (["--reference", "nowhere", "--scores", "mcn"], "--reference: nowhere does not exist"),
        (["--num-inference-steps", "5000", "--scores", "mrtl"], "--num-inference-steps: got 5000"),
        (["--features", "nonsense", "--reference", "digits", "--scores", "fid"], "--features: got 'nonsense'"),
        (["--protocol", "other"], "--protocol"),
    ],
)
def test_wrong_options(evaluate, options, message):
    code, metrics, text = evaluate(*options)
    assert code == 2
    assert message in text
    assert metrics is None


def test_a_folder_that_is_no_model(evaluate, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, text = evaluate(model=tmp_path / "empty")
    assert code == 1
    assert "is not a diffusers model" in text


def test_a_reference_of_other_channels(evaluate, tmp_path, model):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "broken.png").write_bytes(b"no image")
    code, _, text = evaluate("--reference", tmp_path / "one", "--scores", "mcn")
    assert code == 1
    assert "--reference: none of the 1 images" in text


def test_statistics_of_other_features_are_refused(evaluate, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    code, _, text = evaluate("--scores", "fid", "--reference", tmp_path / "stats.npz", "--features", "digits")
    assert code == 1
    assert "statistics of 4 features" in text


def test_the_papers_protocol_takes_its_distance_and_its_steps(evaluate):
    """Offline or not: AlexNet is named, and not replaced by what is at hand."""
    options = ("--scores", "ppl", "--protocol", "paper", "--reference", "digits", "--lpips-backbone", "features")
    code, metrics, text = evaluate(*options)
    assert code == 0, text
    protocol = metrics["models"]["small"]["ppl"]["protocol"]
    assert protocol.startswith("paper: d/ε")
    assert "features of a digits classifier" in protocol


def test_missing_weights_are_named_with_their_place_and_option(evaluate, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    code, metrics, text = evaluate("--scores", "ppl,mrtl", "--protocol", "paper")
    assert code == 1
    for part in ("LPIPS with AlexNet", "alexnet-owt-7be5be79.pth", "put the file there", "--lpips-backbone-weights FILE"):
        assert part in text
    assert metrics["models"]["small"]["mrtl"]["value"] > 1, "the other score was measured all the same"
    _, _, text = evaluate("--scores", "fid", "--features", "inception", "--reference", "digits", out="other")
    for part in ("weights-inception-2015-12-05-6726825d.pth", str(tmp_path / "hub"), "--inception-weights FILE"):
        assert part in text


def test_models_of_other_sizes_are_refused(evaluate, tmp_path):
    other = tmp_path / "large"
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(other)
    code, metrics, text = evaluate("--baseline", other, "--scores", "mrtl")
    assert code == 1
    assert "large 1 × 16 × 16, small 1 × 8 × 8" in text
    assert metrics is None


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(model, tmp_path):
    """SIGKILL while images are made; the same command then ends where an undisturbed one does."""
    scores = ["--scores", "mrtl,isometry,fid", "--reference", "digits", "--num-samples", "400", "--timesteps", "600,800"]
    steps = ["--num-inference-steps", "2", "--device", "cpu"]

    def command(folder):
        arguments = ["evaluate", str(model), "--output-dir", str(folder), *scores, *steps]
        return [sys.executable, "-m", "georeg_diffusion", *arguments]

    process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while not (found := list((tmp_path / "killed" / "cache").glob("generated-*"))) and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert 0 < len(found) < 7, "killed too late to show anything"
    assert not json.loads((tmp_path / "killed" / "run.json").read_text())["finished"]
    for folder in ("killed", "whole"):
        subprocess.run(command(tmp_path / folder), check=True, stdout=subprocess.DEVNULL)
    killed, whole = (json.loads((tmp_path / folder / "metrics.json").read_text()) for folder in ("killed", "whole"))
    assert killed == whole
