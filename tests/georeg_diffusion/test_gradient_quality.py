"""The benchmark of estimators runs, and what it compares them with is the gradient of the exact loss."""

import copy

import pytest
import torch

from benchmarks import gradient_quality as module
from georeg.linearize.base import differentiable_attention
from georeg_diffusion import HSpace


@pytest.fixture(scope="module")
def results():
    every = module.candidates

    def cheap(problem):
        return [row for row in every(problem) if any(name in row[0] for name in ("default", "half", "asymmetric"))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "candidates", cheap)
        return module.states(pretraining=1, steps=1, batch=2, repeats=2, networks=(4,))


def test_candidates_are_measured_at_both_states(results, tmp_path):
    assert [title.split(",")[0] for title in results] == ["denoising only", "isometric"]
    for _, found in results.values():
        merits = [q.merit for q in found]
        assert merits == sorted(merits)
        assert all(q.noise > 0 for q in found)
        by_name = {q.name: q for q in found}
        default = next(q for name, q in by_name.items() if "default" in name)
        assert by_name["asymmetric, 4 Fₑ"].work < by_name["asymmetric, 5 Fₑ"].work < default.work
        assert by_name["half of the batch"].work == pytest.approx(default.work / 2, rel=0.01)
    assert module.table(results).count("(default)") == 2
    module.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_exact_gradient_is_the_slope_of_the_exact_loss(results):
    """d·m₂/m₁² by torch's own dense Jacobian in float64, a step along the gradient and a step against it."""
    problem = list(results.values())[-1][0]
    unet = copy.deepcopy(problem.h_space.network).double()
    used = torch.autograd.grad(
        HSpace(unet).encode(problem.x.double(), problem.t).sum(), list(unet.parameters()), allow_unused=True
    )
    parameters = [p for p, g in zip(unet.parameters(), used, strict=True) if g is not None]
    steps = problem.gradient.split([p.numel() for p in parameters])

    def value(size):
        for p, step in zip(parameters, steps, strict=True):
            p.data += size * step.reshape(p.shape)
        means = []
        for x, t in zip(problem.x.double().split(1), problem.t.split(1), strict=True):
            with differentiable_attention():
                jacobian = torch.autograd.functional.jacobian(lambda p, t=t: HSpace(unet).encode(p, t).flatten(), x).flatten(
                    1
                )
            radial = x.flatten() / x.norm()
            gram = jacobian @ jacobian.mT - torch.outer(jacobian @ radial, jacobian @ radial)
            means.append(torch.stack([gram.trace(), gram.square().sum()]))
        m1, m2 = torch.stack(means).mean(0)
        return problem.rank * m2 / m1**2

    squared = problem.gradient.square().sum()
    size = float(1e-4 / squared.sqrt())
    above = value(size)
    slope = (above - value(-2 * size)) / (2 * size)
    torch.testing.assert_close(slope, squared, rtol=1e-3, atol=0)
