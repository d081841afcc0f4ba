"""Signals, damaged checkpoints, full disks, non-finite steps: a run goes on with the bits of one that was never stopped."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from georeg_diffusion.bundle import load
from georeg_diffusion.errors import Interrupted, RunError
from georeg_diffusion.files import replacing
from georeg_diffusion.objective import IsometricDiffusionLoss
from georeg_diffusion.training import checkpoint, log, run
from georeg_diffusion.training.determinism import deterministic
from georeg_diffusion.training.guard import Guard
from georeg_diffusion.training.interrupt import stopping
from georeg_diffusion.training.log import Log, read_log
from tests.georeg_diffusion.conftest import TINY, cli, weights

STEPS = 8


def arguments(model, out, *more):
    fixed = [
        "--pretrained-model-name-or-path",
        model,
        "--max-train-steps",
        STEPS,
        "--checkpointing-steps",
        3,
        "--no-evaluate",
    ]
    return ["train", *TINY, *fixed, *more, "--output-dir", out]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """A run that nothing stops."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert cli(*arguments(model, out)) == 0
    return out


def assert_same(one, two):
    """Weights, log and the whole last checkpoint: optimiser, average, running moments, counts."""
    a, b = weights(one / "isometric"), weights(two / "isometric")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert read_log(one / "logs/isometric.jsonl") == read_log(two / "logs/isometric.jsonl")
    last = [out / "checkpoints/isometric" / f"step-{STEPS}" for out in (one, two)]
    digests = [json.loads((folder / "sha256.json").read_text()) for folder in last]
    assert set(digests[0]) == set(digests[1])
    assert {"model.safetensors", "optimizer.bin", "average.pt", "guard.pt"} <= set(digests[0])
    assert digests[0]["model.safetensors"] == digests[1]["model.safetensors"]  # the running moments are in it
    for name in ("optimizer.bin", "average.pt", "guard.pt", "scheduler.bin"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in last)
        assert_equal(first, second)


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def at_step(monkeypatch, number, act):
    """Do something in the middle of the forward pass of a step."""
    forward, calls = IsometricDiffusionLoss.forward, []

    def acting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            act()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", acting)
    return lambda: monkeypatch.setattr(IsometricDiffusionLoss, "forward", forward)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_of_its_step_and_leaves(tmp_path, model, whole, monkeypatch, capsys, number, code):
    undo = at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), number))
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    out = tmp_path / "out"
    assert cli(*arguments(model, out)) == code
    error = " ".join(capsys.readouterr().err.split())
    assert f"{number.name} after step 5 of 8" in error
    assert "run the same command again" in error
    assert checkpoint.saved_steps(out / "checkpoints/isometric") == [3, 5]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    undo()
    assert cli(*arguments(model, out)) == 0
    assert "Going on from step 5" in capsys.readouterr().out
    assert_same(whole, out)


@pytest.mark.slow
def test_a_signal_in_the_middle_of_an_accumulation_waits_for_the_step(tmp_path, model, monkeypatch):
    more = ["--gradient-accumulation-steps", 2]
    assert cli(*arguments(model, tmp_path / "whole", *more)) == 0
    undo = at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert cli(*arguments(model, tmp_path / "torn", *more)) == 143
    assert checkpoint.saved_steps(tmp_path / "torn/checkpoints/isometric") == [3]  # micro-batch 5 of steps 1, 2, 3
    undo()
    assert cli(*arguments(model, tmp_path / "torn", *more)) == 0
    assert_same(tmp_path / "whole", tmp_path / "torn")


def test_a_second_signal_does_not_wait(tmp_path, model, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, 5, twice)
    assert cli(*arguments(model, tmp_path / "out")) == 143
    assert checkpoint.saved_steps(tmp_path / "out/checkpoints/isometric") == [3]


