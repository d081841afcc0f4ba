import pytest
import torch

from georeg_diffusion import Bundle, Denoiser
from georeg_diffusion._compat import diffusers
from georeg_diffusion.denoiser import conditioned, predicted_noise, predicted_x0
from georeg_diffusion.errors import RunError, UsageError
from tests.georeg_diffusion.networks import NETWORKS, adm, condition, conditioning_of, dit, latents, plain, sd3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def awake(network):
    """DiT and adaLN layers start at zero: move every weight, so that each input reaches the output."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return network


def bundle_of(name):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if name == "sd3" else diffusers.DDPMScheduler()
    return Bundle(awake(NETWORKS[name]()), scheduler)


def plainly(network, name, x, t, c):
    """The network called by hand."""
    by_name = {"dit": "hidden_states", "sd3": "hidden_states"}.get(name, "sample")
    return network(**{by_name: x}, timestep=t, **c).sample[:, : x.shape[1]]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_network_called_by_hand(name, batch):
    bundle, c = bundle_of(name), conditioning_of(name, batch)
    x, t = latents(batch)
    assert torch.equal(Denoiser(bundle, c)(x, t), plainly(bundle.network, name, x, t, c))


@pytest.mark.parametrize("name", ["adm", "unet2d_condition", "dit", "sd3"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5, -1.0])
def test_guidance_is_the_combination_of_two_calls(name, scale):
    """Also with one row of negative conditioning for all, which is what a prompt gives."""
    bundle, c, n = bundle_of(name), conditioning_of(name, 3), conditioning_of(name, 1, seed=5)
    x, t = latents(3)
    each = {key: value.expand(3, *value.shape[1:]) for key, value in n.items()}
    with_c, with_n = (plainly(bundle.network, name, x, t, part) for part in (c, each))
    assert (with_c - with_n).abs().max() > 1e-4
    torch.testing.assert_close(Denoiser(bundle, c, scale, n)(x, t), with_n + scale * (with_c - with_n), rtol=1e-4, atol=1e-5)


def test_guidance_runs_the_network_once_and_none_costs_nothing():
    bundle, c = bundle_of("dit"), conditioning_of("dit", 3)
    batches = []
    bundle.network.pos_embed.register_forward_hook(lambda m, args, out: batches.append(len(args[0])))
    x, t = latents(3)
    for scale in (4.0, 1.0, 0.0):
        Denoiser(bundle, c, scale)(x, t)
    assert batches == [6, 3, 3]


def test_the_null_class_of_dit_is_the_last_row_of_its_table():
    bundle, x, t = bundle_of("dit"), *latents(2)
    at_zero = Denoiser(bundle, {"class_labels": torch.tensor([3])}, 0.0)(x, t)
    assert torch.equal(at_zero, plainly(bundle.network, "dit", x, t, {"class_labels": torch.tensor([10, 10])}))


def test_t_may_be_one_for_all():
    bundle, x = bundle_of("unet2d"), latents(3)[0]
    expected = Denoiser(bundle)(x, torch.tensor([7, 7, 7]))
    for t in (7, torch.tensor(7), torch.tensor([7])):
        assert torch.equal(Denoiser(bundle)(x, t), expected)


def test_half_precision_networks_answer_in_the_samples_precision():
    bundle = bundle_of("unet2d_condition")
    c, (x, t) = conditioning_of("unet2d_condition", 3), latents(3)
    expected = Denoiser(bundle, c, 2.0, conditioning_of("unet2d_condition", 1, 5))(x, t)
    bundle.network.to(torch.bfloat16)
    got = Denoiser(bundle, c, 2.0, conditioning_of("unet2d_condition", 1, 5))(x, t)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


def test_rows_are_those_of_the_whole_batch():
    bundle, c, (x, t) = bundle_of("unet2d_condition"), conditioning_of("unet2d_condition", 4), latents(4)
    denoiser = Denoiser(bundle, c, 3.0, conditioning_of("unet2d_condition", 1, 5))
    parts = [denoiser.rows(rows)(x[rows], t[rows]) for rows in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close(torch.cat(parts), denoiser(x, t))


def test_it_is_differentiable_in_x():
    bundle, c, (x, t) = bundle_of("unet2d_condition"), conditioning_of("unet2d_condition", 2), latents(2)
    bundle.network.double()
    denoiser = Denoiser(bundle, c, 3.0, conditioning_of("unet2d_condition", 1, 5))
    assert torch.autograd.gradcheck(lambda z: denoiser(z, t).mean((1, 2, 3)), (x.double().requires_grad_(),), fast_mode=True)


def test_wrong_conditions_are_refused_by_name():
    unconditional, text, classes = Bundle(plain(), None), Bundle(condition(), None), Bundle(adm(), None)
    for call, error, message in (
        (lambda: unconditional.conditioning(prompts="a"), UsageError, "--prompt: this UNet2DModel is not"),
        (lambda: unconditional.conditioning(class_labels=[1]), UsageError, "--class-label: this UNet2DModel takes no"),
        (lambda: classes.conditioning(), UsageError, "--class-label: this model needs one, from 0 to 9"),
        (lambda: classes.conditioning(class_labels=[3, 10]), UsageError, "--class-label: got 10, .* 0 to 9"),
        (lambda: classes.conditioning(class_labels=[-1]), UsageError, "--class-label: got -1"),
        (lambda: classes.conditioning(class_labels=[0.5]), UsageError, "whole numbers"),
        (lambda: text.conditioning(prompts="a"), RunError, "without a text encoder"),
        (lambda: Denoiser(unconditional, {}, 2.0), UsageError, "--guidance-scale: .* is not conditional"),
        (lambda: Denoiser(classes, {"class_labels": torch.tensor([1])}, 2.0), UsageError, "no class that stands for none"),
        (lambda: Denoiser(unconditional, {}, float("nan")), UsageError, "--guidance-scale: got nan"),
        (lambda: conditioned(unconditional, negative_prompt="a"), UsageError, "--negative-prompt"),
        (lambda: conditioned(text, negative_prompt="a"), UsageError, "no effect"),
        (lambda: Denoiser(text, {"a": torch.ones(2), "b": torch.ones(3)}), ValueError, r"\[2, 3\] rows"),
        (lambda: Denoiser(classes, {"class_labels": torch.ones(2)})(torch.ones(3, 2, 8, 8), 1), ValueError, "2 rows for 3"),
        (lambda: Denoiser(text, {}, 2.0, conditioning_of("sd3", 1)), ValueError, "expected the conditioning's"),
    ):
        with pytest.raises(error, match=message):
            call()
    longer = {"encoder_hidden_states": torch.ones(1, 9, 6)}
    with pytest.raises(ValueError, match="pad the prompts"):
        Denoiser(text, conditioning_of("unet2d_condition", 1), 2.0, longer)(latents(1)[0], 3)


def embedder(prompts):
    """A stand-in for a text encoder: each prompt's length."""
    return {"encoder_hidden_states": torch.tensor([float(len(p)) for p in prompts])[:, None, None].expand(-1, 4, 6)}


