"""Recomputed losses: the same value, gradient and draws as the plain ones, whatever the chunks, at a flat peak."""

import pytest
import torch
from torch import nn

import georeg
from georeg_diffusion.cost import PeakBytes

LOSSES = {
    "isometry": georeg.IsometryLoss,
    "conformal": georeg.ConformalLoss,
    "strict": georeg.StrictIsometryLoss,
    "contractive": georeg.ContractiveLoss,
    "path length": georeg.PathLengthLoss,
    "volume": georeg.VolumeLoss,
}
CHUNKS = [None, 2, 3, 40]
GROUPS = torch.tensor([0, 0, 1, 1, 1, 0, 1])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 4)).double()


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(7, 5, dtype=torch.float64, requires_grad=True)


def one_generator():
    return torch.Generator().manual_seed(3)


def one_for_each():
    return [torch.Generator().manual_seed(i) for i in range(7)]


def outcome(loss, f, x, generator, parameters, **arguments):
    """Value, gradients of everything, and what the generator draws next."""
    out = loss(f, x, generator=generator, **arguments)
    leaves = [p for p in (x, *parameters) if p.requires_grad]
    gradients = torch.autograd.grad(3 * out.loss, leaves, materialize_grads=True)
    following = [torch.rand(1, generator=g) for g in ([generator] if isinstance(generator, torch.Generator) else generator)]
    return [out.loss.detach(), *gradients, *following, out.count]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("generator", [one_generator, one_for_each])
