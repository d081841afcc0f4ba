"""The laws of every backbone, on a small network of each family."""

import copy

import peft
import pytest
import torch

import georeg
from georeg.registry import registered
from georeg_diffusion import HSpace
from georeg_diffusion.backbones import family_of
from tests.conftest import gradients
from tests.georeg_diffusion.networks import NETWORKS, conditioning_of, dit, latents, plain, sd3

BATCH = 2


def made(name, dtype=torch.float64):
    """Network, x_t, t and conditioning; weights moved away from zero initialisations."""
    torch.manual_seed(0)
    network = NETWORKS[name]().to(dtype)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, t = latents(BATCH)
    c = {k: v.to(dtype) if v.is_floating_point() else v for k, v in conditioning_of(name, BATCH).items()}
    return network, x.to(dtype), t, c


def full(network, name, x, t, c):
    return network(**{"hidden_states" if name in ("dit", "sd3") else "sample": x}, timestep=t, **c).sample


def hooks_of(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_every_registered_backbone_is_held_to_the_laws():
    families = {type(family_of(make())).__name__ for make in NETWORKS.values()}
    assert families == {family.__name__ for family in registered("backbone").values()}


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def test_forward_and_backward_products_are_those_of_finite_differences(name):
    """J v by double backward against central differences, and by forward mode; Jᵀw by ⟨w, J v⟩ = ⟨Jᵀw, v⟩."""
    network, x, t, c = made(name)

    def f(z):
        return HSpace(network).encode(z, t, **c)

    lin = georeg.linearize(f, x)
    g = torch.Generator().manual_seed(2)
    v = torch.randn(2, *x.shape, dtype=x.dtype, generator=g)
    w = torch.randn(2, *lin.value.shape, dtype=x.dtype, generator=g)
    Jv, Jtw, step = lin.jvp(v), lin.vjp(w), 1e-5
    with torch.no_grad():
        differences = torch.stack([(f(x + step * k) - f(x - step * k)) / (2 * step) for k in v])
    torch.testing.assert_close(Jv, differences, rtol=1e-6, atol=1e-7 * Jv.detach().abs().max().item())
    torch.testing.assert_close(
        torch.einsum("kb...,kb...->kb", w, Jv), torch.einsum("kb...,kb...->kb", Jtw, v), rtol=1e-9, atol=1e-9
    )
    forward = georeg.linearize(f, x, engine="forward")
    torch.testing.assert_close(forward.jvp(v), Jv, rtol=1e-8, atol=1e-10)


def test_each_sample_has_a_map_of_its_own(name):
    network, x, t, c = made(name)
    alone = torch.cat([HSpace(network).encode(x[[i]], t[[i]], **{k: z[[i]] for k, z in c.items()}) for i in range(BATCH)])
    torch.testing.assert_close(HSpace(network).encode(x, t, **c), alone)


def test_early_exit_is_the_full_forwards_h_and_runs_nothing_behind_it(name):
    network, x, t, c = made(name)
    space, ran, seen = HSpace(network), [], []
    h_name = next(n for n, m in network.named_modules() if m is space.module)
    handles = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in network.named_modules()]
    handles.append(space.module.register_forward_hook(lambda m, a, out: seen.append(out)))
    full(network, name, x, t, c)
    before, behind = ran[: ran.index(h_name) + 1], ran[ran.index(h_name) + 1 :]
    assert len(behind) > 3
    ran.clear()
    h = space.encode(x, t, **c)
    assert ran == before
    assert torch.equal(h, seen[0][1] if name == "sd3" else seen[0])
    for handle in handles:
        handle.remove()


