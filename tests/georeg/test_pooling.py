"""Pooling over groups, steps, ranks: the gradient is that of the whole, to rounding."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import georeg
from georeg.pooling import RunningMeans, Totals
from tests.conftest import gradients

N, M = 5, 3
SCENARIOS = {
    "2/7": (2, 7, None),
    "0/3": (0, 3, None),
    "6/0": (6, 0, None),
    "4/5 in 3 groups": (4, 5, 3),
    "0/0": (0, 0, None),
}


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(N, 7), nn.Tanh(), nn.Linear(7, M)).double()


def batch(size):
    x = torch.randn(size, N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(size) * 2 % 3


def pooled_loss(num_groups=None, **options):
    return georeg.IsometryLoss(
        estimator=georeg.Exact(), domain=georeg.Sphere(), normalize=True, num_groups=num_groups, **options
    )


def rank_main(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for name, (first, second, num_groups) in SCENARIOS.items():
        f, (x, labels) = network(), batch(first + second)
        mine = slice(0, first) if rank == 0 else slice(first, None)
        out = pooled_loss(num_groups, scope="global")(f, x[mine], labels[mine] if num_groups else None)
        gradient = gradients(out.loss, f.parameters())
        dist.all_reduce(gradient)
        results[name] = (out.loss.detach(), gradient / 2, out.count)  # DDP averages over ranks
    # Two micro-batches of 1 and 3 samples here, three of 2, 1 and 2 there.
    f, (x, labels) = network(), batch(9)
    loss = pooled_loss(3, scope="global")
    sizes = (slice(0, 4), [1, 3]) if rank == 0 else (slice(4, None), [2, 1, 2])
    micro = zip(x[sizes[0]].split(sizes[1]), labels[sizes[0]].split(sizes[1]), strict=True)
    gradient = sum(
        gradients(out.loss, f.parameters()) for out in georeg.accumulate(loss, [partial(loss, f, *m) for m in micro])
    )
    dist.all_reduce(gradient)
    results["accumulated"] = gradient / 2
    # Running means stay the same on every rank.
    f, (x, _) = network(), batch(9)
    loss = pooled_loss(scope="global", momentum=0.5)
    for step in range(3):
        mine = slice(0, step) if rank == 0 else slice(step, None)
        out = loss(f, x[mine] * (1 + step))
    results["running"] = (out.loss.detach(), loss.running.numerator)
    torch.save(results, f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_global_scope_on_two_processes_gives_the_gradient_of_the_whole_batch(tmp_path):
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, (first, second, num_groups) in SCENARIOS.items():
        f, (x, labels) = network(), batch(first + second)
        whole = pooled_loss(num_groups)(f, x, labels if num_groups else None).loss
        expected = gradients(whole, f.parameters())
        for rank in ranks:
            loss, gradient, count = rank[name]
            assert count == first + second, name
            torch.testing.assert_close(loss, whole.detach(), rtol=1e-13, atol=0, msg=name)
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15, msg=name)
    f, (x, labels) = network(), batch(9)
    expected = gradients(pooled_loss(3)(f, x, labels).loss, f.parameters())
    torch.testing.assert_close(ranks[0]["accumulated"], expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(ranks[0]["running"][1], ranks[1]["running"][1])
    f, (x, _) = network(), batch(9)
    loss = pooled_loss(momentum=0.5)
    for step in range(3):
        alone = loss(f, x * (1 + step)).loss
    torch.testing.assert_close(ranks[0]["running"][0], alone.detach(), rtol=1e-13, atol=0)


def test_local_means_averaged_over_ranks_would_be_wrong():
    """What DDP does by itself, at counts 2 and 7: the reason for the pooled form."""
    f, (x, _) = network(), batch(9)
    truth = gradients(pooled_loss()(f, x).loss, f.parameters())
    naive = sum(gradients(pooled_loss()(f, part).loss, f.parameters()) for part in (x[:2], x[2:])) / 2
    assert (naive - truth).norm() / truth.norm() > 0.1


def test_running_means_follow_the_recursion():
    """m_t = Σ ρ^(t−s) S_s / Σ ρ^(t−s) N_s, per group, decaying only when the group is seen."""
    rho, loss = 0.8, pooled_loss(2, momentum=0.8)
    f = network()
    numerator, weight = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step, labels in enumerate([[0, 0, 1], [1, 1, 1], [0, 1, 1]]):
        x, labels = torch.randn(3, N, dtype=torch.float64), torch.tensor(labels)
        out = loss(f, x, labels)
        m = out.moments.detach()
        for g in range(2):
            inside = labels == g
            if inside.any():
                numerator[g] = rho * numerator[g] + torch.stack([m.trace[inside].sum(), m.trace_sq[inside].sum()])
                weight[g] = rho * weight[g] + inside.sum()
        t1, t2 = (numerator / weight.clamp_min(1e-9).unsqueeze(1)).unbind(1)
        counts = torch.bincount(labels, minlength=2).double()
        expected = (counts / 3 * torch.where(counts > 0, M * t2 / t1.clamp_min(1e-9) ** 2, 0)).sum()
        torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=0)
        if step == 0:
            torch.testing.assert_close(out.loss, pooled_loss()(f, x, labels).loss, rtol=1e-12, atol=0)
        # Gradient: the weights ∂F/∂m_k at the running means, times the gradient of this step's own means.
        live = torch.stack([out.moments.trace, out.moments.trace_sq], 1)
        surrogate = sum(
            (inside.double().sum() / 3)
            * (M / t1[g] ** 2 * live[inside, 1].mean() - 2 * M * t2[g] / t1[g] ** 3 * live[inside, 0].mean())
            for g in range(2)
            if (inside := labels == g).any()
        )
        whole = gradients(pooled_loss()(f, x, labels).loss, f.parameters())
        torch.testing.assert_close(gradients(out.loss - surrogate, f.parameters()), 0 * whole, rtol=0, atol=1e-12)
        assert whole.norm() > 1e-3


def test_running_means_are_saved_with_the_module():
    assert set(pooled_loss(3, momentum=0.9).state_dict()) == {"running.numerator", "running.weight"}


def test_running_means_keep_their_precision_when_the_model_is_cast():
    """τ₂ reaches 1e17: `model.half()` must not cast the buffers that hold it."""
    running = RunningMeans(1, 2, 0.9)
    running.update(Totals(torch.tensor([[1e9, 1e17]], dtype=torch.float64), torch.ones(1)))
    held = nn.ModuleList([running]).half().to("cpu").bfloat16()
    assert held[0].numerator.dtype == torch.float64
    assert held[0].numerator[0, 1] == 1e17
    assert nn.ModuleList([running]).to("meta")[0].numerator.is_meta


def test_running_means_survive_a_dry_run_on_the_meta_device():
    """The loss need not be moved along with the network; a plan without data is not taken in."""
    f, (x, _) = network(), batch(4)
    loss = pooled_loss(momentum=0.9)
    loss(f, x)
    kept = loss.running.numerator.clone()
    assert loss(f.to("meta"), x.to("meta")).loss.is_meta
    assert torch.equal(loss.running.numerator, kept)
    fresh = pooled_loss(momentum=0.9).to("meta")
    assert fresh(f, x.to("meta")).loss.is_meta


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_empty_step_leaves_running_means_alone(momentum):
    f, (x, _) = network(), batch(4)
    loss = pooled_loss(momentum=momentum)
    value = loss(f, x).loss.item()
    kept = loss.running.numerator.clone()
    loss(f, x[:0])
    assert torch.equal(loss.running.numerator, kept)
    assert value > 0


def test_micro_batches_by_themselves_would_not_add_up():
    f, (x, _) = network(), batch(12)
    truth = gradients(pooled_loss()(f, x).loss, f.parameters())
    naive = sum(gradients(pooled_loss()(f, part).loss * len(part) / 12, f.parameters()) for part in x.split([7, 2, 3]))
    assert (naive - truth).norm() / truth.norm() > 0.05


def test_both_passes_see_the_same_dropout_and_probes_and_later_draws_do_not_repeat():
    f = nn.Sequential(nn.Linear(N, 30), nn.Tanh(), nn.Dropout(0.5), nn.Linear(30, M)).double()
    x, loss = torch.randn(10, N, dtype=torch.float64), georeg.IsometryLoss(scope="global")
    own = torch.Generator().manual_seed(4)
    calls = [partial(loss, f, x[:6]), partial(loss, f, x[6:], generator=own)]
    outs = list(georeg.accumulate(loss, calls, generators=[own]))
    t1, t2 = (torch.cat([getattr(out.moments, name) for out in outs]) for name in ("trace", "trace_sq"))
    torch.testing.assert_close(sum(out.loss for out in outs), t2.mean() / t1.mean() ** 2, rtol=1e-12, atol=0)
    # The stream goes on where the first pass left it, and a draw between two yields is not taken back.
    torch.manual_seed(3)
    calls[0]()
    calls[0]()
    expected = torch.rand(2)
    torch.manual_seed(3)
    between = [torch.rand(1) for _ in georeg.accumulate(loss, [calls[0], calls[0]])]
    assert torch.equal(torch.cat(between), expected)


def test_the_first_pass_carries_no_graph():
    f, (x, _) = network(), batch(4)
    loss = pooled_loss(scope="global")
    with loss.collecting() as collected:
        out = loss(f, x)
    assert not collected[0].sums.requires_grad
    assert not out.moments.trace.requires_grad
    assert out.loss.item() == 0
    assert loss(f, x).loss.requires_grad


def test_an_objective_that_holds_the_loss_and_may_skip_it():
    """The second micro-batch never calls the loss; the step's running means are taken in once."""
    f, (x, _) = network(), batch(8)
    loss = pooled_loss(scope="global", momentum=0.5)

    def objective(part, gated):
        fit = f(part).square().mean()
        return fit + loss(f, part).loss if gated else fit

    parts = [(x[:3], True), (x[3:5], False), (x[5:], True)]
    results = list(georeg.accumulate(loss, [partial(objective, *p) for p in parts]))
    gated = torch.cat([x[:3], x[5:]])
    expected = pooled_loss()(f, gated).loss + sum(f(p).square().mean() for p, _ in parts)
    torch.testing.assert_close(sum(results), expected, rtol=1e-12, atol=0)
    assert loss.running.weight.item() == 6
    with pytest.raises(ValueError, match="scope='batch'"):
        next(georeg.accumulate(pooled_loss(), [lambda: None]))
    with pytest.raises(ValueError, match="calls: got none"):
        next(georeg.accumulate(loss, []))
    lazy = georeg.PathLengthLoss(every=4, scope="global")
    with pytest.raises(ValueError, match="every: got 4"):
        next(georeg.accumulate(lazy, [partial(lazy, f, x)]))
    assert loss(f, x).count == 8  # a plain call again


def test_a_process_whose_calls_never_reach_the_loss_joins_in_the_dtype_of_the_others(monkeypatch):
    """An all-reduce over two dtypes is undefined."""
    loss, x, dtypes = georeg.IsometryLoss(scope="global"), torch.randn(3, 2), []
    pool = loss.pool
    monkeypatch.setattr(loss, "pool", lambda totals, share: dtypes.append(totals.sums.dtype) or pool(totals, share))
    for call in (lambda: None, lambda: loss(torch.sin, x)):
        list(georeg.accumulate(loss, [call]))
    assert dtypes[0] == dtypes[1]
