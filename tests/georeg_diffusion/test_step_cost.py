"""What a step costs, counted on the meta device: the figures that README and docs/performance.md give."""

import os

import pytest
import torch

import georeg
from benchmarks.report import groups_of, turns
from benchmarks.step_cost import cost_table, quotient, show, switched, trained, under, without_triton
from georeg.kernels.triton.support import SWITCH
from georeg_diffusion import HSpace, IsometricDiffusionLoss
from georeg_diffusion._compat import diffusers
from georeg_diffusion.cost import PeakBytes, peak_bytes_of, work_of
from georeg_diffusion.experiments import networks
from georeg_diffusion.experiments.steps import published_loss, steps_of
from tests.georeg_diffusion.conftest import small_unet


def work_over_plain(name, gated):
    """Of a step on a batch of two, of which some are past the gate."""
    with torch.device("meta"):
        network = getattr(networks, name)()
    x0 = torch.empty(2, 3, network.config.sample_size, network.config.sample_size, device="meta")
    objective = IsometricDiffusionLoss(network, diffusers.DDPMScheduler())
    steps = torch.tensor([900] * gated + [10] * (2 - gated))
    plain = steps_of(network, 2, network.config.sample_size, "meta", georeg.Hutchinson())["plain"]
    return work_of(lambda: objective(x0, steps).loss) / work_of(plain)


def test_attention_counts_alike_whichever_kernel_takes_it():
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))

    def attend(backend):
        def step():
            with torch.nn.attention.sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v).sum()

        return step

    product = 2 * 2 * 3 * 5 * 7 * 8
    backends = torch.nn.attention.SDPBackend
    assert work_of(attend(backends.MATH)) == 6 * product
    assert work_of(attend(backends.FLASH_ATTENTION)) == 7 * product, "which computes the scores again"


@pytest.mark.parametrize(("name", "gated", "limit"), [("ddpm256", 2, 1.56), ("ddpm256", 1, 1.30), ("ldm_celebahq", 2, 1.60)])
def test_work_over_a_plain_step(name, gated, limit):
    """Six encoder passes more are the floor of one probe: 1.543 for DDPM-256, 1.553 for LDM-CelebA-HQ.

    At p = 0.5 half of the samples are gated.
    """
    ratio = work_over_plain(name, gated)
    assert 1 < ratio <= limit


def test_peak_over_a_plain_step():
    table = cost_table("small_unet", batch=2, repeats=0, device="meta", num_probes=1)
    assert table["ours"]["peak_bytes"] <= 2.4 * table["plain"]["peak_bytes"]
    assert table["published"]["peak_bytes"] >= 2 * table["ours"]["peak_bytes"]
    assert table["published"]["work"] >= 2 * table["ours"]["work"]


@pytest.mark.slow
def test_the_peak_with_attention_matrices_that_are_kept():
    table = cost_table("ldm_celebahq", batch=1, repeats=0, device="meta", num_probes=1, only=["plain", "ours"])
    assert table["ours"]["peak_bytes"] <= 2.4 * table["plain"]["peak_bytes"]


def test_a_quotient_of_turns(capsys):
    assert quotient([2.0, 4.0, 9.0, 8.0, 5.0], [1.0, 1.0, 3.0, 1.0, 1.0]) == (4.0, 3.0, 5.0)
    row = {"work": 1e9, "peak_bytes": 2**20, "seconds": 1.0}
    show({"plain": row, "ours": row | {"times": [1.0, 2.0, 3.0]}, "published": row | {"times": [2.0, 6.0, 12.0]}})
    assert "published ÷ ours: 3.00, quartiles 2.50 and 3.50 of 3 turns" in capsys.readouterr().out
    show({"plain": row | {"times": [1.0, 2.0]}})
    assert "÷" not in capsys.readouterr().out


def test_the_report_says_what_took_turns():
    def run(case, **info):
        return {"group": "steps", "name": case, "extra_info": {"case": case, **info}, "stats": {"median": 1.0, "rounds": 7}}

    timed = run("published", over_ours=4.5, over_ours_lower=4.25, over_ours_upper=4.75)
    groups = groups_of({"benchmarks": [run("plain"), run("ours"), timed]})
    assert turns(groups) == ["published ÷ ours, in turns: 4.50×, quartiles 4.25 and 4.75"]


def test_a_timed_step_begins_without_gradients():
    layer = torch.nn.Linear(1, 1, bias=False)
    run = trained(lambda: layer(torch.ones(1, 1)).sum(), layer)
    for _ in range(2):
        run()
    assert layer.weight.grad.item() == 1


def test_the_peak_is_that_of_the_storages_alive():
    def step():
        x = torch.ones(1000, requires_grad=True)  # 4000 bytes; then y, freed when the gradient of x takes its place
        y = x * 2
        y.view(10, 100).t()  # no storage of its own
        return y.sum()

    assert 8000 <= peak_bytes_of(step) <= 8100
    with PeakBytes() as tracker:
        for _ in range(3):
            torch.ones(1000)
    assert tracker.peak == 4000
    assert tracker.now == 0


def test_the_published_loss_is_its_formula():
    """Against the dense Jacobian in stereographic coordinates, whose metric is 4r⁴/(|z|² + r²)² (Eq. 3)."""
    network = small_unet(attention=False).double().requires_grad_(False)
    x, t = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.tensor([900])
    torch.manual_seed(1)
    found = published_loss(network, x, t)
    torch.manual_seed(1)
    u, r = torch.randn(63, dtype=torch.float64), 8.0
    chart = georeg.SphereStereographic(radius=r)
    z = chart.from_ambient(x.flatten(1) * (r / x.norm()))
    J = torch.autograd.functional.jacobian(
        lambda p: HSpace(network).encode(chart.to_ambient(p).reshape(x.shape), t).flatten(), z
    ).squeeze(1)
    metric = 4 * r**4 / (z.square().sum() + r**2) ** 2
    a, b = J @ u / metric.sqrt(), J.mT @ (J @ u) / metric
    torch.testing.assert_close(found.detach(), b.square().sum() / metric / a.square().sum() ** 2)


def test_a_step_under_autocast_and_without_a_kernel():
    assert under(lambda: torch.ones(2, 2) @ torch.ones(2, 2), "cpu", torch.bfloat16)().dtype == torch.bfloat16
    assert under(lambda: torch.ones(2, 2) @ torch.ones(2, 2), "cpu", None)().dtype == torch.float32
    seen = []
    with switched("GEOREG_TEST", "1"):
        without_triton(lambda: seen.append(os.environ[SWITCH]) or torch.ones(()))()
        with switched("GEOREG_TEST", "0"):
            assert os.environ["GEOREG_TEST"] == "0"
        assert os.environ["GEOREG_TEST"] == "1"
    assert seen == ["0"]
    assert SWITCH not in os.environ
    assert "GEOREG_TEST" not in os.environ
