"""What all benchmarks share: the device, the size, and one way to check, count and time a step."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.step_cost import cuda_peak, quotient, synchronised
from georeg_diffusion.cost import peak_bytes_of, work_of

Step = Callable[[], Tensor]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs an NVIDIA GPU (make bench-gpu)")
    if config.getoption("benchmark_disable", default=False):
        torch.set_num_threads(1)  # the smoke run shares its cores with other processes


def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    """What the report says of the machine that was measured, which need not be the one that reports."""
    is_cuda = torch.cuda.is_available()
    machine_info["torch"] = torch.__version__
    machine_info["accelerator"] = torch.cuda.get_device_name() if is_cuda else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))


@pytest.fixture(scope="session")
def is_smoke(request: pytest.FixtureRequest) -> bool:
    """Whether only correctness is of interest, at the smallest size."""
    return bool(request.config.getoption("benchmark_disable"))


@pytest.fixture
def measure(benchmark, is_smoke: bool, device: str):
    """Count a step's work and peak bytes, then time it with its backward pass; what belongs together has one ``group``."""
    is_cuda = device == "cuda"

    def run(
        step: Step, *, group: str, case: str, rounds: int = 5, is_vectorised: bool = False,
        setup: Callable[[], None] = lambda: None, against: Step | None = None, **info: object,
    ) -> None:  # fmt: skip
        """``is_vectorised``: vmap's grouped convolutions, whose formula in torch's counter is wrong; work is left out.

        ``setup`` runs before each step and is not timed: it clears the gradients, as training does. ``against``: a step
        that takes turns with this one; over how much of its time this one takes, what else the machine does cancels.
        """
        benchmark.group = group
        benchmark.extra_info.update(case=case, threads=torch.get_num_threads(), **info)
        if is_cuda:
            step().backward()  # cuDNN chooses its kernels, and Triton's are compiled
        benchmark.extra_info.update(peak_bytes=cuda_peak(step) if is_cuda else peak_bytes_of(step))
        if not is_vectorised:
            benchmark.extra_info.update(work=work_of(step))

        def timed() -> None:
            step().backward()
            if is_cuda:
                synchronised()

        clock = synchronised if is_cuda else time.perf_counter
        others: list[float] = []

        def before() -> None:
            if against is not None:
                setup()
                started = clock()
                against().backward()
                others.append(clock() - started)
            setup()

        # What was counted has run already, and is warm.
        rounds = 1 if is_smoke else 4 * rounds if is_cuda else rounds
        benchmark.pedantic(timed, setup=before, rounds=rounds)
        if against is not None and rounds > 1:
            found = quotient(benchmark.stats.stats.data, others)
            benchmark.extra_info.update(zip(("over_ours", "over_ours_lower", "over_ours_upper"), found, strict=True))

    return run