def test_a_termination_outside_the_loop_says_so_too(tmp_path, model, monkeypatch, capsys):
    from georeg_diffusion.training import run

    monkeypatch.setattr(run, "pixel_images", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert cli(*arguments(model, tmp_path / "out")) == 143
    assert "run the same command again" in " ".join(capsys.readouterr().err.split())


def test_signals_stop_all_processes_when_one_has_it():
    class Two:
        num_processes, device = 2, torch.device("cpu")

        def gather(self, mine):
            return torch.cat([mine.reshape(1), torch.tensor([15])])

    with stopping() as stop:
        assert stop.agreed(SimpleNamespace(num_processes=1)) == 0
        assert stop.agreed(Two()) == 15


def damaged(out, how):
    newest = out / "checkpoints/isometric" / f"step-{checkpoint.saved_steps(out / 'checkpoints/isometric')[-1]}"
    file = newest / "optimizer.bin"
    if how == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif how == "missing":
        file.unlink()
    else:
        (newest / "sha256.json").unlink()
    return newest


@pytest.mark.parametrize(
    "how", ["flipped", *(pytest.param(h, marks=pytest.mark.slow) for h in ("cut", "missing", "no hashes"))]
)
def test_the_last_good_checkpoint_takes_over_from_a_damaged_one(tmp_path, model, whole, monkeypatch, capsys, how):
    undo = at_step(monkeypatch, 7, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "out"
    assert cli(*arguments(model, out)) == 130
    assert checkpoint.saved_steps(out / "checkpoints/isometric") == [3, 6]
    newest = damaged(out, how)
    undo()
    capsys.readouterr()
    assert cli(*arguments(model, out)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{newest} is damaged" in printed
    assert "Going on from step 3" in printed
    assert_same(whole, out)


def test_only_damaged_checkpoints_are_an_error_that_deletes_nothing(tmp_path, model, monkeypatch, capsys):
    undo = at_step(monkeypatch, 5, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "out"
    assert cli(*arguments(model, out)) == 130
    newest = damaged(out, "cut")
    undo()
    assert cli(*arguments(model, out)) == 1
    assert "are damaged" in " ".join(capsys.readouterr().err.split())
    assert newest.is_dir()


def test_hashes_open_nothing_outside_their_checkpoint(tmp_path):
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "sha256.json").write_text(json.dumps({"../secret": "0"}))
    assert "outside" in checkpoint.damage_of(tmp_path / "step-1")


class Payload:
    def __reduce__(self):
        return (os.system, ("echo pickled code ran",))


@pytest.mark.parametrize("name", ["average.pt", pytest.param("optimizer.bin", marks=pytest.mark.slow)])
def test_no_code_in_a_checkpoint_is_run(tmp_path, model, monkeypatch, capfd, name):
    """With right hashes, too: an attacker can write those."""
    undo = at_step(monkeypatch, 5, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "out"
    assert cli(*arguments(model, out)) == 130
    undo()
    folder = out / "checkpoints/isometric/step-3"
    torch.save({"x": Payload()}, folder / name)
    (folder / "sha256.json").unlink()
    checkpoint._seal(folder)
    assert cli(*arguments(model, out)) == 1
    told = capfd.readouterr()
    assert "pickled code ran" not in told.out
    assert "cannot resume" in told.err


@pytest.mark.parametrize("broken", ["hash", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_full_disk_stops_the_run_with_the_last_checkpoint_whole(tmp_path, model, whole, monkeypatch, capsys, broken):
    out, save, seal = tmp_path / "out", torch.save, checkpoint._seal

    def full(*args, **kwargs):
        if (out / "checkpoints/isometric/step-3").is_dir():
            raise OSError(28, "No space left on device") if broken == "hash" else RuntimeError("PytorchStreamWriter failed")
        return (seal if broken == "hash" else save)(*args, **kwargs)

    monkeypatch.setattr(*((checkpoint, "_seal") if broken == "hash" else (torch, "save")), full)
    assert cli(*arguments(model, out)) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "cannot write the checkpoint of step 6" in error
    assert "goes on from step 3" in error
    assert [entry.name for entry in (out / "checkpoints/isometric").iterdir()] == ["step-3"]  # and no scratch
    monkeypatch.setattr(checkpoint, "_seal", seal)
    monkeypatch.setattr(torch, "save", save)
    assert cli(*arguments(model, out)) == 0
    assert_same(whole, out)


@pytest.mark.slow
def test_a_real_limit_on_file_sizes_stops_the_run_likewise(tmp_path, model, whole):
    """RLIMIT_FSIZE, with SIGXFSZ ignored, fails writes as a full disk does, in whatever library writes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "georeg_diffusion", *map(str, arguments(model, out))]

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    failed = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, env=environment)
    assert failed.returncode == 1
    assert "cannot write the checkpoint of step 3" in " ".join(failed.stderr.split())
    assert not list((out / "checkpoints").rglob("*.partial*"))
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert_same(whole, out)


def test_a_scratch_file_goes_when_its_writing_fails(tmp_path):
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "a.txt") as scratch:
        scratch.write_text("half")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def accelerator(scaler=None):
    alone = {
        "is_main_process": True,
        "num_processes": 1,
        "device": torch.device("cpu"),
        "reduce": lambda value, *_, **__: value,
    }
    return SimpleNamespace(scaler=scaler, log=lambda *_, **__: None, **alone)


def output(value=1.0):
    number = torch.tensor(value)
    return SimpleNamespace(loss=number, denoising=number, isometry=number, functional=number, gated=3)


def test_the_guard_skips_counts_and_tells_what_it_saw(capsys):
    guard = Guard(accelerator())
    assert guard.is_sound(output(), None, 1)
    assert guard.is_sound(output(), torch.tensor(2.0), 1)
    for step in range(2, 11):
        assert not guard.is_sound(output(float("nan")), torch.tensor(float("inf")), step)
    again = Guard(accelerator())
    again.load_state_dict(guard.state_dict())
    assert (again.skipped, again.in_a_row) == (9, 9)
    with pytest.raises(RunError, match=r"10 steps in a row .*step 11: denoising nan, isometry nan of 3 samples.*norm inf"):
        guard.is_sound(output(float("nan")), torch.tensor(float("inf")), 11)
    assert capsys.readouterr().out.count("Warning") == 1
    assert again.is_sound(output(), torch.tensor(1.0), 11)
    assert (again.skipped, again.in_a_row) == (9, 0)


def test_a_scaler_may_search_but_not_for_ever():
    guard = Guard(accelerator(scaler=object()))
    for step in range(1, 50):
        assert guard.is_sound(output(), torch.tensor(float("nan")), step)
    with pytest.raises(RunError, match="50 steps in a row"):
        guard.is_sound(output(), torch.tensor(float("nan")), 50)


def test_one_bad_step_is_skipped_and_the_run_stays_finite(tmp_path, model, monkeypatch, capsys):
    forward, calls = IsometricDiffusionLoss.forward, []

    def once(self, x, *args, **kwargs):
        calls.append(1)
        return forward(self, x * float("nan") if len(calls) == 4 else x, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", once)
    assert cli(*arguments(model, tmp_path / "out")) == 0
    assert "skipped a step" in " ".join(capsys.readouterr().out.split())
    entries = read_log(tmp_path / "out/logs/isometric.jsonl")
    assert [e["skipped"] for e in entries] == [0] * 3 + [1] * 5
    assert all(torch.isfinite(w).all() for w in weights(tmp_path / "out/isometric").values())
    state = load(tmp_path / "out/isometric").network.state_dict()
    assert any(not torch.equal(state[name], before) for name, before in weights(model).items())


def test_logs_rotate_and_are_cut_back_across_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_MAX_BYTES", 500)
    file = tmp_path / "logs" / "isometric.jsonl"
    first = Log(accelerator(), file, "isometric", 0)
    for step in range(1, 21):
        first.write(step, output(), None, 1e-4, None, 0, (1e-2, 1.0))
    assert len(list(file.parent.iterdir())) > 3
    assert all(part.stat().st_size < 1000 for part in file.parent.iterdir())
    assert [entry["step"] for entry in read_log(file)] == list(range(1, 21))
    with file.open("a") as opened:
        opened.write('{"step": 21, "lo')
    again = Log(accelerator(), file, "isometric", 7)
    assert [entry["step"] for entry in read_log(file)] == list(range(1, 8))
    for step in range(8, 21):
        again.write(step, output(), None, 1e-4, None, 0, (1e-2, 1.0))
    assert [entry["step"] for entry in read_log(file)] == list(range(1, 21))


def test_deterministic_mode_holds_and_ends(tmp_path, model, whole, monkeypatch):
    seen = []
    at_step(monkeypatch, 1, lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    assert cli(*arguments(model, tmp_path / "out", "--deterministic")) == 0
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same(whole, tmp_path / "out")  # on a CPU there is nothing else
    with pytest.raises(RunError, match="--deterministic: f does not have a deterministic"), deterministic(True):
        raise RuntimeError("f does not have a deterministic implementation, but you set …")


def test_an_interruption_is_a_keyboard_interrupt_for_python():
    with pytest.raises(KeyboardInterrupt), stopping():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert Interrupted(15).number == 15


def test_tied_weights_go_on_from_a_checkpoint(tmp_path):
    accelerator = Accelerator(cpu=True)

    def tied():
        layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        layers[1].weight = layers[0].weight
        return layers

    saved, found = tied(), tied()
    checkpoint.save(accelerator, tmp_path, 3, saved, keep=1)
    assert checkpoint.resume(accelerator, tmp_path, found) == 3
    assert found[1].weight is found[0].weight
    torch.testing.assert_close(found.state_dict(), saved.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path, model, monkeypatch, capsys):
    """Steps that come from epochs are fewer with more processes."""
    undo = at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert cli(*arguments(model, tmp_path)) == 143
    undo()
    phases = run._phases
    monkeypatch.setattr(run, "_phases", lambda *given: [replace(phase, steps=4) for phase in phases(*given)])
    assert cli(*arguments(model, tmp_path)) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "got a checkpoint of step 5, expected at most 4" in error
    assert not (tmp_path / "isometric").exists()
