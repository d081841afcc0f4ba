"""Two gloo processes under the real launchers train what one does."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import georeg
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


def trained(folder, launcher=(), **runs):
    """What the runs left, each of a dtype and options, trained one after the other by one launch."""
    launch(*launcher, "-m", "tests.georeg_diffusion.rank", "train", folder, json.dumps(runs))
    return [torch.load(folder / name / "rank0.pt", weights_only=False) for name in runs]


def split(batch, accumulated=1, pooled=True, dtype="float64"):
    sizes = {"train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    return dtype, {**sizes, "lambda_iso": 0.1, "pool_micro_batches": pooled}


def apart(a, b):
    return max((a["weights"][name] - b["weights"][name]).abs().max().item() for name in a["weights"])


def test_two_processes_of_8_train_what_one_of_16_does_and_four_micro_batches_of_4(tmp_path):
    """Flips, noise, timesteps and probes by seed and draw; means over ranks and micro-batches; bins with running means."""
    alone = {"one": split(16), "four": split(4, 4), "naive": split(4, 4, pooled=False), "single": split(16, dtype="float32")}
    one, four, naive, single = trained(tmp_path, **alone)
    two, both, pair = trained(tmp_path, TORCHRUN, two=split(8), both=split(4, 2), pair=split(8, dtype="float32"))
    for other in (two, four, both):
        assert apart(one, other) < 1e-10
        for mine, theirs in zip(one["running"], other["running"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=0)
    print(f"float64 {apart(one, two):.1e} {apart(one, four):.1e} {apart(one, both):.1e}, float32 {apart(single, pair):.1e}")
    assert apart(single, pair) < 1e-4  # Adam enlarges rounding where a gradient is all but zero
    assert apart(one, naive) > 1e-6  # without the second pass each micro-batch has a ratio of its own
    second = torch.load(tmp_path / "two" / "rank1.pt", weights_only=False)
    assert apart(two, second) == 0
    assert all(torch.equal(a, b) for a, b in zip(two["running"], second["running"], strict=True))
    # Three scalars for each of 20 bins and step, also with micro-batches, and without those the size of the batch;
    # at the end the five numbers of the log.
    assert two["all_reduced"] == [3 * 20, 1] * rank.STEPS + [5]
    assert both["all_reduced"] == [3 * 20] * rank.STEPS + [5]


def test_gradients_average_to_those_of_the_whole_with_any_rows_and_any_gate(tmp_path):
    launch(*TORCHRUN, "-m", "tests.georeg_diffusion.rank", "gate", tmp_path)
    ranks = [torch.load(tmp_path / f"rank{i}.pt", weights_only=False) for i in range(2)]
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
        *("--train-batch-size", batch, "--output-dir", out),
    ]


@pytest.mark.slow
def test_torchrun_trains_from_the_command_line_and_one_process_speaks_and_writes(tmp_path, model):
    done = launch(*TORCHRUN, *run_of(model, tmp_path / "two"))
    assert done.stdout.count("results go to") == 1
    assert done.stdout.count("Training: 3/3") == 1
    assert cli(*run_of(model, tmp_path / "one", batch=8)[2:]) == 0
    one, two = weights(tmp_path / "one" / "isometric"), weights(tmp_path / "two" / "isometric")
    moved = max((one[name] - before).abs().max() for name, before in weights(model).items())
    assert moved > 1e-4
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5  # float32
    # The log is of all processes.
    logs = [rank_log(tmp_path / name) for name in ("one", "two")]
    for first, second in zip(*logs, strict=True):
        assert first["gated"] == second["gated"]
        assert first["denoising"] == pytest.approx(second["denoising"], rel=1e-4)
        assert first["functional"] == pytest.approx(second["functional"], rel=1e-3)
    again = launch(*TORCHRUN, *run_of(model, tmp_path / "two"), "--overwrite-output-dir")
    assert again.stdout.count("Training: 3/3") == 1


def rank_log(folder):
    from georeg_diffusion.training.log import read_log

    return read_log(folder / "logs" / "isometric.jsonl")


def test_more_processes_than_accelerate_runs_are_refused(tmp_path, model):
    done = launch(*run_of(model, tmp_path / "out"), check=False, WORLD_SIZE="2")
    assert done.returncode == 1
    assert "WORLD_SIZE is 2, but these processes cannot meet" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_pooling_micro_batches_needs_the_global_scope(tmp_path, model, capsys):
    code = cli(*run_of(model, tmp_path / "out")[2:], "--pool-micro-batches", "--scope", "batch")
    assert code == 2
    assert "--scope global" in " ".join(capsys.readouterr().err.split())


def test_parameters_in_parts_are_refused(tmp_path, monkeypatch):
    import accelerate

    from georeg_diffusion.errors import RunError
    from georeg_diffusion.training import run
    from georeg_diffusion.training.config import TrainConfig

    kind = accelerate.utils.DistributedType.FSDP
    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", property(lambda _: kind))
    with pytest.raises(RunError, match="got FSDP, expected data parallelism"):
        run._accelerator(TrainConfig(cpu=True, report_to="none", output_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
