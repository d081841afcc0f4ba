"""Three autograd functions that are each other's derivatives, for an operator that knows its first two.

The loss of a Jacobian needs of every operator y = P(x; θ): its pullback V(c) = Jᵀc, its pushforward T(v) = J v, and the
gradient of the form B(c, v) = ⟨c, J v⟩, which is the last derivative of either:

    P → V,θ-gradients        V: dc = T(v), d(x, θ) = ∂B(c, v)        T: dv = V(c), d(x, θ) = ∂B(c, v)

An operator gives those in closed form. Where yet another derivative is asked for, or torch.func transforms are at work
in a way that the closed forms do not cover, ``plain`` takes their place: the operator from PyTorch's own operations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from georeg.kernels.function import Rule
from georeg.kernels.mode import cotangents_only, in_functorch, skips, zero_cotangents

Maybe = Tensor | None


class Operator(ABC):
    """An operator with first- and second-order rules; its settings are the attributes of a frozen dataclass.

    Its arguments are ``points`` tensors with a batch axis in front, each sample alone, and then ``parameters`` more,
    which may be None. ``stats`` are what ``forward`` keeps for the rules beside its arguments, with the same batch axis.
    Of an operator that ``is_large`` the points are never repeated for several directions, which go one by one instead.
    """

    points: ClassVar[int]
    parameters: ClassVar[int]
    is_large: ClassVar[bool] = False

    @abstractmethod
    def plain(self, *primals: Any) -> Tensor:
        """y by operations of PyTorch that can be differentiated any number of times, in either mode, and vectorised."""

    @abstractmethod
    def forward(self, *primals: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """y and the stats."""

    @abstractmethod
    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        """Gradients of ⟨c, y⟩ with respect to the primals that are wanted."""

    @abstractmethod
    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        """J v for tangents of the points, None being zero."""

    @abstractmethod
    def second(
        self,
        c: Tensor,
        tangents: Sequence[Maybe],
        primals: Sequence[Any],
        stats: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        push: bool,
        pull: bool,
    ) -> tuple[Maybe, tuple[Maybe, ...], tuple[Maybe, ...]]:
        """T(v) if ``push``, V(c) for the points if ``pull``, and the wanted gradients of B(c, v)."""

    def __call__(self, *primals: Any) -> Tensor:
        return _Value.apply(self, *primals)[0]


def _differentiable(
    operator: Operator, c: Tensor, tangents: Sequence[Maybe], primals: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Maybe, ...]:
    """∂B/∂primals through the plain operator: with a graph, to any order."""
    chosen = [i for i, want in enumerate(wanted) if want]
    if not chosen:
        return (None,) * len(primals)
    filled = tuple(torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=False))

    def form(*values: Tensor) -> Tensor:
        full = list(primals)
        for i, value in zip(chosen, values, strict=True):
            full[i] = value
        points, parameters = full[: operator.points], full[operator.points :]
        return (c * _jvp(lambda *p: operator.plain(*p, *parameters), points, filled)).sum()

    found = _gradients(form, [primals[i] for i in chosen])
    gradients: list[Maybe] = [None] * len(primals)
    for i, gradient in zip(chosen, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)


def _plain_pullback(operator: Operator, c: Tensor, primals: Sequence[Any], chosen: Sequence[int]) -> tuple[Tensor, ...]:
    """Gradients of ⟨c, y⟩ with respect to some primals, through the plain operator."""

    def partial(*values: Tensor) -> Tensor:
        full = list(primals)
        for i, value in zip(chosen, values, strict=True):
            full[i] = value
        return operator.plain(*full)

    return _pulled(partial, [primals[i] for i in chosen], c)


def _wanted(ctx: Any, primals: Sequence[Any], operator: Operator, first: int) -> list[bool]:
    """Which primals get a gradient now; ``first`` is the position of the first of them among the inputs."""
    needed = ctx.needs_input_grad[first : first + len(primals)]
    return [
        want and not (i >= operator.points and skips(primal))
        for i, (want, primal) in enumerate(zip(needed, primals, strict=True))
    ]


class _Value(Rule):
    """P: primals ↦ y and the stats."""

    @staticmethod
    def forward(operator: Operator, *primals: Any) -> tuple[Tensor, ...]:
        y, stats = operator.forward(*primals)
        return (y, *stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operator, *primals = inputs
        ctx.count = len(primals)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # or each backward pass would fill zeros for the stats
        ctx.save_for_backward(*primals, *output[1:])
        ctx.save_for_forward(*primals, *output[1:])

    @staticmethod
    def backward(ctx: Any, c: Maybe, *_: Any) -> tuple[Any, ...]:
        if c is None:
            return (None,) * (1 + ctx.count)
        operator, primals = ctx.operator, ctx.saved_tensors[: ctx.count]
        stats = ctx.saved_tensors[ctx.count :]
        wanted = _wanted(ctx, primals, operator, 1)
        if not torch.is_grad_enabled() and not in_functorch():
            return (None, *operator.pullback(c, primals, stats, wanted))
        gradients: list[Maybe] = [None] * len(primals)
        if any(wanted[: operator.points]):
            gradients[: operator.points] = _Pullback.apply(operator, c, *primals, *stats)
        chosen = [i for i, want in enumerate(wanted) if want and i >= operator.points]
        for i, gradient in zip(chosen, _plain_pullback(operator, c, primals, chosen) if chosen else (), strict=True):
            gradients[i] = gradient
        return (None, *gradients)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Maybe) -> tuple[Any, ...]:
        operator, primals = ctx.operator, ctx.saved_tensors[: ctx.count]
        stats = ctx.saved_tensors[ctx.count :]
        points = operator.points
        if all(t is None for t in tangents[points:]):
            pushed = _Pushforward.apply(operator, *tangents[:points], *primals, *stats)
        else:
            pushed = _plain_jvp(operator.plain, primals, tangents)
        return (pushed, *[None] * len(stats))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: Operator, *primals: Any) -> tuple[Any, Any]:
        if _batched_parameters(in_dims[1 + operator.points :]):
            y = torch.func.vmap(operator.plain, in_dims=in_dims[1:])(*primals)
            _, stats = torch.func.vmap(operator.forward, in_dims=in_dims[1:])(*primals)
            return (y, *stats), (0,) * (1 + len(stats))
        folded = _folded(info.batch_size, primals[: operator.points], in_dims[1 : 1 + operator.points])
        outputs = _Value.apply(operator, *folded, *primals[operator.points :])
        return tuple(o.unflatten(0, (info.batch_size, -1)) for o in outputs), (0,) * len(outputs)


class _Pullback(Rule):
    """V: cotangent, primals and stats ↦ the gradients of the points."""

    @staticmethod
    def forward(operator: Operator, c: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        primals, stats = _split(operator, rest)
        if zero_cotangents():
            return tuple(p.new_zeros(()).expand(p.shape) for p in primals[: operator.points])
        found = operator.pullback(c, primals, stats, _points_only(operator, primals))
        return found[: operator.points]  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operator, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *tangents: Maybe) -> tuple[Any, ...]:
        operator, (c, *rest) = ctx.operator, ctx.saved_tensors
        primals, stats = _split(operator, rest)
        nothing = [None] * len(rest)
        if all(t is None for t in tangents):
            return (None, None, *nothing)
        push = ctx.needs_input_grad[1]
        wanted = [False] * len(primals) if cotangents_only() else _wanted(ctx, primals, operator, 2)
        if torch.is_grad_enabled() or in_functorch():
            pushed = _Pushforward.apply(operator, *tangents, *rest) if push else None
            gradients = _differentiable(operator, c, tangents, primals, wanted)
        elif not any(wanted):
            pushed, gradients = operator.pushforward(tangents, primals, stats) if push else None, (None,) * len(primals)
        else:
            pushed, _, gradients = operator.second(c, tangents, primals, stats, wanted, push=push, pull=False)
        return (None, pushed, *gradients, *[None] * len(stats))

    @staticmethod
    def jvp(ctx: Any, _: None, dc: Maybe, *rest: Maybe) -> tuple[Any, ...]:
        operator, (c, *saved) = ctx.operator, ctx.saved_tensors
        primals, _stats = _split(operator, saved)

        def pull(cotangent: Tensor, *values: Any) -> tuple[Tensor, ...]:
            return _plain_pullback(operator, cotangent, values, range(operator.points))

        return _plain_jvp(pull, (c, *primals), (dc, *rest[: len(primals)]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: Operator, c: Tensor, *rest: Any) -> tuple[Any, Any]:
        primals, stats = _split(operator, rest)
        dims = in_dims[2 : 2 + len(primals)]
        points = operator.points
        if _batched_parameters(dims[points:]):

            def pull(cotangent: Tensor, *values: Any) -> tuple[Tensor, ...]:
                return _plain_pullback(operator, cotangent, values, range(points))

            return torch.func.vmap(pull, in_dims=(in_dims[1], *dims))(c, *primals), (0,) * points
        size = info.batch_size
        if operator.is_large and all(dim is None for dim in in_dims[2:]):
            each = [_Pullback.apply(operator, one, *rest) for one in c.unbind(in_dims[1])]
            return tuple(torch.stack(g) for g in zip(*each, strict=True)), (0,) * points
        (cotangent,) = _folded(size, [c], [in_dims[1]])
        folded = _folded(size, primals[:points], dims[:points])
        kept = _folded(size, stats, in_dims[2 + len(primals) :])
        found = _Pullback.apply(operator, cotangent, *folded, *primals[points:], *kept)
        return tuple(g.unflatten(0, (size, -1)) for g in found), (0,) * points


class _Pushforward(Rule):
    """T: tangents of the points, primals and stats ↦ J v."""

    @staticmethod
    def forward(operator: Operator, *rest: Any) -> Tensor:
        tangents, (primals, stats) = rest[: operator.points], _split(operator, rest[operator.points :])
        return operator.pushforward(tangents, primals, stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Any, ...]:
        operator = ctx.operator
        points = operator.points
        tangents, rest = ctx.saved_tensors[:points], ctx.saved_tensors[points:]
        primals, stats = _split(operator, rest)
        pull = any(ctx.needs_input_grad[1 : 1 + points])
        wanted = _wanted(ctx, primals, operator, 1 + points)
        pulled: tuple[Maybe, ...] = (None,) * points
        if torch.is_grad_enabled() or in_functorch():
            if pull:
                pulled = _Pullback.apply(operator, c, *rest)
            gradients = _differentiable(operator, c, tangents, primals, wanted)
        elif not any(wanted):
            gradients = (None,) * len(primals)
            if pull:
                pulled = operator.pullback(c, primals, stats, _points_only(operator, primals))[:points]
        else:
            _, pulled, gradients = operator.second(c, tangents, primals, stats, wanted, push=False, pull=pull)
        pulled = tuple(p if t is not None else None for p, t in zip(pulled, tangents, strict=True)) if pull else pulled
        return (None, *pulled, *gradients, *[None] * len(stats))

    @staticmethod
    def jvp(ctx: Any, _: None, *changes: Maybe) -> Any:
        operator, saved = ctx.operator, ctx.saved_tensors
        points = operator.points
        primals, _stats = _split(operator, saved[points:])

        def push(*values: Any) -> Tensor:
            directions, at = values[:points], values[points:]
            parameters = at[points:]
            return _jvp(lambda *p: operator.plain(*p, *parameters), at[:points], directions)

        directions = [torch.zeros_like(p) if t is None else t for t, p in zip(saved[:points], primals, strict=False)]
        return _plain_jvp(push, (*directions, *primals), changes[: points + len(primals)])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: Operator, *rest: Any) -> tuple[Any, Any]:
        points, size = operator.points, info.batch_size
        tangents, (primals, stats) = rest[:points], _split(operator, rest[points:])
        dims = in_dims[1:]
        at = dims[points : points + len(primals)]
        if _batched_parameters(at[points:]):

            def push(*values: Any) -> Tensor:
                parameters = values[2 * points :]
                at = values[points : 2 * points]
                return _jvp(lambda *p: operator.plain(*p, *parameters), at, values[:points])

            directions = [torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=False)]
            where = [a if t is None else d for t, d, a in zip(tangents, dims, at, strict=False)]
            return torch.func.vmap(push, in_dims=(*where, *at))(*directions, *primals), 0
        if operator.is_large and all(dim is None for dim in dims[points:]):
            along = [t if d is None else t.movedim(d, 0) for t, d in zip(tangents, dims, strict=False)]
            each = [
                _Pushforward.apply(
                    operator, *(t if d is None else t[i] for t, d in zip(along, dims, strict=False)), *rest[points:]
                )
                for i in range(size)
            ]
            return torch.stack(each), 0
        directions = _folded(size, tangents, dims[:points])
        folded = _folded(size, primals[:points], at[:points])
        kept = _folded(size, stats, dims[points + len(primals) :])
        pushed = _Pushforward.apply(operator, *directions, *folded, *primals[points:], *kept)
        return pushed.unflatten(0, (size, -1)), 0


def _split(operator: Operator, rest: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Tensor]]:
    """Primals and stats, of a sequence that holds the one and then the other."""
    count = operator.points + operator.parameters
    return rest[:count], rest[count:]


def _points_only(operator: Operator, primals: Sequence[Any]) -> list[bool]:
    return [i < operator.points for i in range(len(primals))]


def _batched_parameters(in_dims: Sequence[Any]) -> bool:
    return any(dim is not None for dim in in_dims)


def _folded(size: int, tensors: Sequence[Maybe], in_dims: Sequence[Any]) -> list[Maybe]:
    """vmap's axis moved into the batch axis in front; a tensor without it is repeated."""

    def fold(tensor: Maybe, dim: int | None) -> Maybe:
        if tensor is None:
            return None
        moved = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
        return moved.flatten(0, 1)

    return [fold(tensor, dim) for tensor, dim in zip(tensors, in_dims, strict=True)]


