"""``train --dry-run``: what it counts against a real step, and that it leaves no trace."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from georeg_diffusion import IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.cost import peak_bytes_of, seconds_of, work_of
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.training import dry_run
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.dry_run import StepCost, cost_of, report
from georeg_diffusion.training.phase import Phase
from tests.georeg_diffusion.conftest import TINY, cli
from tests.georeg_diffusion.networks import adm, plain, vae
from tests.georeg_diffusion.text_model import stable_diffusion


def config_of(model, **options):
    parts = {"pretrained_model_name_or_path": str(model), "train_batch_size": 8, "cpu": True}
    return TrainConfig(**(parts | options))


@pytest.fixture
def seconds(monkeypatch):
    """Steps without isometry take 1 s, those with all samples past the gate 3 s, the optimiser 0.25 s."""

    def pretend(*steps, **_):
        for step in steps:
            step().backward()
        return [1.0, 3.0] if len(steps) == 2 else [0.25]

    monkeypatch.setattr(dry_run, "seconds_of", pretend)


def test_it_counts_what_a_real_step_of_that_batch_does(model, seconds):
    """Counted on the meta device and measured on 4 samples, against real steps of 8, half of them past the gate.

    Torch's counter does not know the CPU's fused attention, so that is not used where work is counted.
    """
    found = cost_of(config_of(model), Digits(8))
    bundle = load(model)
    bundle.network.train()
    objective = IsometricDiffusionLoss(bundle.network, bundle.scheduler, gate=IsometryGate(weight=1e-2, skip=0.5))
    x0, half = torch.randn(8, 1, 8, 8), torch.tensor([999] * 4 + [10] * 4)
    with sdpa_kernel(SDPBackend.MATH):
        assert found.plain_work == work_of(lambda: objective(x0, half, isometry_scale=0.0).loss)
        half_work = work_of(lambda: objective(x0, half).loss)
    # t > 500 are 499 of 1000.
    assert found.share == pytest.approx(0.499)
    gated = (found.isometry_work - (1 - 0.499) * found.plain_work) / 0.499
    assert 0.5 * (found.plain_work + gated) == pytest.approx(half_work, rel=1e-6)
    bundle.network.zero_grad(set_to_none=True)
    assert found.plain_bytes == pytest.approx(peak_bytes_of(lambda: objective(x0, half, isometry_scale=0.0).loss), rel=0.1)
    bundle.network.zero_grad(set_to_none=True)
    most = torch.tensor([999] * 7 + [10])  # 4 + 2·√2 of 8
    assert found.isometry_bytes == pytest.approx(peak_bytes_of(lambda: objective(x0, most).loss), rel=0.1)
    count = sum(p.numel() for p in bundle.network.parameters())
    assert (found.parameters, found.trained) == (count, count)
    assert found.state_bytes == 4 * 4 * count


def test_time_is_that_of_the_two_parts_of_the_batch(model, seconds):
    found = cost_of(config_of(model), Digits(8))
    assert found.timed_batch == 4
    assert found.plain_seconds == pytest.approx(2 * 1 + 0.25)
    assert found.isometry_seconds == pytest.approx(2 * (0.501 * 1 + 0.499 * 3) + 0.25)
    assert found.times == pytest.approx(found.isometry_seconds / found.plain_seconds)
    more = cost_of(config_of(model, gradient_accumulation_steps=3), Digits(8))
    assert more.plain_seconds == pytest.approx(6 * 1 + 0.25)
    assert more.plain_work == 3 * found.plain_work
    assert more.plain_bytes == found.plain_bytes


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"isometry_skip": 0.0}, 0.999),
        ({"isometry_every": 4}, 0.499 / 4),
        ({"lambda_iso": 0.0}, 0.0),
        ({"isometry_skip": 1.0}, 0.0),
    ],
)
def test_who_pays(model, seconds, options, share):
    found = cost_of(config_of(model, **options), Digits(8))
    assert found.share == pytest.approx(share)
    assert found.isometry_work >= found.plain_work
    if not share:
        assert found.isometry_work == found.plain_work
        assert found.isometry_seconds == found.plain_seconds
        lines = dict(report(found, config_of(model, **options), Digits(8), []))
        assert "is off" in lines[""]


@pytest.mark.slow
def test_recomputing_saves_memory_and_costs_work(model, seconds):
    plainly, again = (
        cost_of(config_of(model, train_batch_size=64, isometry_skip=0.0, recompute=r), Digits(8)) for r in (False, True)
    )
    assert again.isometry_bytes < plainly.isometry_bytes
    assert again.isometry_work > plainly.isometry_work


def test_a_batch_grows_until_it_says_something(model, monkeypatch):
    counts = []

    def quick(*steps, **_):
        counts.append(len(steps))
        return [0.01 * len(counts)] * len(steps)

    monkeypatch.setattr(dry_run, "seconds_of", quick)
    assert cost_of(config_of(model, train_batch_size=20), Digits(8)).timed_batch == 20
    assert counts == [2, 2, 2, 2, 1], "4, 8, 16 and 20 samples, then the optimiser"


def test_out_of_memory_takes_fewer(monkeypatch):
    tried = []

    def short(*steps, **_):
        tried.append(1)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [1.0, 2.0]

    monkeypatch.setattr(dry_run, "seconds_of", short)
    assert dry_run._timed(lambda rows, gated: None, 16, True, torch.device("cpu")) == (1, 1.0, 2.0)
    tried.clear()
    monkeypatch.setattr(dry_run, "_CPU_BATCH", 1)
    with pytest.raises(torch.OutOfMemoryError):
        dry_run._timed(lambda rows, gated: None, 16, True, torch.device("cpu"))


@pytest.mark.slow
def test_classes_and_latents(tmp_path, seconds):
    """Of images of 16² the network sees latents of 8²; samples trained without a class do not pay."""
    torch.manual_seed(0)
    Bundle(adm(), diffusers.DDPMScheduler()).save(tmp_path / "classes")
    vae().save_pretrained(tmp_path / "vae")
    config = config_of(tmp_path / "classes", vae=str(tmp_path / "vae"))
    found = cost_of(config, Digits(16))
    network = plain()
    x = torch.randn(8, 2, 8, 8)
    with sdpa_kernel(SDPBackend.MATH):
        bare = work_of(lambda: network(x, 10).sample.square().mean())
    assert found.plain_work == pytest.approx(bare, rel=0.02)
    assert found.share == pytest.approx(0.499)


def test_text_and_adapters(tmp_path, seconds):
    """Adapters alone are trained by default, on latents; a prompt that is dropped does not pay."""
    stable_diffusion(tmp_path).save_pretrained(tmp_path / "sd")
    config = config_of(tmp_path / "sd", train_batch_size=2, rank=2, conditioning_dropout_prob=0.25)
    found = cost_of(config, SimpleNamespace(channels=3, resolution=16))
    assert 0 < found.trained < found.parameters / 10
    assert found.state_bytes == 4 * (found.parameters + 3 * found.trained)
    assert found.share == pytest.approx(0.75 * 0.499)
    assert found.isometry_work > found.plain_work
    assert "of them trained" in dict(report(found, config, Digits(16), []))["network"]


def test_numbers_in_words():
    cost = StepCost(114_000_000, 114_000_000, 0.5, 2 * 2**30, 2**30, 3 * 2**29, 1e12, 1.4e12, 1.0, 1.4, 4, "cpu")
    config = TrainConfig(train_batch_size=32)
    phases = [Phase("base", "", 100, 1e-4, 0.0), Phase("isometric", "", 100, 1e-4, 1e-2)]
    lines = dict(report(cost, config, Digits(8), phases))
    assert lines["network"] == "114 M parameters, all trained"
    assert lines["length"] == "100 + 100 steps of 32 images"
    assert lines["memory"].startswith("3.5 GiB: 2 GiB for parameters")
    assert "×1.40; 50% of the samples pay" in lines["work of a step"]
    assert lines["in all"].startswith("4 min")
    assert lines[""] == "isometry costs ×1.4 here"


def test_the_clock_takes_the_median_after_a_warm_up():
    now = iter([0.0, 100.0, 100.0, 101.0, 101.0, 104.0, 104.0, 106.0])
    one = torch.ones((), requires_grad=True)
    assert seconds_of(lambda: one * 1, repeats=3, clock=lambda: next(now)) == [2.0]


@pytest.fixture
def dry(tmp_path, capsys):
    def run(*options):
        code = cli("train", *TINY, "--dry-run", "--output-dir", tmp_path / "out", *options)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, " ".join((captured.out + captured.err).split())

    return run


def test_the_command_prints_and_writes_nothing(dry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = dry()
    assert code == 0, text
    assert "nothing is trained or written" in text
    assert "isometry costs ×" in text
    assert "800 + 300 + 300 steps of 8 images" in text
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_output_folder_stays(dry, tmp_path, seconds):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("seed: 3\n")
    code, _ = dry("--overwrite-output-dir")
    assert code == 0
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--h-module", "nothing"], 2, "--h-module"),
        (["--estimator", "guess"], 2, "--estimator"),
        (["--train-data-dir", "nowhere"], 1, "nowhere"),
        (["--pretrained-model-name-or-path", "./nowhere"], 1, "nowhere"),
    ],
)
def test_what_train_refuses_it_refuses(dry, options, code, message):
    got, text = dry(*options)
    assert got in (code, 3 - code)
    assert message in text
