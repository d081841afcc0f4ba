"""Every registered score keeps the contract."""

import pytest

from georeg_diffusion.evaluation.catalogue import scores
from georeg_diffusion.evaluation.fid import Fid
from georeg_diffusion.evaluation.mcn import Mcn
from georeg_diffusion.evaluation.ppl import Ppl
from tests.georeg_diffusion.evaluation.contract import ScoreContract

SIZES = {"fid": 70, "isometry": 17, "kid": 70, "mcn": 5, "mrtl": 3, "ppl": 40, "vor": 5, "vor_log": 5}
"""Just above one piece of each score's work."""


@pytest.mark.parametrize("score", scores().values(), ids=scores())
class TestEveryScore(ScoreContract):
    @pytest.fixture
    def setting(self, score, make_setting):
        return make_setting(num_samples=SIZES.get(score.name, 40), timesteps=(600, 800))


def test_names_are_those_they_are_registered_under():
    assert {name: score.name for name, score in scores().items()} == {name: name for name in scores()}


def test_the_papers_protocol_has_the_papers_sizes(make_setting):
    setting = make_setting(protocol="paper", num_inference_steps=None)
    assert Fid.of(setting).generated.num_images == 10_000
    assert Fid.of(setting).generated.how == "20 DDIM steps"
    assert Ppl.of(setting).num_pairs == 50_000
    assert Ppl.of(setting).how == "100 DDIM steps"
    assert Mcn.of(setting).spectra.num_images == 1000
