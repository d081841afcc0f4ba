"""Text-conditioned training: captions, dropped now and then, LoRA that plain diffusers loads; classes likewise."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage.data import lfw_subset

from georeg_diffusion import IsometricDiffusionLoss, load
from georeg_diffusion._compat import diffusers
from georeg_diffusion.data.conditions import Conditions
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.images import Draws
from georeg_diffusion.errors import RunError
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.lora import with_lora
from tests.georeg_diffusion.conftest import cli, error_of
from tests.georeg_diffusion.networks import adm, condition, conditioning_of, dit, latents, vae
from tests.georeg_diffusion.text_model import stable_diffusion, stable_diffusion_3

QUICK = ["--logging-steps", 1, "--report-to", "none", "--cpu", "--train-batch-size", 4, "--no-evaluate"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Real face crops with captions."""
    place = tmp_path_factory.mktemp("data") / "faces"
    place.mkdir()
    lines = []
    for i, face in enumerate(lfw_subset()[:6]):
        Image.fromarray((face * 255).astype(np.uint8)).save(place / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": ["a face", f"face {i}"] if i % 2 else f"no. {i}"})
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    place = tmp_path_factory.mktemp("sd")
    stable_diffusion(place).save_pretrained(place / "sd")
    return place / "sd"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, faces, base):
    """A finished LoRA run."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    code = cli(
        "train", *QUICK, "--train-data-dir", faces, "--pretrained-model-name-or-path", base, "--max-train-steps", 4,
        "--learning-rate", 1e-2, "--lambda-iso", 1, "--rank", 2, "--lora-alpha", 3, "--output-dir", out,
    )  # fmt: skip
    assert code == 0
    return out


def test_lora_is_the_default_and_loads_in_plain_diffusers(tuned, base):
    assert {file.name for file in (tuned / "isometric").iterdir()} >= {"pytorch_lora_weights.safetensors", "lora.json"}
    assert sum(file.stat().st_size for file in (tuned / "isometric").glob("*.safetensors")) < 2**16
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    x, t = latents(2)
    c = conditioning_of("unet2d_condition", 2)
    before = pipeline.unet(x, t, **c).sample
    pipeline.load_lora_weights(tuned / "isometric")
    after = pipeline.unet(x, t, **c).sample
    assert (after - before).abs().max() > 1e-3
    assert pipeline.unet.peft_config["default_0"].lora_alpha == 3
    assert pipeline("a face", num_inference_steps=2, height=16, width=16).images[0].size == (16, 16)
    # Our own door merges them: the same function, and a pipeline that saves as a whole.
    bundle = load(tuned / "isometric")
    torch.testing.assert_close(bundle.network(x, t, **c).sample, after, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in bundle.network.named_parameters())
    assert bundle.lora_of is None


def test_a_merged_model_saves_whole(tuned, tmp_path):
    bundle = load(tuned / "isometric")
    bundle.save(tmp_path / "merged")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), bundle.network.parameters(), strict=True))


def test_the_commands_take_a_lora_folder(tuned, tmp_path):
    assert cli("sample", tuned / "isometric", "--num-images", 2, "--num-inference-steps", 2, "--prompt", "a face",
               "--output-dir", tmp_path / "s", "--device", "cpu") == 0  # fmt: skip


def test_lora_folders_that_do_not_serve(tuned, tmp_path):
    weights = (tuned / "isometric" / "pytorch_lora_weights.safetensors").read_bytes()
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match=r"no lora.json that names their model"):
        load(tmp_path)
    (tmp_path / "lora.json").write_text('{"base_model": "./gone"}')
    with pytest.raises(RunError, match=r"the LoRA weights of ./gone: cannot load"):
        load(tmp_path)


def test_adapters_on_adapters_are_merged_in_turn(tuned, faces, tmp_path):
    assert cli("train", *QUICK, "--train-data-dir", faces, "--pretrained-model-name-or-path", tuned / "isometric",
               "--max-train-steps", 2, "--learning-rate", 1e-2, "--output-dir", tmp_path / "more") == 0  # fmt: skip
    x, t = latents(2)
    c = conditioning_of("unet2d_condition", 2)
    first, second = load(tuned / "isometric").network, load(tmp_path / "more" / "isometric").network
    assert (first(x, t, **c).sample - second(x, t, **c).sample).abs().max() > 1e-4
    record = json.loads((tmp_path / "more" / "isometric" / "lora.json").read_text())
    assert record["base_model"] == str((tuned / "isometric").resolve())


def test_stable_diffusion_3_trains_and_loads_in_plain_diffusers(tmp_path, faces):
    stable_diffusion_3(tmp_path).save_pretrained(tmp_path / "sd3")
    assert cli("train", *QUICK, "--train-data-dir", faces, "--pretrained-model-name-or-path", tmp_path / "sd3",
               "--max-train-steps", 2, "--learning-rate", 1e-2, "--output-dir", tmp_path / "out") == 0  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "sd3", text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    x, t = latents(2)
    c = conditioning_of("sd3", 2)
    before = pipeline.transformer(x, timestep=t, **c).sample
    pipeline.load_lora_weights(tmp_path / "out" / "isometric")
    after = pipeline.transformer(x, timestep=t, **c).sample
    assert (after - before).abs().max() > 1e-4
    assert pipeline("a face", num_inference_steps=2, height=16, width=16).images[0].size == (16, 16)
    merged = load(tmp_path / "out" / "isometric").network
    torch.testing.assert_close(merged(x, timestep=t, **c).sample, after, rtol=1e-4, atol=1e-5)


def test_only_the_adapters_train_and_at_first_they_change_nothing(base):
    bundle = load(base)
    x, t = latents(2)
    c = conditioning_of("unet2d_condition", 2)
    before = bundle.network(x, t, **c).sample
    tuned = with_lora(bundle, str(base), TrainConfig(rank=3))
    torch.testing.assert_close(tuned.network(x, t, **c).sample, before)
    trained = {name for name, p in tuned.network.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    attended = {name.rsplit(".lora_", 1)[0].split("attn")[1].split(".", 1)[1] for name in trained}
    assert attended == {"to_q", "to_k", "to_v", "to_out.0"}


@pytest.mark.slow
def test_text_models_are_scored_and_drawn_with_a_prompt(tmp_path, faces, base):
    out = tmp_path / "out"
    assert cli("train", *QUICK[:-1], "--train-data-dir", faces, "--pretrained-model-name-or-path", base,
               "--max-train-steps", 1, "--output-dir", out) == 0  # fmt: skip
    scores = json.loads((out / "metrics.json").read_text())["models"]["isometric"]
    assert {"denoising", "isometry", "mrtl"} <= set(scores)
    assert (out / "interpolation.png").is_file()


def test_all_weights_train_without_lora(tmp_path, faces, base):
    out = tmp_path / "out"
    assert cli("train", *QUICK, "--no-lora", "--instance-prompt", "a face", "--train-data-dir", faces, "--no-use-ema",
               "--pretrained-model-name-or-path", base, "--max-train-steps", 2, "--output-dir", out) == 0  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(out / "isometric")
    before = diffusers.StableDiffusionPipeline.from_pretrained(base)
    assert not torch.equal(pipeline.unet.conv_in.weight, before.unet.conv_in.weight)
    for part in ("vae", "text_encoder"):
        pairs = zip(getattr(pipeline, part).parameters(), getattr(before, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_resumed_lora_is_bit_identical(tmp_path, faces, base, monkeypatch):
    arguments = ["train", *QUICK, "--train-data-dir", faces, "--pretrained-model-name-or-path", base,
                 "--max-train-steps", 4, "--checkpointing-steps", 2, "--cache-dir", tmp_path / "cache"]  # fmt: skip
    assert cli(*arguments, "--output-dir", tmp_path / "whole") == 0
    forward, calls = IsometricDiffusionLoss.forward, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", interrupted)
    assert cli(*arguments, "--output-dir", tmp_path / "torn") == 130
    monkeypatch.setattr(IsometricDiffusionLoss, "forward", forward)
    assert cli(*arguments, "--output-dir", tmp_path / "torn") == 0
    file = "isometric/pytorch_lora_weights.safetensors"
    whole, torn = load_file(tmp_path / "whole" / file), load_file(tmp_path / "torn" / file)
    assert whole.keys() == torn.keys()
    assert all(torch.equal(whole[name], torn[name]) for name in whole)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, faces, base):
    found = []
    shared = ["train", *QUICK, "--train-data-dir", faces, "--pretrained-model-name-or-path", base, "--max-train-steps", 2,
              "--with-baseline", "--cache-dir", tmp_path / "cache"]  # fmt: skip
    for flag in ("--gradient-checkpointing", "--no-gradient-checkpointing"):
        out = tmp_path / flag
        assert cli(*shared, flag, "--output-dir", out) == 0
        found.append(load_file(out / "isometric" / "pytorch_lora_weights.safetensors"))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=2e-6)


def test_conditions_are_drawn_by_the_draw_alone_and_dropped_as_often_as_asked():
    rows = [{"c": torch.tensor(float(k))} for k in range(4)]
    conditions = Conditions(rows, [(0, 1), (2,)], null=3, dropout=0.25)
    draws = Draws(Digits(8), 0, conditions)
    first = [draws[(n, 0)] for n in range(1000)]
    again = [draws[(n, 0)] for n in range(1000)]
    assert [e["conditioning"]["c"] for e in first] == [e["conditioning"]["c"] for e in again]
    dropped = sum(not e["is_conditional"] for e in first)
    assert abs(dropped - 250) < 4 * (1000 * 0.25 * 0.75) ** 0.5
    assert all(bool(e["conditioning"]["c"] == 3) != e["is_conditional"] for e in first)
    ones = sum(bool(e["conditioning"]["c"] == 1) for e in first)
    assert abs(ones - 375) < 4 * (1000 * 0.375 * 0.625) ** 0.5
    assert {float(draws[(n, 1)]["conditioning"]["c"]) for n in range(50)} == {2.0, 3.0}
    with pytest.raises(ValueError, match="no row for no condition"):
        Conditions(rows, [(0,)], dropout=0.1)


def test_rows_without_their_condition_train_no_isometry():
    """The term of the rows that are left, weighted by their share of the batch: the same as of those alone."""
    torch.manual_seed(0)
    network, scheduler = condition(), diffusers.DDPMScheduler()
    x, c = latents(4)[0], conditioning_of("unet2d_condition", 4)
    t, noise = torch.tensor([900, 800, 700, 100]), torch.randn_like(x)
    make = lambda: IsometricDiffusionLoss(network, scheduler, timestep_bins=0, momentum=None)  # noqa: E731
    probes = lambda: [torch.Generator().manual_seed(i) for i in range(4)]  # noqa: E731
    rows = torch.tensor([True, False, True, True])
    out = make()(x, t, noise, probes(), isometry_rows=rows, **c)
    assert out.gated == 2
    kept = torch.tensor([0, 2])
    alone = make()(x[kept], t[kept], noise[kept], [probes()[0], probes()[2]], **{k: v[kept] for k, v in c.items()})
    torch.testing.assert_close(out.isometry, alone.isometry * 2 / 4)
    whole = make()(x, t, noise, probes(), **c)
    assert whole.gated == 3
    torch.testing.assert_close(out.denoising, whole.denoising)
    for wrong in (rows[:3], rows.long()):
        with pytest.raises(ValueError, match="isometry_rows: got"):
            make()(x, t, noise, isometry_rows=wrong, **c)


def test_class_conditional_models_train_on_folders_of_classes(tmp_path):
    place = tmp_path / "data"
    for i, face in enumerate(lfw_subset()[:6]):
        (place / str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((face * 255).astype(np.uint8)).save(place / str(i % 3) / f"{i}.png")
    diffusers.DiTPipeline(dit(num_embeds_ada_norm=3), vae(), diffusers.DDIMScheduler(clip_sample=False)).save_pretrained(
        tmp_path / "dit"
    )
    diffusers.DDPMPipeline(
        adm(in_channels=3, out_channels=3, num_class_embeds=3), diffusers.DDPMScheduler()
    ).save_pretrained(tmp_path / "adm")
    for kind in ("dit", "adm"):
        assert cli("train", *QUICK, "--train-data-dir", place, "--pretrained-model-name-or-path", tmp_path / kind,
                   "--max-train-steps", 2, "--output-dir", tmp_path / f"out-{kind}") == 0  # fmt: skip
        assert load(tmp_path / f"out-{kind}" / "isometric").network is not None


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("no captions", 1, "faces has no captions; write metadata.jsonl beside the images"),
        ("some captions", 1, "1 of the 6 images of faces have no caption, such as"),
        ("no text model", 2, "--instance-prompt: this UNet2DModel is not conditioned on text"),
        ("no prompt", 2, "--validation-prompt: this UNet2DModel is not conditioned on text"),
        ("no lora", 2, "--lora: diffusers has no LoRA format for DDPMPipeline"),
        ("no classes", 1, "the model is conditioned on 10 classes, but faces has none"),
    ],
)
def test_mistakes_get_one_line(tmp_path, capsys, faces, base, model, case, code, message):
    place = tmp_path / "faces"
    place.mkdir()
    for file in faces.glob("*.png"):
        (place / file.name).write_bytes(file.read_bytes())
    if case == "some captions":
        (place / "metadata.jsonl").write_text("\n".join((faces / "metadata.jsonl").read_text().splitlines()[:5]))
    options = {"no text model": ["--instance-prompt", "x"], "no prompt": ["--validation-prompt", ""], "no lora": ["--lora"]}
    extra = options.get(case, [])
    start = model if extra else base
    if case == "no classes":
        start = tmp_path / "adm"
        diffusers.DDPMPipeline(adm(in_channels=3, out_channels=3), diffusers.DDPMScheduler()).save_pretrained(start)
    got, error = error_of(capsys, *QUICK, "--train-data-dir", place, "--pretrained-model-name-or-path", start,
                          "--resolution", 16, "--max-train-steps", 1, *extra, "--output-dir", tmp_path / "out")  # fmt: skip
    assert got == code, error
    assert message in error
