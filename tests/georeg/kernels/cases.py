"""What the tests of all kernels share: derivatives of an operator as the isometry loss takes them, and what is kept."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from georeg.kernels.mode import products_only


def products(op, point, u=None, v=None, *, through_modes=True):
    """y = op(point), g = Jᵀu of a fixed probe and q = J v of g, unless others are given, with their graphs; with or without
    the modes of the engine."""
    y = op(point)
    if u is None:
        u = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape).requires_grad_()
    with products_only() if through_modes else torch.enable_grad():
        (g,) = torch.autograd.grad(y, point, u, create_graph=True)
    with products_only(cotangents=True) if through_modes else torch.enable_grad():
        (q,) = torch.autograd.grad(g, u, g if v is None else v, create_graph=True)
    return y, g, q


def third(op, point, parameters, *, through_modes=True):
    """∂(τ₁ + τ₂)/∂(point, parameters) of y = op(point) by one fixed probe; with or without the modes of the engine."""
    _, g, q = products(op, point, through_modes=through_modes)
    return torch.autograd.grad(q.square().sum() + g.square().sum(), [point, *parameters], materialize_grads=True)


def kept_bytes(run):
    """Bytes of distinct storages that autograd keeps while run() builds its graph."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(storages.values())


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class _Copies(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.elements += out.numel()
        return out


def copied(run):
    """Elements that are copied while run() runs."""
    with _Copies() as copies:
        run()
    return copies.elements
