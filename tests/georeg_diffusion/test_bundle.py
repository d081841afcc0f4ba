import json
import shutil
import subprocess
import sys

import pytest
import torch

from georeg_diffusion import Bundle, Denoiser, load
from georeg_diffusion._compat import diffusers
from georeg_diffusion.conditioning import text_conditioner
from georeg_diffusion.errors import RunError
from tests.georeg_diffusion.networks import NETWORKS, condition, conditioning_of, dit, latents, plain, sd3, vae, vq


def same(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


PIPELINES = {
    "DDPMPipeline": lambda: diffusers.DDPMPipeline(plain(), diffusers.DDPMScheduler(prediction_type="sample")),
    "DDIMPipeline": lambda: diffusers.DDIMPipeline(plain(), diffusers.DDIMScheduler(num_train_timesteps=77)),
    "LDMPipeline": lambda: diffusers.LDMPipeline(vq(), plain(), diffusers.DDIMScheduler()),
    "LDMPipeline with a KL codec": lambda: diffusers.LDMPipeline(vae(), plain(), diffusers.DDIMScheduler()),
    "DiTPipeline": lambda: diffusers.DiTPipeline(
        dit(), vae(), diffusers.DDIMScheduler(), id2label={0: "cat, tom", 1: "dog"}
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_comes_back_as_it_was_and_loads_in_plain_diffusers(name, tmp_path):
    torch.manual_seed(0)
    pipeline = PIPELINES[name]()
    pipeline.save_pretrained(tmp_path / "given")
    if name == "DiTPipeline":  # where the label's names are in published models
        index = json.loads((tmp_path / "given/model_index.json").read_text())
        (tmp_path / "given/model_index.json").write_text(json.dumps(index | {"id2label": {"0": "cat, tom", "1": "dog"}}))
    bundle = load(tmp_path / "given")
    bundle.save(tmp_path / "saved")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved", use_safetensors=True)
    assert type(again) is type(pipeline)
    assert set(again.components) == set(pipeline.components)
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            assert same(module, again.components[part])
    assert dict(again.scheduler.config)["num_train_timesteps"] == pipeline.scheduler.config.num_train_timesteps
    assert again.scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
    if name == "DiTPipeline":
        assert again.labels == {"cat": 0, "dog": 1, "tom": 0}
    assert bundle.sample_shape == (2, 8, 8)
    codec = pipeline.components.get("vae", pipeline.components.get("vqvae"))
    assert (bundle.codec is None) == (codec is None)
    if codec is not None:
        x = latents(2)[0]
        by_hand = codec.decode(x / codec.config.scaling_factor).sample.clamp(-1, 1)
        torch.testing.assert_close(bundle.decode(x), by_hand)
        assert not any(p.requires_grad for p in bundle.codec.parameters())


def test_the_saved_pipelines_samples_are_the_denoisers(tmp_path):
    """diffusers' own LDM loop against ours from the same noise."""
    torch.manual_seed(0)
    Bundle(plain(), diffusers.DDIMScheduler(clip_sample=False), codec=vq()).save(tmp_path / "m")
    pipeline = diffusers.LDMPipeline.from_pretrained(tmp_path / "m")
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np")[0]
    bundle = load(tmp_path / "m")
    scheduler, denoiser = bundle.scheduler, Denoiser(bundle)
    scheduler.set_timesteps(4)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(denoiser(x, t), t, x).prev_sample
        images = bundle.decode(x)
    torch.testing.assert_close(images.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bare_network_keeps_its_schedule(name, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    flow = name == "sd3"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if flow else diffusers.DDIMScheduler(beta_end=0.012)
    Bundle(network, scheduler).save(tmp_path / "m")
    bundle = load(tmp_path / "m")
    assert same(network, bundle.network)
    assert (bundle.scheduler.config.shift == 3.0) if flow else (bundle.scheduler.config.beta_end == 0.012)
    x, t = latents(2)
    c = conditioning_of(name, 2)
    with torch.no_grad():
        torch.testing.assert_close(Denoiser(bundle, c)(x, t), Denoiser(Bundle(network, scheduler), c)(x, t))


def test_a_network_folder_without_a_schedule_gets_the_default(tmp_path):
    for make, kind in ((condition, diffusers.DDPMScheduler), (sd3, diffusers.FlowMatchEulerDiscreteScheduler)):
        make().save_pretrained(tmp_path / "m")
        assert type(load(tmp_path / "m").scheduler) is kind


def test_errors_name_what_is_missing(tmp_path):
    given = tmp_path / "given"
    PIPELINES["LDMPipeline"]().save_pretrained(given)

    def broken(change):
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        shutil.copytree(given, tmp_path / "broken")
        change(tmp_path / "broken")
        return tmp_path / "broken"

    def index(**values):
        def change(folder):
            before = json.loads((folder / "model_index.json").read_text())
            (folder / "model_index.json").write_text(json.dumps(before | values))

        return change

    def as_bin(folder):
        torch.save(plain().state_dict(), folder / "unet/diffusion_pytorch_model.bin")
        (folder / "unet/diffusion_pytorch_model.safetensors").unlink()

    for change, message in (
        (lambda f: shutil.rmtree(f / "vqvae"), "its folder vqvae is missing"),
        (as_bin, "safetensors"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"abc"), "cannot load"),
        (lambda f: (f / "model_index.json").write_text("{"), "cannot load"),
        (index(_class_name="KandinskyPipeline"), "it is a KandinskyPipeline, expected DDPMPipeline, "),
        (index(_class_name=["pipeline", "Mine"]), "it is a .*Mine"),
        (index(unet=["my_unet", "MyUNet"]), "remote code is not run"),
        (index(unet=["diffusers", "UNet1DModel"]), "cannot"),
    ):
        with pytest.raises(RunError, match=message) as caught:
            load(broken(change))
        assert "\n" not in str(caught.value)
    (tmp_path / "network").mkdir()
    for config in ("{", "[]", '{"_class_name": "UNet1DModel"}', '{"_class_name": "UNet2DModel"}'):
        (tmp_path / "network/config.json").write_text(config)
        with pytest.raises(RunError, match="cannot"):
            load(tmp_path / "network")


def test_a_missing_library_is_named(tmp_path):
    """In a process of its own, where transformers is not installed."""
    PIPELINES["DDPMPipeline"]().save_pretrained(tmp_path / "m")
    index = json.loads((tmp_path / "m/model_index.json").read_text())
    (tmp_path / "m/model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    code = "import sys; sys.modules.update(transformers=None, peft=None)\nfrom georeg_diffusion import load\n"
    code += f"load({str(tmp_path / 'm')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("georeg_diffusion.errors.RunError: cannot load")
    assert "StableDiffusionPipeline requires the transformers library" in last
    assert "pip install transformers" in last


def test_a_codec_without_a_place_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RunError, match="a DDPMPipeline has no autoencoder, but this model has a VQModel"):
        Bundle(plain(), diffusers.DDPMScheduler(), codec=vq(), pipeline_class="DDPMPipeline").save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    bundle = Bundle(plain(), diffusers.DDPMScheduler())
    bundle.save(tmp_path / "m")
    monkeypatch.setattr(diffusers.DDPMScheduler, "save_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Bundle(plain(), diffusers.DDPMScheduler()).save(tmp_path / "m")
    assert same(load(tmp_path / "m").network, bundle.network)


def test_a_compiled_network_saves_as_itself(tmp_path):
    network = plain()
    Bundle(torch.compile(network), diffusers.DDPMScheduler()).save(tmp_path / "m")
    assert same(load(tmp_path / "m").network, network)


def test_moving_keeps_the_precision_of_codec_and_text_encoders():
    encoder = torch.nn.Linear(1, 1)
    bundle = Bundle(
        plain(), diffusers.DDPMScheduler(), codec=vq(), components={"text_encoder": encoder, "tokenizer": object()}
    )
    assert bundle.to("cpu", torch.float64) is bundle
    assert bundle.network.dtype == torch.float64
    assert bundle.codec.dtype == encoder.weight.dtype == torch.float32


class Pipeline:
    """encode_prompt as Stable Diffusion has it."""

    def __init__(self):
        self.components = {"text_encoder": torch.nn.Linear(1, 6), "unet": None}

    def encode_prompt(self, prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt=None):
        assert num_images_per_prompt == 1
        assert not do_classifier_free_guidance
        return torch.stack([self.components["text_encoder"](torch.full((4, 1), float(len(p)))) for p in prompt]), None


class Pipeline3(Pipeline):
    """encode_prompt as Stable Diffusion 3 has it."""

    def encode_prompt(
        self, prompt, prompt_2, prompt_3, device=None, num_images_per_prompt=1, do_classifier_free_guidance=True
    ):
        assert prompt_2 is prompt_3 is None
        embeddings, _ = Pipeline.encode_prompt(self, prompt, device, num_images_per_prompt, do_classifier_free_guidance)
        return embeddings, None, torch.ones(len(prompt), 5), None


@pytest.mark.parametrize(("make", "pipeline"), [(condition, Pipeline()), (sd3, Pipeline3())])
def test_prompts_become_what_the_network_takes(make, pipeline):
    flow = make is sd3
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDPMScheduler()
    bundle = Bundle(make(), scheduler, conditioner=text_conditioner(pipeline))
    c = bundle.conditioning(prompts=["a", "abc", ""])
    assert {k: v.shape[0] for k, v in c.items()} == dict.fromkeys(c, 3)
    assert not c["encoder_hidden_states"].requires_grad
    assert Denoiser(bundle, c, 5.0)(*latents(3)).shape == (3, 2, 8, 8)
    assert bundle.conditioning()["encoder_hidden_states"].shape[0] == 1
    assert text_conditioner(object()) is None