def _plain_jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Maybe]) -> Any:
    """The forward derivative of f along the tangents that are not None."""
    moving = [i for i, t in enumerate(tangents) if t is not None]

    def partial(*values: Tensor) -> Any:
        full = list(primals)
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return f(*full)

    return _jvp(partial, [primals[i] for i in moving], [tangents[i] for i in moving])


def _pulled(f: Callable[..., Tensor], values: Sequence[Tensor], c: Any) -> tuple[Tensor, ...]:
    """Gradients of ⟨c, f(values)⟩, with a graph.

    By autograd itself where it can be, since torch.func refuses to run under hooks on saved tensors; of views, so that
    another way in which c depends on the values does not count.
    """
    if in_functorch():
        return tuple(torch.func.vjp(f, *values)[1](c))
    with torch.enable_grad():
        views = [v.view_as(v) if v.requires_grad else v.detach().requires_grad_() for v in values]
        return torch.autograd.grad(f(*views), views, c, create_graph=True, materialize_grads=True)


def _gradients(f: Callable[..., Tensor], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a scalar, with a graph."""
    return _pulled(f, values, None if not in_functorch() else torch.ones((), dtype=values[0].dtype, device=values[0].device))


def _jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """J v as the derivative of Jᵀu by u: forward mode, which this may run inside of, does not nest."""
    if not in_functorch() and not torch.autograd.forward_ad._current_level >= 0:
        with torch.enable_grad():
            views = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in primals]
            y = f(*views)
            outputs = y if isinstance(y, tuple) else (y,)
            u = [torch.zeros_like(o).requires_grad_() for o in outputs]
            g = torch.autograd.grad(outputs, views, u, create_graph=True, materialize_grads=True)
            pushed = torch.autograd.grad(g, u, tuple(tangents), create_graph=True, materialize_grads=True)
        return pushed if isinstance(y, tuple) else pushed[0]
    linear: Any = torch.func.vjp(f, *primals)
    y, pull = linear
    return torch.func.vjp(pull, tree_map(torch.zeros_like, y))[1](tuple(tangents))[0]
