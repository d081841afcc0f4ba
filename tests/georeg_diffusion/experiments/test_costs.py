"""App. A.2: numbers from shapes, work counted, and the misprint found."""

import pytest
import torch

import georeg
from georeg_diffusion import HSpace
from georeg_diffusion.cost import flops_of, times_of
from georeg_diffusion.experiments import networks
from georeg_diffusion.experiments.paper import costs


@pytest.fixture(scope="module")
def small():
    with torch.device("meta"):
        return networks.encoder(16)


@pytest.fixture(scope="module")
def sizes():
    with torch.device("meta"):
        return costs.sizes_of(networks.ddpm256())


def test_sizes_of_ddpm_are_those_of_its_spaces(sizes):
    """X is 256 × 256 × 3 and H 8 × 8 × 512 (App. A.2); here both come from running the network."""
    assert (sizes["n"], sizes["m"]) == (256 * 256 * 3, 8 * 8 * 512)
    assert sizes["elements"] == sizes["n"] * sizes["m"] == 6_442_450_944
    assert sizes["bytes"] == 24 * 2**30
    assert sizes["product bytes"] == 917_504 == 0.875 * 2**20


def test_sizes_of_another_network_are_its_jacobians(small):
    network = networks.encoder(16)
    space, x = HSpace(network), torch.randn(1, 3, 16, 16)
    h = space.encode(x, torch.tensor([900]))
    found = costs.sizes_of(small)
    assert found["n"] == x.numel()
    assert found["m"] == h.numel()
    assert found["bytes"] == x.numel() * h.numel() * torch.tensor(0.0).element_size()


def test_a_product_costs_about_as_much_as_a_forward_pass(small):
    """Jᵀu multiplies by each weight once, transposed, where the forward pass multiplied; attention adds a little."""
    space, x = HSpace(small), torch.empty(1, 3, 16, 16, device="meta")
    forward = flops_of(lambda: space.encode(x, torch.full((1,), 900, device="meta")))
    assert 1 <= costs.sizes_of(small)["product flops"] / forward < 1.2


@pytest.mark.slow
def test_work_of_steps_is_ordered_and_ours_is_near_its_floor(small):
    work = costs.work_of_steps(small)
    plain, ours, published = (work[key]["flops"] for key in ("plain", "ours", "published"))
    assert plain < ours < published
    space, x = HSpace(small), torch.empty(1, 3, 16, 16, device="meta")
    encoder = flops_of(lambda: space.encode(x, torch.full((1,), 900, device="meta")))
    assert plain + 5.9 * encoder < ours < plain + 7 * encoder  # six more passes through the encoder (DESIGN)
    assert work["plain"]["bytes"] < work["ours"]["bytes"] < work["published"]["bytes"]


def test_claims_find_the_misprint(sizes):
    elements, memory, wrong, right = costs._claims(sizes)
    assert (elements.holds, memory.holds, wrong.holds, right.holds) == (True, True, False, True)
    assert "91,750" in wrong.text
    assert "917,504" in wrong.evidence
    assert "6,442,450,944" in elements.text


def test_claims_fail_for_other_sizes(sizes):
    half = {key: value // 2 for key, value in sizes.items()}
    assert not any(claim.holds for claim in costs._claims(half))


def test_the_sizes_table_has_here_beside_the_paper(sizes):
    rows = {name: (here, paper) for name, here, paper in costs._sizes_table(sizes).rows}
    assert rows["elements of J"] == ("6,442,450,944", "6,442,450,944")
    assert rows["bytes of a product's x and h"] == ("917,504", "91,750")


def test_times_are_of_the_jacobian_and_of_its_product():
    jacobian, product, ratio, (n, m) = costs.times_of_products(repeats=2)
    assert (n, m) == (3 * 16**2, 32 * 2**2)
    assert jacobian.value > 3 * product.value > 0
    assert ratio.n == 2
    assert costs._time_claim(jacobian, product, georeg.Estimate(30.0, 1.0, 5), (n, m)).holds is True
    assert costs._time_claim(jacobian, product, georeg.Estimate(1.01, 0.1, 5), (n, m)).holds is None


def test_times_are_taken_in_turns_after_one_to_warm_up():
    seen, ticks = [], iter(range(100))
    found = times_of(lambda: seen.append("a"), lambda: seen.append("b"), repeats=2, clock=lambda: float(next(ticks)))
    assert seen == ["a", "b"] * 3
    assert found == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.slow
def test_the_experiment_runs(lab):
    finding = costs.run(lab)
    assert len(finding.tables) == 3
    work = {cells[0]: cells[2].value for cells in finding.tables[1].rows}
    assert work["with ours"] < 1.56 < 3.6 < work["with the published loss"]
