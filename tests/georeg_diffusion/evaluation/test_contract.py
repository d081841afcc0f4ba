"""Every registered score keeps the contract."""

import pytest

from georeg_diffusion.evaluation.catalogue import scores
from tests.georeg_diffusion.evaluation.contract import ScoreContract

SIZES = {"fid": 70, "kid": 70, "ppl": 40}
"""Just above one piece of each score's work."""


@pytest.mark.parametrize("score", scores().values(), ids=scores())
class TestEveryScore(ScoreContract):
    @pytest.fixture
    def setting(self, score, make_setting):
        return make_setting(num_samples=SIZES.get(score.name, 40))


def test_names_are_those_they_are_registered_under():
    assert {name: score.name for name, score in scores().items()} == {name: name for name in scores()}