def test_only_what_makes_h_gets_a_gradient_and_all_of_it(name):
    network, x, t, c = made(name)
    with HSpace(network).capture() as captured:
        full(network, name, x, t, c)
    captured.isometry(generator=torch.Generator().manual_seed(0)).loss.backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    tops = {n.split(".")[0] for n in reached}
    expected = {
        "unet2d": {"conv_in", "time_embedding", "down_blocks", "mid_block"},
        "adm": {"conv_in", "time_embedding", "class_embedding", "down_blocks", "mid_block"},
        "unet2d_condition": {"conv_in", "time_embedding", "down_blocks", "mid_block"},
        "dit": {"pos_embed", "transformer_blocks"},
        "sd3": {"pos_embed", "time_text_embed", "context_embedder", "transformer_blocks"},
    }[name]
    assert tops == expected
    if "transformer_blocks" in tops:
        assert {n.split(".")[1] for n in reached if n.startswith("transformer_blocks")} == {"0", "1"}


def test_the_shared_pass_has_the_loss_and_gradient_of_the_map(name):
    network, x, t, c = made(name)
    with HSpace(network).capture() as captured:
        full(network, name, x, t, c)
    shared = captured.isometry(generator=torch.Generator().manual_seed(5)).loss
    regularizer = georeg.IsometryLoss(domain=georeg.Sphere(), normalize=True)
    alone = regularizer(lambda z: HSpace(network).encode(z, t, **c), x, generator=torch.Generator().manual_seed(5)).loss
    torch.testing.assert_close(shared, alone, rtol=1e-9, atol=0)
    parameters = list(network.parameters())
    torch.testing.assert_close(gradients(shared, parameters), gradients(alone, parameters), rtol=1e-7, atol=1e-10)


def test_hooks_vanish_also_after_an_exception(name):
    network, x, t, c = made(name)
    space = HSpace(network)
    space.encode(x, t, **c)
    with pytest.raises(ZeroDivisionError), space.capture():
        full(network, name, x, t, c)
        raise ZeroDivisionError
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        space.encode(x[:, :1].expand(-1, 5, -1, -1), t, **c)
    assert hooks_of(network) == 0


def loss_and_gradient(network, name, x, t, c, call=None):
    with HSpace(network).capture() as captured:
        prediction = full(call or network, name, x, t, c)
    loss = captured.isometry(generator=torch.Generator().manual_seed(5)).loss + prediction.square().mean()
    return loss.detach(), gradients(loss, [p for p in network.parameters() if p.requires_grad])


def test_gradient_checkpointing_changes_nothing(name):
    """The captured pass, and the encoder as a map; the recomputation comes when every context has ended."""
    network, x, t, c = made(name)

    def encoder_loss():
        loss = georeg.IsometryLoss(domain=georeg.Sphere())(
            lambda z: HSpace(network).encode(z, t, **c), x, generator=torch.Generator().manual_seed(5)
        ).loss
        return loss.detach(), gradients(loss, list(network.parameters()))

    expected = loss_and_gradient(network, name, x, t, c), encoder_loss()
    network.enable_gradient_checkpointing()
    checkpoints = [getattr(m, "_gradient_checkpointing_func", None) for m in network.modules()]
    torch.testing.assert_close((loss_and_gradient(network, name, x, t, c), encoder_loss()), expected, rtol=1e-7, atol=1e-10)
    assert [getattr(m, "_gradient_checkpointing_func", None) for m in network.modules()] == checkpoints


@pytest.mark.parametrize("how", ["torch.compile", "in place", "one block"])
def test_a_compiled_network_runs_as_written_inside(name, how):
    network, *rest = made(name)
    expected = loss_and_gradient(network, name, *rest)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = copy.deepcopy(network)
    if how == "torch.compile":
        compiled = torch.compile(compiled, backend=backend)
    elif how == "in place":
        compiled.compile(backend=backend)
    else:
        HSpace(compiled).module.compile(backend=backend)
    torch.testing.assert_close(loss_and_gradient(compiled, name, *rest), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        HSpace(compiled).encode(rest[0], rest[1], **rest[2]), HSpace(network).encode(rest[0], rest[1], **rest[2])
    )
    assert not graphs