def test_options_become_a_denoiser():
    text = Bundle(condition(), diffusers.DDPMScheduler(), conditioner=embedder)
    d = conditioned(text, prompt="abc", negative_prompt="ab")
    assert d.guidance_scale == 7.5
    assert (d.positive["encoder_hidden_states"][0, 0, 0], d.negative["encoder_hidden_states"][0, 0, 0]) == (3, 2)
    d = conditioned(text, prompt=["a", "abcd"], guidance_scale=2.0)
    assert d.positive["encoder_hidden_states"][:, 0, 0].tolist() == [1, 4]
    assert d.negative["encoder_hidden_states"][:, 0, 0].tolist() == [0]
    assert d(latents(2)[0], 5).shape == (2, 2, 8, 8)
    assert conditioned(text).guidance_scale == 1

    classes = Bundle(dit(), diffusers.DDPMScheduler())
    assert conditioned(classes, class_label=3).positive["class_labels"].tolist() == [3]
    drawn = conditioned(classes, seeds=range(40)).positive["class_labels"]
    assert drawn.shape == (40,)
    assert len(set(drawn.tolist())) > 5
    assert conditioned(classes, seeds=[7]).positive["class_labels"] == drawn[7]
    assert conditioned(classes, class_label=3, guidance_scale=4).negative["class_labels"].tolist() == [10]


SCHEDULERS = {
    "epsilon": diffusers.DDPMScheduler(),
    "sample": diffusers.DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
    "v": diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, beta_schedule="scaled_linear"),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_true_prediction_gives_back_data_and_noise(name):
    """x_t and the network's target as diffusers itself makes them."""
    scheduler = SCHEDULERS[name]
    x0, noise = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    if name == "flow":
        t = scheduler.timesteps[[10, 500, 900]]
        x_t, target = scheduler.scale_noise(x0, t, noise), noise - x0
    else:
        t = torch.tensor([1, 400, 999 if name == "v" else 900])
        x_t = scheduler.add_noise(x0, noise, t)
        target = {"epsilon": noise, "sample": x0, "v": scheduler.get_velocity(x0, noise, t)}[name]
    torch.testing.assert_close(predicted_x0(scheduler, target, x_t, t), x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predicted_noise(scheduler, target, x_t, t), noise, rtol=1e-4, atol=1e-4)


def test_epsilon_says_nothing_at_zero_terminal_snr():
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(ValueError, match="ε-prediction says nothing about x₀"):
        predicted_x0(scheduler, x, x, 999)
    assert predicted_noise(scheduler, x, x, 999) is x


@pytest.mark.parametrize("t", [-1, 1000, 3.5])
def test_timesteps_outside_the_table_are_refused(t):
    with pytest.raises(ValueError, match="timesteps: got"):
        predicted_x0(diffusers.DDPMScheduler(), torch.ones(1, 1), torch.ones(1, 1), t)


def test_sd3_takes_its_conditions_by_name():
    """Its second positional argument is not the timestep."""
    bundle, c = Bundle(awake(sd3()), diffusers.FlowMatchEulerDiscreteScheduler()), conditioning_of("sd3", 2)
    x, t = latents(2)
    assert torch.equal(Denoiser(bundle, c)(x, t.float()), bundle.network(x, *c.values(), t.float()).sample)


def test_what_a_network_takes_in_a_nested_mapping_is_given_flat():
    """Pooled text and image sizes of SDXL's U-Net, with guidance."""
    options = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 29}
    network, (x, t) = condition(**options), latents(2)
    c = {**conditioning_of("unet2d_condition", 2), "text_embeds": torch.randn(2, 5), "time_ids": torch.rand(2, 6)}
    n = {**conditioning_of("unet2d_condition", 1, 5), "text_embeds": torch.randn(1, 5)}  # sizes are those of both branches

    def by_hand(tokens, pooled):
        added = {"text_embeds": pooled.expand(2, 5), "time_ids": c["time_ids"]}
        return network(x, t, tokens.expand(2, 4, 6), added_cond_kwargs=added).sample

    with_c, with_n = (by_hand(part["encoder_hidden_states"], part["text_embeds"]) for part in (c, n))
    denoiser = Denoiser(Bundle(network, diffusers.DDPMScheduler()), c, 3.0, n)
    torch.testing.assert_close(denoiser(x, t), with_n + 3 * (with_c - with_n), rtol=1e-4, atol=1e-5)
