import pytest
import torch

import georeg
from georeg_diffusion import HSpace
from tests.conftest import gradients


def hooks_of(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@pytest.fixture
def inputs():
    return torch.randn(3, 1, 8, 8), torch.tensor([10, 500, 900])


def test_encode_is_the_full_forwards_h_and_runs_nothing_behind_it(unet, inputs):
    seen, ran = [], []
    unet.mid_block.register_forward_hook(lambda m, a, out: seen.append(out))
    for block in (*unet.up_blocks, unet.conv_out):
        block.register_forward_hook(lambda m, a, out: ran.append(m))
    unet(*inputs)
    assert len(ran) == 3
    h = HSpace(unet).encode(*inputs)
    assert torch.equal(h, seen[0])
    assert len(ran) == 3


def test_hooks_leave_no_trace_even_after_an_exception(unet, inputs):
    space = HSpace(unet)
    space.encode(*inputs)
    with pytest.raises(RuntimeError, match="shape|size|expected"):
        space.encode(torch.randn(3, 5, 8, 8), inputs[1])
    with pytest.raises(ZeroDivisionError), space.capture():
        unet(*inputs)
        raise ZeroDivisionError
    assert hooks_of(unet) == 0


@pytest.mark.parametrize("layers", [("down_blocks.0", "mid_block"), ("mid_block", "down_blocks.0")])
def test_two_layers_of_one_forward_pass(unet, inputs, layers):
    """The one that is reached first must not switch the other's attention back, nor the other leave it switched."""
    backends = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    with HSpace(unet, layers[0]).capture() as first, HSpace(unet, layers[1]).capture() as second:
        unet(*inputs)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == backends
    for captured, layer in ((first, layers[0]), (second, layers[1])):
        with HSpace(unet, layer).capture() as alone:
            unet(*inputs)
        together, expected = (c.isometry(generator=torch.Generator().manual_seed(0)).loss for c in (captured, alone))
        torch.testing.assert_close(together, expected)


def test_attention_backends_are_as_before_after_a_failed_capture(unet, inputs):
    before = torch.backends.cuda.flash_sdp_enabled()
    unet.mid_block.register_forward_pre_hook(lambda m, a: 1 / 0)
    with pytest.raises(ZeroDivisionError), HSpace(unet).capture():
        unet(*inputs)
    assert torch.backends.cuda.flash_sdp_enabled() == before


@pytest.mark.parametrize("as_keyword", [True, False])
def test_capture_gives_the_loss_of_the_encoder_as_a_map(unet, inputs, as_keyword):
    """One shared forward pass against the encoder called as a function, in float64, with gradients."""
    unet.double()
    x, t = inputs[0].double(), inputs[1]
    space = HSpace(unet)
    with space.capture() as c:
        prediction = unet(sample=x, timestep=t).sample if as_keyword else unet(x, t).sample
    shared = c.isometry(generator=torch.Generator().manual_seed(5))
    reg = georeg.IsometryLoss(domain=georeg.Sphere(), normalize=True)
    alone = reg(lambda p: space.encode(p, t), x, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(shared.loss, alone.loss, rtol=1e-10, atol=0)
    parameters = list(unet.parameters())
    torch.testing.assert_close(
        gradients(shared.loss + prediction.square().mean(), parameters),
        gradients(alone.loss + unet(x, t).sample.square().mean(), parameters),
        rtol=1e-8,
        atol=1e-12,
    )


def test_the_loss_is_that_of_the_dense_jacobian(unet, inputs):
    unet.double()
    x, t = inputs[0].double(), inputs[1]
    with HSpace(unet).capture() as c:
        unet(x, t)
    iso = c.isometry(estimator=georeg.Exact())
    rows = []
    for sample, step in zip(x, t, strict=True):
        J = torch.autograd.functional.jacobian(lambda s, step=step: HSpace(unet).encode(s[None], step)[0].flatten(), sample)
        J = J.reshape(len(J), -1)
        direction = sample.flatten() / sample.norm()
        rows.append(J - torch.outer(J @ direction, direction))
    R = torch.stack([J.T @ J for J in rows])
    t1 = R.diagonal(dim1=1, dim2=2).sum(1).mean()
    t2 = R.square().sum((1, 2)).mean()
    assert iso.loss.item() == pytest.approx(63 * (t2 / t1**2).item(), rel=1e-9)


def test_only_the_encoder_gets_a_gradient_from_the_isometry_loss(unet, inputs):
    with HSpace(unet).capture() as c:
        unet(*inputs)
    c.isometry().loss.backward()
    reached = {name.split(".")[0] for name, p in unet.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"conv_in", "down_blocks", "mid_block", "time_embedding"} <= reached
    assert not reached & {"up_blocks", "conv_norm_out", "conv_out"}


def test_a_loss_of_ones_own_and_options_exclude_each_other(unet, inputs):
    with HSpace(unet).capture() as c:
        unet(*inputs)
    kept = georeg.IsometryLoss(domain=georeg.Sphere(), momentum=0.9)
    assert c.isometry(kept).loss.requires_grad
    with pytest.raises(TypeError, match="one or the other"):
        c.isometry(kept, normalize=True)


def test_clear_errors(unet, inputs):
    with pytest.raises(ValueError, match=r"at: got 'nowhere'.*mid_block"):
        HSpace(unet, at="nowhere")
    with pytest.raises(TypeError, match="h-space is not known"):
        HSpace(torch.nn.Linear(2, 2))
    with HSpace(unet).capture() as c, pytest.raises(RuntimeError, match="has not run"):
        _ = c.h
    with torch.no_grad(), HSpace(unet).capture(), pytest.raises(RuntimeError, match="gradients are off"):
        unet(*inputs)


def test_any_submodule_can_be_h(unet, inputs):
    assert HSpace(unet, at="down_blocks.0").encode(*inputs).shape == (3, 8, 4, 4)