def test_a_compiled_network_is_compiled_again_afterwards():
    network, x, t, c = made("dit")
    graphs = []
    compiled = torch.compile(network, backend=lambda graph, _inputs: graphs.append(graph) or graph.forward)
    with pytest.raises(ZeroDivisionError), HSpace(compiled).capture():
        raise ZeroDivisionError
    HSpace(compiled).encode(x, t, **c)
    full(compiled, "dit", x, t, c)
    assert graphs


class LowRank(torch.nn.Module):
    """What peft puts in a linear layer's place."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_low_rank_adapters_of_a_frozen_network_get_the_gradient_they_have_in_a_free_one(name):
    network, *rest = made(name)
    for module in list(network.modules()):
        for child in ("to_q", "to_v"):
            if isinstance(getattr(module, child, None), torch.nn.Linear):
                setattr(module, child, LowRank(getattr(module, child)).double())
    adapters = {n for n, _ in network.named_parameters() if ".up." in n or ".down." in n}
    _, free = loss_and_gradient(network, name, *rest)
    parts = free.split([p.numel() for p in network.parameters()])
    expected = torch.cat([g for (n, _), g in zip(network.named_parameters(), parts, strict=True) if n in adapters])
    for n, p in network.named_parameters():
        p.requires_grad_(n in adapters)
    _, frozen = loss_and_gradient(network, name, *rest)
    assert frozen.abs().max() > 0
    torch.testing.assert_close(frozen, expected, rtol=1e-8, atol=1e-11)


def test_lora_of_peft_gets_the_gradient(name):
    network, *rest = made(name)
    before = HSpace(network).encode(rest[0], rest[1], **rest[2])
    network.requires_grad_(False)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    if hasattr(network, "add_adapter"):
        network.add_adapter(config)
    else:  # UNet2DModel and DiT, for which diffusers has no LoRA
        peft.inject_adapter_in_model(config, network)
    torch.testing.assert_close(HSpace(network).encode(rest[0], rest[1], **rest[2]), before)
    assert loss_and_gradient(network, name, *rest)[1].abs().max() > 0


@pytest.mark.parametrize(("make", "count", "index"), [(dit, 1, 0), (dit, 2, 0), (dit, 5, 2), (sd3, 4, 1)])
def test_a_transformers_h_is_its_middle_block_or_any_other(make, count, index):
    network = make(num_layers=count)
    assert HSpace(network).module is network.transformer_blocks[index]
    assert HSpace(network, at=f"transformer_blocks.{count - 1}").module is network.transformer_blocks[-1]


@pytest.mark.parametrize("name", ["unet2d", "adm", "unet2d_condition", "sd3"])  # DiT takes square images only
def test_images_need_not_be_square(name):
    network, x, t, c = made(name)
    wide = torch.cat([x, x.flip(-1)], -1)[..., :4, :]
    with HSpace(network).capture() as captured:
        full(network, name, wide, t, c)
    assert torch.isfinite(captured.isometry().loss)


@pytest.mark.parametrize("at", ["transformer_blocks.0", "transformer_blocks.2", "transformer_blocks.0.attn", "pos_embed"])
def test_h_of_stable_diffusion_3_is_always_the_image_stream(at):
    network, x, t, c = made("sd3")
    assert HSpace(network, at=at).encode(x, t, **c).shape == (BATCH, 16, 8)


def test_a_network_of_no_known_family_needs_the_submodules_name():
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.Conv2d(3, 2, 1))
    network.forward = lambda x, t: network[1](network[0](x))
    assert HSpace(network, at="0").encode(*latents(2)).shape == (2, 3, 8, 8)
    with pytest.raises(TypeError, match="known: .*dit"):
        HSpace(network)


def test_a_network_without_a_middle_says_so():
    with pytest.raises(ValueError, match="has no mid_block"):
        HSpace(plain(mid_block_type=None))
