"""Shared fixtures. Float64 and a fixed seed unless a test says otherwise."""

import pytest
import torch

# Small networks: more threads than cores, under xdist, would slow every test tenfold.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def attention_kernels():
    """Whether torch may take each of its kernels for attention, of the whole process."""
    names = ("flash", "mem_efficient", "math", "cudnn")
    return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in names}


@pytest.fixture(autouse=True)
def _leaves_attention_as_it_was():
    """A switch left over would cost whoever comes next the memory of an L × L matrix."""
    before = attention_kernels()
    yield
    assert attention_kernels() == before


def gradients(loss, parameters):
    """Concatenated gradient, zeros where a parameter has none."""
    parameters = list(parameters)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)])
