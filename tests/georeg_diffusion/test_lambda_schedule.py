"""λ over the steps: its values, what the trainer does with it, and that a resumed run has the same."""

import json

import pytest
import torch

from georeg_diffusion.data.digits import Digits
from georeg_diffusion.objective import IsometricDiffusionLoss
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.dry_run import cost_of
from georeg_diffusion.training.lambda_schedule import SCHEDULES, lambda_factor, share_of_steps
from georeg_diffusion.training.log import read_log
from tests.georeg_diffusion.conftest import TINY, cli, error_of, weights


def course(schedule, steps=1000):
    return torch.tensor([lambda_factor(schedule, step, steps) for step in range(steps)], dtype=torch.float64)


@pytest.mark.parametrize(
    ("schedule", "mean"), [("constant", 1), ("warmup", 0.9), ("linear-decay", 0.5), ("cosine-decay", 0.5), ("early", 0.5)]
)
def test_the_mean_of_a_course_is_the_integral_of_its_shape(schedule, mean):
    found = course(schedule)
    assert found.mean() == pytest.approx(mean, abs=1e-12)  # midpoints integrate straight lines exactly, cosines by symmetry
    assert found.min() >= 0
    assert found.max() <= 1


def test_decays_fall_to_nothing_and_the_warmup_rises():
    for schedule in ("linear-decay", "cosine-decay"):
        assert (course(schedule).diff() < 0).all()
        assert course(schedule)[0] > 0.999
        assert course(schedule)[-1] < 1e-3
    assert (course("warmup").diff() >= 0).all()
    assert (course("warmup")[200:] == 1).all()
    assert course("warmup")[100] == pytest.approx(0.5, abs=0.003)
    assert (course("early")[:500] == 1).all()
    assert (course("early")[500:] == 0).all()
    assert course("cosine-decay")[249:251].mean() == pytest.approx(0.5 + 0.5**1.5, abs=1e-5)  # (1 + cos π/4)/2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_training_of_one_step_has_the_loss(schedule):
    assert 0 < lambda_factor(schedule, 0, 1) <= 1
    assert share_of_steps(schedule) == (course(schedule) > 0).double().mean()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="schedule: got 'cyclic', expected one of constant"):
        lambda_factor("cyclic", 0, 4)
    for step in (-1, 4):
        with pytest.raises(ValueError, match=f"step: got {step}, expected one from 0 to 3"):
            lambda_factor("constant", step, 4)


def test_an_unknown_schedule_is_refused(capsys, tmp_path):
    code, error = error_of(capsys, "--lambda-iso-schedule", "cyclic", "--output-dir", tmp_path / "out")
    assert code == 2
    assert "cyclic" in error
    assert not (tmp_path / "out").exists()


def train(model, out, *more, steps=6):
    fixed = ["--pretrained-model-name-or-path", model, "--max-train-steps", steps, "--no-evaluate", "--isometry-skip", 0]
    return cli("train", *TINY, *fixed, *more, "--output-dir", out)


