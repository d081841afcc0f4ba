"""What one process of a distributed test runs, under torchrun or alone: `FOLDER JSON`."""

import json
import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from torch.distributed.tensor import DTensor

from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.images import Images
from georeg_diffusion.objective import IsometricDiffusionLoss
from georeg_diffusion.options import resolve
from georeg_diffusion.schedule import IsometryGate
from georeg_diffusion.training import run, sharding
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.phase import Phase, train_phase
from tests.georeg_diffusion.conftest import small_unet

STEPS = 5


class Noise(Images):
    """Images of the default dtype, flipped by the draw's own chance."""

    name, channels, resolution, random_flip = "noise", 1, 8, True

    def __len__(self):
        return 48

    def image(self, index, rng=None):
        image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(index), dtype=torch.get_default_dtype())
        return image.flip(-1) if rng is not None and rng.random() < 0.5 else image


def train(folder, runs):
    """Several runs, one after the other: a name, a dtype and options for each."""
    for name, (dtype, options) in json.loads(runs).items():
        AcceleratorState._reset_state()
        GradientState._reset_state()
        os.environ |= {"ACCELERATE_USE_FSDP": str(options.pop("sharded", False)), "FSDP_VERSION": "2"}
        torch.set_default_dtype(getattr(torch, dtype))
        train_one(Path(folder), name, **options)


def train_one(folder, name, *, steps=STEPS, goes_on_from=None, **options):
    """The trainer's own phase on a small network: weights, running means, what was communicated and what was kept."""
    out = folder / (goes_on_from or name)
    fixed = {"cpu": True, "report_to": "none", "logging_steps": 100, "output_dir": out}
    config = resolve(TrainConfig, [], {**fixed, **options})
    accelerator = run._accelerator(config)
    torch.manual_seed(0)
    bundle = Bundle(small_unet(dropout=0.0), diffusers.DDPMScheduler())
    counted, all_reduce = [], dist.all_reduce

    def counting(tensor, *args, **kwargs):  # DDP's own buckets do not pass here
        counted.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    made = {"objective": IsometricDiffusionLoss, "adam": torch.optim.Adam, "average": diffusers.training_utils.EMAModel}
    held = {}
    with ExitStack() as kept:
        made = {name: kept.enter_context(last_made(kind)) for name, kind in made.items()}
        kept.enter_context(mock.patch.object(dist, "all_reduce", counting))
        gather = sharding.gather

        def look(network):  # at the end of the phase, as at that of every step
            held["parameters"] = numbers(network.parameters())
            held["adam"] = numbers(t for state in made["adam"][-1].state.values() for t in state.values() if t.ndim)
            held["average"] = numbers(made["average"][-1].shadow_params)
            return gather(network)

        kept.enter_context(mock.patch.object(sharding, "gather", look))
        train_phase(accelerator, bundle, Noise(), config, Phase("isometric", "t", steps, 1e-3, config.lambda_iso), out)
    running = made["objective"][0].regularizer.running
    result = {
        "weights": dict(bundle.network.named_parameters()),
        "running": None if running is None else (running.numerator, running.weight),
        "all_reduced": counted,
        "held": held,
    }
    torch.save(result, folder / f"{name}-{accelerator.process_index}.pt")


@contextmanager
def last_made(kind):
    """The instances of a class that are made within it."""
    made, init = [], kind.__init__

    def keep(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    with mock.patch.object(kind, "__init__", keep):
        yield made


def numbers(tensors):
    """How many of them lie in this process."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def both(folder, runs):
    """Training and gradients in one launch, which is what takes the time."""
    train(folder, runs)
    torch.set_default_dtype(torch.float32)
    gate(folder)


def gate(folder):
    """Averaged gradients of the objective where ranks have different numbers of rows, and of those past the gate."""
    rank, results = dist.get_rank(), {}
    for name, (first, timesteps) in CASES.items():
        for recompute in (False, True):
            network = whole_network()
            objective = gated_objective(network, recompute)
            ddp = torch.nn.parallel.DistributedDataParallel(objective)
            x, t, seeds = rows(timesteps)
            mine = slice(0, first) if rank == 0 else slice(first, None)
            for _ in range(2):  # a reducer that was left waiting shows in the second step
                network.zero_grad()
                out = ddp(x[mine], t[mine], generator=generators(seeds[mine]))
                out.loss.backward()
            results[name, recompute] = (
                {k: p.grad.clone() for k, p in network.named_parameters()},
                out.isometry.detach(),
                out.functional,
                out.gated,
            )
    torch.save(results, f"{folder}/gate-{rank}.pt")


# Rows of rank 0, and the timesteps of all rows; above 500 the gate is open.
CASES = {
    "3 and 1 of 4 and 4 gated": (4, [600, 700, 800, 10, 20, 990, 30, 40]),
    "0 and 2 of 3 and 3 gated": (3, [1, 2, 3, 600, 900, 5]),
    "none gated": (2, [1, 2, 3, 4]),
    "0 rows and 5": (0, [600, 700, 100, 900, 800]),
    "4 rows and 0": (4, [600, 100, 900, 800]),
    "unequal rows": (1, [600, 900, 100, 800, 700]),
    "0 rows and 2 that are not gated": (0, [10, 20]),
}


def whole_network():
    torch.manual_seed(0)
    return small_unet().double()


def gated_objective(network, recompute):
    options = {"gate": IsometryGate(weight=0.5, skip=0.5), "timestep_bins": 4, "momentum": None, "scope": "global"}
    return IsometricDiffusionLoss(network, diffusers.DDPMScheduler(), recompute=recompute, **options)


def rows(timesteps):
    x = torch.randn(len(timesteps), 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return x, torch.tensor(timesteps), list(range(len(timesteps)))


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


if __name__ == "__main__":
    torch.set_num_threads(1)
    both(*sys.argv[1:])
    if dist.is_initialized():
        dist.destroy_process_group()
