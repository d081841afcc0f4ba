"""The mathematics of linear separability: kernel machines on latents, and the entropy that they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from georeg import Estimate

FOLDS = 5


def gram(x: Tensor, kernel: str) -> Tensor:
    """Kernel of all pairs ``(n, n)`` in float64: xᵀx′, or exp(−γ‖x − x′‖²) with γ = 1/(d Var x), as scikit-learn scales it.

    Args:
        x: points ``(n, ...)``.
        kernel: ``"linear"`` or ``"radial"``.

    Raises:
        ValueError: another kernel.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.separability import gram
        >>> gram(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "linear").tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """
    flat = x.flatten(1).double() if x.numel() < 1e8 else x.flatten(1)
    products = (flat @ flat.T).double()
    if kernel == "linear":
        return products
    if kernel != "radial":
        raise ValueError(f"kernel: got {kernel!r}, expected 'linear' or 'radial'")
    norms = products.diagonal()
    squared = (norms[:, None] + norms - 2 * products).clamp_min(0)
    spread = flat.shape[1] * float(flat.double().var(correction=0)) if x.numel() else 1.0
    return (-squared / max(spread, torch.finfo(torch.float64).tiny)).exp()


def predictions(products: Tensor, labels: Tensor, *, in_sample: bool = False, seed: int = 0) -> Tensor:
    """What support vector machines (C = 1) say of each point ``(n,)``.

    Args:
        products: kernel of all pairs ``(n, n)``.
        labels: ``(n,)`` integers.
        in_sample: one machine for all, which has seen each point; otherwise each of 5 stratified folds is predicted by a
            machine that was trained on the others.
        seed: of the folds.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.separability import gram, predictions
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> y = (x[:, 0] > 0).long()
        >>> bool((predictions(gram(100 * x, "linear"), y) == y).all())
        True
    """
    if len(labels.unique()) < 2:
        raise ValueError(f"labels: got {len(labels.unique())} class, expected at least 2")
    everything = torch.arange(len(labels))
    if in_sample:
        return _fitted(products, labels, everything, everything)
    fold = torch.empty_like(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class by class, each in a random order
    fold[order] = torch.arange(len(labels)) % FOLDS
    found = torch.empty_like(labels)
    for i in range(FOLDS):
        inside = everything[fold == i]
        found[inside] = _fitted(products, labels, everything[fold != i], inside)
    return found


def _fitted(products: Tensor, labels: Tensor, train: Tensor, test: Tensor) -> Tensor:
    from sklearn.svm import SVC

    known = labels[train]
    if len(known.unique()) < 2:  # the only other point of a class is in the fold that is left out
        return known[:1].expand(len(test))
    machine = SVC(kernel="precomputed", C=1.0).fit(products[train][:, train].numpy(), known.numpy())
    return torch.as_tensor(machine.predict(products[test][:, train].numpy()))


def joint_table(rows: Tensor, said: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Counts ``(K, K)`` of (said, label), and the cell of each of ``count`` samples, −1 where it is not among ``rows``."""
    size = int(max(said.max(), labels.max())) + 1
    cells = said * size + labels
    where = torch.full((count,), -1)
    where[rows] = cells
    return torch.bincount(cells, minlength=size * size).reshape(size, size).double(), where


def conditional_entropy(table: Tensor) -> Tensor:
    """H(Y|X) in nats from counts ``(..., X, Y)``.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.separability import conditional_entropy
        >>> conditional_entropy(torch.tensor([[5.0, 0.0], [0.0, 5.0]])), conditional_entropy(torch.ones(2, 2)).exp()
        (tensor(0.), tensor(2.))
    """
    total = table.sum((-2, -1))
    joint, rows = table, table.sum(-1)
    return ((torch.xlogy(rows, rows).sum(-1) - torch.xlogy(joint, joint).sum((-2, -1))) / total).clamp_min(0)


def separability(tables: Sequence[tuple[Tensor, Tensor]], *, bits: bool = False) -> tuple[Estimate, dict[str, object]]:
    """e to the power of Σᵢ H(Yᵢ|Xᵢ), with its jackknifed standard error over samples, the machines as they are.

    Args:
        tables: of each attribute, from :func:`joint_table`.
        bits: entropies in bits, of which 2 to the power of their sum is the same number; in the details.
    """
    entropies = torch.stack([conditional_entropy(table) for table, _ in tables])
    chance = torch.stack([conditional_entropy(table.sum(0, keepdim=True)) for table, _ in tables])
    samples = max(len(where) for _, where in tables)
    without = entropies.sum().repeat(samples)
    for (table, where), entropy in zip(tables, entropies, strict=True):
        flat = table.flatten()
        less = (flat - torch.eye(len(flat), dtype=flat.dtype)).clamp_min(0).unflatten(1, table.shape)
        change = conditional_entropy(less) - entropy
        without = without + torch.where(where >= 0, change[where.clamp_min(0)], 0)
    n = samples
    left_out = without.exp()
    error = float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())
    details: dict[str, object] = {
        "entropies": (entropies / (math.log(2) if bits else 1)).tolist(),
        "chance": float(chance.sum().exp()),
        "accuracies": [float(table.diagonal().sum() / table.sum()) for table, _ in tables],
    }
    return Estimate(float(entropies.sum().exp()), error, n), details
