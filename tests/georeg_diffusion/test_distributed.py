"""Two gloo processes under the real launchers train what one does."""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import georeg
from georeg_diffusion.errors import RunError
from georeg_diffusion.training import sharding
from georeg_diffusion.training.log import read_log
from tests.georeg_diffusion import rank
from tests.georeg_diffusion.conftest import cli, weights

LAUNCHED = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(*arguments, check=True, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env={**LAUNCHED, **environment}, timeout=300
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def split(batch, accumulated=1, pooled=True, dtype="float64", **options):
    sizes = {"train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    return dtype, {**sizes, "lambda_iso": 0.1, "pool_micro_batches": pooled, **options}


TOGETHER = {
    "two": split(8),
    "both": split(4, 2),
    "pair": split(8, dtype="float32"),
    "shards": split(8, sharded=True),
    "halved": split(4, 2, pooled=False, scope="batch", steps=2),
    "halved shards": split(4, 2, pooled=False, scope="batch", steps=2, sharded=True),
    "bf16": split(8, dtype="float32", mixed_precision="bf16", steps=2),
    "bf16 shards": split(8, dtype="float32", mixed_precision="bf16", steps=2, sharded=True),
    "first": split(8, steps=2, goes_on_from="relay", sharded=True, recompute=True, logging_steps=1),
    "second": split(8, steps=3, goes_on_from="relay"),
    "third": split(4, 2, steps=4, goes_on_from="relay", sharded=True),
}
ALONE = {
    "one": split(16),
    "four": split(4, 4),
    "naive": split(4, 4, pooled=False),
    "single": split(16, dtype="float32"),
    "last": split(16, goes_on_from="relay"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes left what they trained, and then one."""
    folder = tmp_path_factory.mktemp("distributed")
    launch(*TORCHRUN, "-m", "tests.georeg_diffusion.rank", folder, json.dumps(TOGETHER))
    threads, dtype, state = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    with mock.patch.dict(os.environ):
        torch.set_num_threads(1)
        rank.train(folder, json.dumps(ALONE))
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)
    forget()
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return {name: torch.load(folder / f"{name}-0.pt", weights_only=False) for name in (*TOGETHER, *ALONE)}


@pytest.fixture
def fresh_state():
    """What accelerate remembers of earlier runs of this process is forgotten, before and after."""
    forget()
    with mock.patch.dict(os.environ):  # where accelerate writes
        yield
    forget()


def forget():
    rank.AcceleratorState._reset_state(True)
    rank.GradientState._reset_state()


def apart(a, b):
    return max((a["weights"][name] - b["weights"][name]).abs().max().item() for name in a["weights"])


def assert_equal(one, other):
    assert apart(one, other) < 1e-10
    for mine, theirs in zip(one["running"], other["running"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=0)


def test_two_processes_of_8_train_what_one_of_16_does_and_four_micro_batches_of_4(folder, trained):
    """Flips, noise, timesteps and probes by seed and draw; means over ranks and micro-batches; bins with running means."""
    one, two, both = (trained[name] for name in ("one", "two", "both"))
    for name in ("two", "four", "both"):
        assert_equal(one, trained[name])
        print(f"{name}: {apart(one, trained[name]):.1e}")
    rounding = apart(trained["single"], trained["pair"])
    print(f"float32: {rounding:.1e}")
    assert rounding < 1e-4  # Adam enlarges rounding where a gradient is all but zero
    assert apart(one, trained["naive"]) > 1e-6  # without the second pass each micro-batch has a ratio of its own
    second = torch.load(folder / "two-1.pt", weights_only=False)
    assert apart(two, second) == 0
    assert all(torch.equal(a, b) for a, b in zip(two["running"], second["running"], strict=True))
    # Three scalars for each of 20 bins and step, also with micro-batches, and without those the size of the batch;
    # at the end the five numbers of the log.
    assert two["all_reduced"] == [3 * 20, 1] * rank.STEPS + [5]
    assert both["all_reduced"] == [3 * 20] * rank.STEPS + [5]


@pytest.mark.parametrize(("name", "reference"), [("shards", "one"), ("halved shards", "halved")])
def test_fsdp2_trains_what_one_process_and_ddp_do(trained, name, reference):
    """Also by micro-batches where the first process's means are everybody's."""
    print(f"{name}: {apart(trained[reference], trained[name]):.1e}")
    assert_equal(trained[reference], trained[name])


def test_fsdp2_keeps_a_half_on_each_of_two_processes(folder, trained):
    whole = sum(p.numel() for p in trained["two"]["weights"].values())
    assert trained["two"]["held"] == {"parameters": whole, "adam": 2 * whole, "average": whole}
    ranks = [torch.load(folder / f"shards-{i}.pt", weights_only=False) for i in range(2)]
    for kind, times in (("parameters", 1), ("adam", 2), ("average", 1)):
        held = [found["held"][kind] for found in ranks]
        assert sum(held) == times * whole
        assert max(held) < 0.51 * times * whole
    assert apart(*ranks) == 0


def test_fsdp2_autocasts_as_ddp_does(trained):
    difference = apart(trained["bf16"], trained["bf16 shards"])
    print(f"bf16: {difference:.1e}")
    assert difference < 1e-6  # a weight moves by 1e-3 in each step


def test_a_run_goes_on_in_shards_whole_and_alone(trained):
    """Two steps in shards, one under DDP, one in shards by micro-batches, the last one alone: weights, Adam, average.

    The first two with passes of their own for the isometry loss, and the log's gradient ratios on one process or both.
    """
    print(f"relay: {apart(trained['one'], trained['last']):.1e}")
    assert_equal(trained["one"], trained["last"])


def test_gradients_average_to_those_of_the_whole_with_any_rows_and_any_gate(folder):
    ranks = [torch.load(folder / f"gate-{i}.pt", weights_only=False) for i in range(2)]
    for name, (_, timesteps) in rank.CASES.items():
        network = rank.whole_network()
        x, t, seeds = rank.rows(timesteps)
        out = rank.gated_objective(network, False)(x, t, generator=rank.generators(seeds))
        out.loss.backward()
        for recompute in (False, True):
            for gradients, isometry, functional, _ in (result[name, recompute] for result in ranks):
                for k, p in network.named_parameters():
                    torch.testing.assert_close(gradients[k], p.grad, rtol=1e-9, atol=1e-12, msg=f"{name}, {k}")
                torch.testing.assert_close(isometry, out.isometry.detach(), rtol=1e-10, atol=0, msg=name)
                torch.testing.assert_close(functional, out.functional, rtol=1e-10, atol=0, msg=name)
            assert sum(result[name, recompute][3] for result in ranks) == out.gated


def test_micro_batches_of_an_objective_add_up_with_dropout():
    """Masks are replayed, although the first pass runs the gated samples' encoder alone."""
    x, t, seeds = rank.rows([600, 700, 10, 20, 30, 900, 990, 550])
    found = []
    for chunks in (1, 4):
        network = rank.whole_network().train()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3 if chunks == 4 else 0.0
        objective = rank.gated_objective(network, False)
        parts = torch.arange(len(x)).chunk(chunks)
        calls = [partial(call, objective, x[p], t[p], [seeds[i] for i in p]) for p in parts]
        torch.manual_seed(1)
        seen = []
        for out in georeg.accumulate(objective.regularizer, calls):
            (out.loss / chunks).backward()
            seen.append(out)
        if chunks == 4:  # the means of the first pass are those of the second
            moments = [out.moments for out in seen if out.moments is not None]
            bins = torch.cat([t[p][t[p] > 500] * 4 // 1000 for p in parts])
            trace, square = torch.cat([m.trace for m in moments]), torch.cat([m.trace_sq for m in moments])
            rank_of_j = moments[0].rank
            f = sum(
                (bins == g).double().mean() * rank_of_j * square[bins == g].mean() / trace[bins == g].mean() ** 2
                for g in bins.unique()
            )
            torch.testing.assert_close(seen[0].functional, f.detach(), rtol=1e-10, atol=0)
        found.append(seen)


def call(objective, x, t, seeds):
    return objective(x, t, generator=rank.generators(seeds))


def run_of(model, out, steps=3, batch=4):
    return [
        *("-m", "georeg_diffusion", "train", "--resolution", "8", "--logging-steps", "1", "--report-to", "none", "--cpu"),
        *("--pretrained-model-name-or-path", model, "--max-train-steps", steps, "--lambda-iso", "0.1", "--no-evaluate"),
        *(
            "--train-batch-size",
            batch,
            "--validation-steps",
            2,
            "--select-by",
            "denoising",
            "--num-validation-images",
            16,
            "--output-dir",
            out,
        ),
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model):
    out = tmp_path_factory.mktemp("alone") / "one"
    assert cli(*run_of(model, out, batch=8)[2:]) == 0
    return out


LAUNCHERS = {
    "torchrun": TORCHRUN,
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_train_from_the_command_line_and_one_process_speaks_and_writes(tmp_path, model, alone, launcher):
    out = tmp_path / "out"
    (out / "logs").mkdir(parents=True)
    (out / "config.yaml").write_text("seed: 3\n")  # of another run, which is to go
    done = launch(*LAUNCHERS[launcher], *run_of(model, out), "--overwrite-output-dir")
    assert done.stdout.count("results go to") == 1
    assert done.stdout.count("Training: 3/3") == 1
    one, two = weights(alone / "isometric"), weights(out / "isometric")
    moved = max((one[name] - before).abs().max() for name, before in weights(model).items())
    assert moved > 1e-4
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5  # float32
    # The log is of all processes.
    for first, second in zip(*(read_log(folder / "logs" / "isometric.jsonl") for folder in (alone, out)), strict=True):
        assert first["gated"] == second["gated"]
        assert first["denoising"] == pytest.approx(second["denoising"], rel=1e-4)
        assert first["functional"] == pytest.approx(second["functional"], rel=1e-3)
    # And so is the choice among checkpoints, by the average that shards are put together for.
    choices = [read_log(folder / "logs" / "isometric-validation.jsonl") for folder in (alone, out)]
    assert [entry["step"] for entry in choices[0]] == [2, 3]
    for first, second in zip(*choices, strict=True):
        assert first["denoising"] == pytest.approx(second["denoising"], rel=1e-4)


@pytest.mark.usefixtures("fresh_state")
def test_more_processes_than_accelerate_runs_are_refused(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli(*run_of(model, tmp_path / "out")[2:]) == 1
    assert "WORLD_SIZE is 2, but " in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FSDP_VERSION": "1"}, "got FSDP version 1, expected 2"),
        ({}, "got FSDP version 1, expected 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "got fsdp_offload_params, expected none"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "pass --gradient-checkpointing"),
        ({"FSDP_VERSION": "2", "mixed": "fp16"}, "got fp16 with FSDP2, expected no or bf16"),
    ],
)
def test_what_shards_do_not_do_is_refused(tmp_path, model, monkeypatch, capsys, settings, message):
    mixed = settings.pop("mixed", "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING", raising=False)
    assert cli(*run_of(model, tmp_path / "out")[2:], "--mixed-precision", mixed) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_an_older_torch_has_no_shards_on_cpus(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.delattr(torch.cpu.Stream, "record_event")
    with pytest.raises(RunError, match="got FSDP2 on CPUs with torch .*, expected a newer torch"):
        sharding.distributed(SimpleNamespace(num_processes=2, device=torch.device("cpu")), torch.nn.Linear(1, 1))


@pytest.mark.usefixtures("fresh_state")
def test_shards_asked_for_in_one_process_are_that_process(tmp_path, model, monkeypatch, alone):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert cli(*run_of(model, tmp_path / "out", batch=8)[2:]) == 0
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    one, two = weights(alone / "isometric"), weights(tmp_path / "out" / "isometric")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_pooling_micro_batches_needs_the_global_scope(tmp_path, model, capsys):
    code = cli(*run_of(model, tmp_path / "out")[2:], "--pool-micro-batches", "--scope", "batch")
    assert code == 2
    assert "--scope global" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("fresh_state")
def test_parameters_in_parts_by_others_are_refused(tmp_path, monkeypatch):
    import accelerate

    from georeg_diffusion.training import run
    from georeg_diffusion.training.config import TrainConfig

    kind = accelerate.utils.DistributedType.DEEPSPEED
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", property(lambda _: kind))
    with pytest.raises(RunError, match="got DEEPSPEED, expected data parallelism"):
        run._accelerator(TrainConfig(cpu=True, report_to="none", output_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