@pytest.mark.parametrize("probes", [1, 4])
def test_equals_the_plain_loss(name, generator, probes, net, x):
    options = {} if name == "volume" else {"estimator": georeg.Hutchinson(probes)}
    expected = outcome(
        LOSSES[name](domain=georeg.Sphere(), num_groups=2, **options), net, x, generator(), net.parameters(), groups=GROUPS
    )
    for chunk in CHUNKS:
        loss = LOSSES[name](domain=georeg.Sphere(), num_groups=2, recompute=True, chunk_size=chunk, **options)
        found = outcome(loss, net, x, generator(), net.parameters(), groups=GROUPS)
        # The volume's logarithms magnify rounding by the condition number of J.
        torch.testing.assert_close(found, expected, rtol=1e-6 if name == "volume" else 1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "estimator",
    [
        georeg.Exact(),
        georeg.Gram(4),
        georeg.HutchPP(3),
        georeg.XTrace(4),
        georeg.Auto(4),
        georeg.Hutchinson(3, "gaussian", "domain"),
    ],
    ids=repr,
)
def test_every_estimator(estimator, net, x):
    expected = outcome(georeg.IsometryLoss(estimator=estimator), net, x, one_generator(), net.parameters())
    loss = georeg.IsometryLoss(estimator=estimator, recompute=True, chunk_size=3)
    found = outcome(loss, net, x, one_generator(), net.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_moments_and_their_standard_errors(net, x):
    plain = georeg.IsometryLoss(estimator=georeg.Hutchinson(6))(net, x, generator=one_generator()).moments
    single = georeg.IsometryLoss(estimator=georeg.Hutchinson(6), recompute=True)(net, x, generator=one_generator()).moments
    torch.testing.assert_close(
        [single.trace, single.trace_sq, single.trace_stderr, single.trace_sq_stderr],
        [plain.trace.detach(), plain.trace_sq.detach(), plain.trace_stderr, plain.trace_sq_stderr],
    )


def test_running_means_are_updated_once(net, x):
    plain, again = (georeg.IsometryLoss(momentum=0.9, recompute=r) for r in (False, True))
    for _ in range(3):
        for loss in (plain, again):
            loss(net, x, generator=one_generator()).loss.backward()
    torch.testing.assert_close(again.running.state_dict(), plain.running.state_dict())


def test_context_goes_along_with_its_samples(net, x):
    scale = torch.linspace(0.5, 2, 7, dtype=torch.float64).unsqueeze(1)

    def f(p, s):
        return net(p * s) * s

    expected = outcome(georeg.IsometryLoss(), lambda p: f(p, scale), x, one_generator(), net.parameters())
    for options in ({}, {"recompute": True}, {"recompute": True, "chunk_size": 2}):
        found = outcome(georeg.IsometryLoss(**options), f, x, one_generator(), net.parameters(), context=(scale,))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_dropout_is_the_same_in_both_passes(x):
    """The gradient is that of the very function that was measured: a step along it lowers its value."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 4)).double()
    loss = georeg.IsometryLoss(recompute=True, chunk_size=2, estimator=georeg.Hutchinson(3))

    def value(seed=5):
        torch.manual_seed(seed)
        return loss(net, x.detach()).loss

    start = value()
    torch.manual_seed(99)  # between the passes something else draws
    torch.rand(7)
    start.backward()
    w = net[0].weight
    direction, h = w.grad / w.grad.norm(), 1e-6
    with torch.no_grad():
        w += h * direction
        above = value()
        w -= 2 * h * direction
        below = value()
        w += h * direction
    torch.testing.assert_close((above - below) / (2 * h), w.grad.norm(), rtol=1e-6, atol=0)


def test_the_random_state_after_backward_is_untouched(net, x):
    out = georeg.IsometryLoss(recompute=True)(net, x)
    torch.manual_seed(7)
    expected = torch.get_rng_state()
    out.loss.backward()
    assert torch.equal(torch.get_rng_state(), expected)


def test_what_the_map_closes_over_gets_its_gradient(net, x):
    """Tied weights, frozen ones, and a tensor with a graph of its own, shared with another loss."""
    deep = nn.Linear(5, 5).double()
    net[0].bias.requires_grad_(False)

    def gradients(loss):
        shift = deep(torch.ones(5, dtype=torch.float64)).tanh()
        out = loss(lambda p: net(p + shift) + p[:, :4] * net[0].weight.sum(), x.detach(), generator=one_generator())
        total = out.loss + shift.pow(2).sum()
        leaves = [p for p in (*net.parameters(), *deep.parameters()) if p.requires_grad]
        return torch.autograd.grad(total, leaves, materialize_grads=True)

    expected = gradients(georeg.IsometryLoss())
    torch.testing.assert_close(gradients(georeg.IsometryLoss(recompute=True)), expected)


def test_no_gradient_no_second_pass(net, x):
    runs = []

    def f(p):
        runs.append(len(p))
        return net(p)

    loss = georeg.IsometryLoss(recompute=True, chunk_size=7)
    with torch.no_grad():
        assert not loss(f, x).loss.requires_grad
    out = loss(f, x)
    assert runs == [7, 7]
    out.loss.backward()
    assert runs == [7, 7, 7]


def test_accumulate_takes_it(net, x):
    micro = [x.detach()[:3], x.detach()[3:]]

    def gradients(**options):
        loss = georeg.IsometryLoss(scope="global", **options)
        generator = one_generator()
        net.zero_grad()
        calls = [lambda m=m: loss(net, m, generator=generator) for m in micro]
        for out in georeg.accumulate(loss, calls, generators=[generator]):
            out.loss.backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    torch.testing.assert_close(gradients(recompute=True, chunk_size=2), gradients(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_entered_again(dtype):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), torch.randn(6, 8)

    def gradients(**options):
        with torch.autocast("cpu", dtype):
            out = georeg.IsometryLoss(normalize=True, **options)(net, x, generator=one_generator())
        return [out.loss.detach(), *torch.autograd.grad(2.0**10 * out.loss, list(net.parameters()), materialize_grads=True)]

    for found, expected in zip(gradients(recompute=True, chunk_size=6), gradients(), strict=True):
        tolerance = 1e-5 if found.ndim == 0 else torch.finfo(dtype).eps  # of sums in half precision, in another order
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance * float(expected.abs().max()))


def test_degenerate_maps_and_empty_batches(net):
    with pytest.raises(ValueError, match="f: "):
        georeg.IsometryLoss(recompute=True)(lambda p: 0 * p, torch.randn(3, 5))
    out = georeg.IsometryLoss(recompute=True, degenerate="zero")(lambda p: 0 * p, torch.randn(3, 5))
    assert out.loss.item() == 0


def test_what_is_refused(net, x):
    loss = georeg.IsometryLoss(recompute=True)
    y = net(x)
    with pytest.raises(ValueError, match="recompute: got True with a forward pass already run"):
        loss.of_graph(x, y)
    with pytest.raises(ValueError, match=r"recompute: got True inside a torch\.func"):
        torch.func.vmap(lambda p: loss(net, p).loss)(x.detach().unsqueeze(1))
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        georeg.IsometryLoss(chunk_size=0)
    with pytest.raises(ValueError, match="training mode"):
        georeg.IsometryLoss(recompute=True, chunk_size=7)(nn.BatchNorm1d(5).double(), x)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(loss(net, x).loss, x, create_graph=True)


def test_the_peak_grows_with_neither_probes_nor_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 16))

    def peak(batch, probes, **options):
        x = torch.randn(batch, 16)
        net.zero_grad(set_to_none=True)
        with PeakBytes() as tracker:
            georeg.IsometryLoss(estimator=georeg.Hutchinson(probes), **options)(net, x).loss.backward()
        return tracker.peak

    few = peak(2, 2, recompute=True)  # several chunks: beside the one at work, the sum of the gradients so far
    assert peak(16, 8, recompute=True) <= 1.15 * few
    assert peak(64, 32) > 3 * few
