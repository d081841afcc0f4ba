"""Triton's kernels on a GPU where there is one, and elsewhere on the CPU by Triton's interpreter.

The interpreter has to be chosen before Triton is imported at all: ``TRITON_INTERPRET=1 pytest tests/georeg/kernels/triton``
tests what tests/georeg/kernels/test_triton.py runs in a process of its own.
"""

import os

import pytest
import torch


@pytest.fixture(scope="package")
def device():
    if torch.cuda.is_available():
        return "cuda"
    pytest.importorskip("triton", reason="Triton is not installed here")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without a GPU Triton is interpreted: TRITON_INTERPRET=1; test_triton.py does so")
    return "cpu"


@pytest.fixture(autouse=True)
def _on_a_device(device):
    """Every test here needs one."""


@pytest.fixture
def dtype(device):
    """The interpreter computes in float64 too, which the compiled kernels do not."""
    return torch.float64 if device == "cpu" else torch.float32
