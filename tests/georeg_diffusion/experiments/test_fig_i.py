"""Fig. I: the error falls as 1/√N, and the claim that it increases is refused."""

import pytest
import torch

from georeg import Estimate
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.paper import fig_i


@pytest.fixture(scope="module")
def finding(tmp_path_factory, tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig_i, "DIMENSION", 24)
        return fig_i.run(Lab(tiny, (0, 1), tmp_path_factory.mktemp("figI"), quick=True, experiment="figI"))


def test_slopes_are_minus_a_half_within_their_standard_errors(finding):
    for name, *slopes in finding.tables[-1].rows:
        for slope in slopes:
            assert 0 < slope.stderr < 0.03, name
            assert abs(slope.value + 0.5) < 4 * slope.stderr


def test_errors_are_those_of_theory(finding):
    """64 estimates for each of two matrices: a root mean square has a relative standard error of about 1/√(2·128)."""
    for table in finding.tables[:2]:
        for _, *cells in table.rows:
            for measured, theory in zip(cells[::2], cells[1::2], strict=True):
                assert measured.value == pytest.approx(theory.value, rel=5 / 256**0.5)


def test_fixed_norm_wins_near_the_optimum_alone(finding):
    def at_one(table):
        return dict(zip(table.columns[1:], (cell.value for cell in table.rows[0][1:]), strict=True))

    general, near = map(at_one, finding.tables[:2])
    assert near["theory, fixed norm"] < 0.3 * near["theory, Gaussian"]
    assert general["theory, fixed norm"] > 0.85 * general["theory, Gaussian"]


def test_the_papers_sentence_fails_and_its_equation_holds(finding):
    increases, converges = finding.claims
    assert (increases.holds, converges.holds) == (False, True)
    assert finding.pictures[0].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("slope", "increases", "converges"),
    [(0.5, True, False), (-0.5, False, True), (-0.2, False, False), (0.001, None, False)],
)
def test_claims_follow_the_slope(slope, increases, converges):
    claims = fig_i.claims_of(Estimate(slope, 0.01, 100))
    assert [claim.holds for claim in claims] == [increases, converges]


def test_without_a_standard_error_nothing_is_decided():
    assert fig_i.claims_of(Estimate(-0.5, None, 1))[0].holds is None


def test_the_matrix_near_the_optimum_is_symmetric_and_nearly_a_multiple_of_the_identity():
    r = fig_i.matrix("near", torch.Generator().manual_seed(0))
    torch.testing.assert_close(r, r.mT)
    values = torch.linalg.eigvalsh(r)
    assert 0.5 < values[0] < values[-1] < 1.5
