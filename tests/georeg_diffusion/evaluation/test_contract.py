"""Every registered score keeps the contract."""

from dataclasses import asdict, replace

import pytest
import torch

from georeg_diffusion.evaluation.catalogue import scores
from georeg_diffusion.evaluation.fid import Fid
from georeg_diffusion.evaluation.mcn import Mcn
from georeg_diffusion.evaluation.ppl import Ppl
from tests.georeg_diffusion.conftest import small_unet
from tests.georeg_diffusion.evaluation.contract import ScoreContract, close, rounding, run

SIZES = {"fid": 70, "isometry": 17, "kid": 70, "mcn": 5, "mrtl": 3, "ppl": 40, "vor": 5, "vor_log": 5}
SIZES |= {"interpolation": 3, "inversion": 5, "ls": 70, "ls_radial": 70}
"""Just above one piece of each score's work."""


@pytest.mark.parametrize("score", scores().values(), ids=scores())
class TestEveryScore(ScoreContract):
    @pytest.fixture
    def setting(self, score, make_setting):
        return make_setting(num_samples=SIZES.get(score.name, 40), timesteps=(600, 800))


@pytest.mark.parametrize("score", scores().values(), ids=scores())
def test_every_score_of_a_model_whose_samples_draw_their_classes(score, make_setting):
    """Image i has the class that its seed draws, in batches of any size."""
    torch.manual_seed(0)
    network = small_unet(num_class_embeds=10).requires_grad_(False)
    setting = make_setting(num_samples=30 if "ls" in score.name else 3, num_inference_steps=2, timesteps=(600,))
    setting = replace(setting, bundle=replace(setting.bundle, network=network))
    whole = run(score.of(setting))
    assert whole.value is not None, whole.protocol
    alone = run(score.of(replace(setting, batch_size=1, shared={})))
    assert close(asdict(alone), asdict(whole), rounding(whole))
    one = run(score.of(replace(setting, class_label=3, shared={})))
    assert one.value != pytest.approx(whole.value, rel=1e-6), "the class changes nothing"


def test_names_are_those_they_are_registered_under():
    assert {name: score.name for name, score in scores().items()} == {name: name for name in scores()}


def test_the_papers_protocol_has_the_papers_sizes(make_setting):
    setting = make_setting(protocol="paper", num_inference_steps=None)
    assert Fid.of(setting).generated.num_images == 10_000
    assert Fid.of(setting).generated.how == "20 DDIM steps"
    assert Ppl.of(setting).num_pairs == 50_000
    assert Ppl.of(setting).how == "100 DDIM steps"
    assert Mcn.of(setting).spectra.num_images == 1000
