"""Kill a training run again and again, and compare its end with that of one that nothing stopped, bit for bit.

    python benchmarks/torture.py --kills 20

Every kill hits a process of its own (the command line, as a user starts it) at a moment drawn by ``--seed``: SIGKILL at any
point of the run, SIGKILL while a checkpoint is being written (as soon as its scratch folder appears), SIGTERM and SIGINT.
Between kills the newest checkpoint is damaged now and then. What must be equal at the end: the weights, the log (which is
cut back to the checkpoint's step), and in the last checkpoint the optimiser, the average, the running moments and counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

KINDS = ("SIGKILL", "SIGKILL while writing", "SIGTERM", "SIGINT")


def command(out: Path, steps: int) -> list[str]:
    """A small run with everything in it that has a state."""
    options = {
        "resolution": 8,
        "train-batch-size": 8,
        "max-train-steps": steps,
        "checkpointing-steps": 4,
        "logging-steps": 1,
        "report-to": "none",
        "lr-scheduler": "cosine",
        "gradient-accumulation-steps": 2,
        "output-dir": out,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "georeg_diffusion", "train", "--no-with-baseline", "--no-evaluate", "--cpu", *flags]


def start(out: Path, steps: int) -> subprocess.Popen[str]:
    """The run, or its continuation, in one thread."""
    return subprocess.Popen(
        command(out, steps),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_logged(out: Path) -> int:
    """How far the run is."""
    file = out / "logs" / "isometric.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def kill_at_random(out: Path, steps: int, kind: str, rng: random.Random) -> tuple[str, int | None]:
    """Start the run, strike once, and return its output and exit code; it may have ended before."""
    process = start(out, steps)
    folder = out / "checkpoints" / "isometric"
    begun = steps_logged(out)
    goal = begun + rng.randint(0, 6)  # past the start-up of the process; goal = begun strikes within it
    delay = rng.uniform(0, 0.3)
    while process.poll() is None:
        if kind == "SIGKILL while writing":
            if any(folder.glob(".step-*.partial/*")):
                break
        elif steps_logged(out) > goal or (goal == begun and begun):
            time.sleep(delay)
            break
        time.sleep(0.0005)
    if process.poll() is None:
        process.send_signal(getattr(signal, kind.split()[0]))
    text, _ = process.communicate(timeout=300)
    return text, process.returncode


def damage(out: Path, rng: random.Random) -> str | None:
    """Flip a bit of the newest checkpoint where there is one before it."""
    folder = out / "checkpoints" / "isometric"
    found = sorted(folder.glob("step-*"), key=lambda path: int(path.name[5:])) if folder.is_dir() else []
    if len(found) < 2:
        return None
    file = rng.choice(sorted(entry for entry in found[-1].iterdir() if entry.suffix != ".json"))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))
    return f"{found[-1].name}/{file.name}"


def state_of(out: Path, steps: int) -> dict[str, object]:
    """All that must be equal at the end."""
    from safetensors.torch import load_file

    last = out / "checkpoints" / "isometric" / f"step-{steps}"
    state: dict[str, object] = {f"log {i}": line for i, line in enumerate((out / "logs/isometric.jsonl").open())}
    for file in [*sorted((out / "isometric").rglob("*.safetensors")), last / "model.safetensors"]:
        state |= {f"{file.parent.name}/{file.name}: {name}": tensor for name, tensor in load_file(file).items()}
    for name in ("optimizer.bin", "scheduler.bin", "average.pt", "guard.pt"):
        flatten(name, torch.load(last / name, weights_only=True), state)
    return state


def flatten(name: str, value: object, into: dict[str, object]) -> None:
    """Nested containers as one dictionary of leaves."""
    if isinstance(value, dict):
        for key, entry in value.items():
            flatten(f"{name}/{key}", entry, into)
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            flatten(f"{name}/{number}", entry, into)
    else:
        into[name] = value


def differences(one: dict[str, object], two: dict[str, object]) -> list[str]:
    """Names of what is not equal to the last bit."""

    def same(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a == b)

    return sorted(one.keys() ^ two.keys()) + [name for name in one.keys() & two.keys() if not same(one[name], two[name])]


def torture(folder: Path, *, kills: int, steps: int, seed: int, damage_every: int = 6) -> dict[str, object]:
    """Strike ``kills`` times, let the run end, compare; what happened.

    Raises:
        RuntimeError: the run failed by itself, or a strike ended in a traceback.
    """
    rng = random.Random(seed)
    process = start(folder / "whole", steps)
    text, _ = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"the run fails without any kill:\n{text}")
    out = folder / "struck"
    struck = dict.fromkeys(KINDS, 0)
    damaged, restarts, warned, codes = [], 0, 0, []
    while sum(struck.values()) < kills:
        if (out / "metrics.json").is_file():  # it got to the end between the strikes: once more, from the beginning
            compare(folder, out, steps)
            restarts += 1
            out = folder / f"struck-{restarts}"
        kind = KINDS[sum(struck.values()) % len(KINDS)]
        text, code = kill_at_random(out, steps, kind, rng)
        warned += text.count("is damaged")
        if code == 0:
            continue  # it ended before the strike
        expected = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}[kind.split()[0]]
        # A signal before Python has its handlers ends the process in the system's own way.
        if code not in (expected, -getattr(signal, kind.split()[0])) or (code > 0 and "Traceback" in text):
            raise RuntimeError(f"{kind} ended with {code}:\n{text}")
        struck[kind] += 1
        codes.append(code)
        print(f"{sum(struck.values()):>3}  {kind:<22} exit {code:>4}  after step {steps_logged(out)}", flush=True)
        if sum(struck.values()) % damage_every == 0 and (what := damage(out, rng)):
            damaged.append(what)
            print(f"     damaged {what}", flush=True)
    process = start(out, steps)
    text, _ = process.communicate(timeout=600)
    warned += text.count("is damaged")
    if process.returncode:
        raise RuntimeError(f"the run does not go on:\n{text}")
    compare(folder, out, steps)
    return {
        "kills": struck,
        "exit_codes": {str(code): codes.count(code) for code in sorted(set(codes))},
        "damaged": len(damaged),
        "told": warned,
        "runs_finished": restarts + 1,
        "left_over": [str(path.name) for path in out.rglob(".*partial*")],
    }


def compare(folder: Path, out: Path, steps: int) -> None:
    """Stop at the first bit that differs from the run that nothing stopped."""
    wrong = differences(state_of(folder / "whole", steps), state_of(out, steps))
    if wrong:
        raise RuntimeError(f"{out} differs from an uninterrupted run in {len(wrong)} entries, such as {wrong[:5]}")


def main() -> None:
    """Run it and print what happened as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of a run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = torture(Path(folder), kills=options.kills, steps=options.steps, seed=options.seed)
    print(json.dumps({**result, "seconds": round(time.monotonic() - begun), "bit_identical": True}, indent=2))


if __name__ == "__main__":
    main()