@pytest.fixture
def scales(monkeypatch):
    """What the objective was told to multiply λ by, call by call."""
    seen, forward = [], IsometricDiffusionLoss.forward

    def watched(self, *args, **kwargs):
        seen.append(kwargs["isometry_scale"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", watched)
    return seen


@pytest.mark.parametrize("schedule", ["linear-decay", "early"])
def test_every_step_has_its_weight_and_the_log_says_so(tmp_path, model, scales, schedule):
    assert train(model, tmp_path / "out", "--lambda-iso", 0.5, "--lambda-iso-schedule", schedule) == 0
    expected = {"linear-decay": [11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12], "early": [1, 1, 1, 0, 0, 0]}[schedule]
    assert scales == pytest.approx(expected)
    log = read_log(tmp_path / "out" / "logs" / "isometric.jsonl")
    assert [entry["lambda_iso"] for entry in log] == pytest.approx([0.5 * factor for factor in expected])
    for entry in log:
        if entry["lambda_iso"]:  # p = 0: all pay but t = 0, and the term is λ·(gated/B)·F
            assert entry["isometry"] == pytest.approx(
                entry["lambda_iso"] * entry["gated"] / 8 * entry["functional"], rel=1e-5
            )
            assert entry["gradient_ratio"] > 0
        else:
            assert (entry["isometry"], entry["gated"], entry["gradient_ratio"]) == (0, 0, None)


def test_lazy_steps_keep_their_factor_beside_the_schedule(tmp_path, model, scales):
    assert train(model, tmp_path / "out", "--lambda-iso-schedule", "linear-decay", "--isometry-every", 2) == 0
    assert scales == pytest.approx([22 / 12, 0, 14 / 12, 0, 6 / 12, 0])


def test_the_gradient_ratio_is_that_of_the_weight_at_its_step(tmp_path, model):
    """The first step has equal weights and draws, so that its ratio scales with the factor alone: 3/4."""
    ratios = []
    for schedule in ("constant", "linear-decay"):
        assert train(model, tmp_path / schedule, "--lambda-iso-schedule", schedule, "--learning-rate", 0, steps=2) == 0
        ratios.append(read_log(tmp_path / schedule / "logs" / "isometric.jsonl")[0]["gradient_ratio"])
    assert ratios[1] / ratios[0] == pytest.approx(3 / 4, rel=1e-4)


def test_resumed_is_bit_identical_to_uninterrupted(tmp_path, model, monkeypatch):
    more = ["--lambda-iso-schedule", "cosine-decay", "--checkpointing-steps", 2]
    assert train(model, tmp_path / "whole", *more) == 0
    forward, calls = IsometricDiffusionLoss.forward, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", interrupted)
    assert train(model, tmp_path / "torn", *more) == 130
    monkeypatch.setattr(IsometricDiffusionLoss, "forward", forward)
    assert train(model, tmp_path / "torn", *more) == 0
    whole, torn = (weights(tmp_path / name / "isometric") for name in ("whole", "torn"))
    assert all(torch.equal(whole[name], torn[name]) for name in whole)
    logs = [read_log(tmp_path / name / "logs" / "isometric.jsonl") for name in ("whole", "torn")]
    assert logs[0] == logs[1]
    assert len({entry["lambda_iso"] for entry in logs[0]}) == 6


def test_another_schedule_is_another_run(tmp_path, model, capsys):
    assert train(model, tmp_path / "out", steps=1) == 0
    (tmp_path / "out" / "metrics.json").unlink()
    assert train(model, tmp_path / "out", "--lambda-iso-schedule", "early", steps=1) == 2
    assert "--lambda-iso-schedule constant → early" in " ".join(capsys.readouterr().err.split())


def test_a_weight_that_a_schedule_takes_away_is_no_mistake(tmp_path, model, capsys):
    """The warning of a term that trains nothing is about λ, not about the end of its decay."""
    more = ["--lambda-iso", 1e-2, "--lambda-iso-schedule", "linear-decay"]
    assert train(model, tmp_path / "out", *more, steps=8) == 0
    assert "trains nothing" not in capsys.readouterr().out
    entries = read_log(tmp_path / "out" / "logs" / "isometric.jsonl")
    ratios = [entry["gradient_ratio"] / (1 - (entry["step"] - 0.5) / 8) for entry in entries]
    assert min(ratios) > 1e-3
    assert train(model, tmp_path / "weak", "--lambda-iso", 1e-7, "--lambda-iso-schedule", "linear-decay", steps=8) == 0
    assert "trains nothing" in capsys.readouterr().out


def test_the_dry_run_counts_steps_without_the_loss(model, tmp_path, capsys):
    def share(schedule):
        parts = {"pretrained_model_name_or_path": str(model), "train_batch_size": 8, "cpu": True}
        return cost_of(TrainConfig(**parts, lambda_iso_schedule=schedule), Digits(8))

    constant, early = share("constant"), share("early")
    assert early.share == pytest.approx(constant.share / 2)
    assert early.isometry_work - early.plain_work == pytest.approx((constant.isometry_work - constant.plain_work) / 2)
    assert early.isometry_bytes == constant.isometry_bytes  # of the steps that have it
    more = ["--lambda-iso", 0.1, "--lambda-iso-schedule", "linear-decay", "--dry-run"]
    assert train(model, tmp_path / "out", *more, steps=10) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "linear-decay: 0.095 at the first step, 0.045 in the middle, 0.005 at the last" in said
    assert not (tmp_path / "out").exists()


def test_the_card_names_the_schedule(tmp_path, model):
    assert train(model, tmp_path / "out", "--lambda-iso-schedule", "early", steps=1) == 0
    assert "λ = 0.01 (normalised (1 is perfect), early)" in (tmp_path / "out" / "isometric" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["lambda_iso"] == 0.01
