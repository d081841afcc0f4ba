"""Directions on disk, with what it takes to use them again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from georeg_diffusion.errors import RunError
from georeg_diffusion.files import replacing


@dataclass(frozen=True)
class DirectionsInfo:
    """Where directions come from.

    Attributes:
        space: ``"x"`` (tangents of the sphere) or ``"h"``.
        names: of the k directions, for pictures.
        method: such as ``"local-basis"``.
        model: SHA-256 of the network's weights.
        timestep: at which they were found.
        sources: names of the samples, where each has directions of its own.

    Example:
        >>> from georeg_diffusion.editing.directions import DirectionsInfo
        >>> DirectionsInfo("x", ("v1", "v2")).method
        ''
    """

    space: str
    names: tuple[str, ...]
    method: str = ""
    model: str = ""
    timestep: float | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Directions:
    """k directions in x or in h.

    Attributes:
        vectors: ``(k, B, ...)``, or ``(k, 1, ...)`` for all samples.
        info: where they come from.
        values: singular values ``(k, B)`` or ``(k, 1)``, where there are some.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.directions import Directions, DirectionsInfo
        >>> len(Directions(torch.zeros(2, 1, 1, 8, 8), DirectionsInfo("x", ("v1", "v2"))))
        2
    """

    vectors: Tensor
    info: DirectionsInfo
    values: Tensor | None = field(default=None)

    def __len__(self) -> int:
        return len(self.vectors)


def save_directions(target: Path, directions: Directions) -> None:
    """Write directions as safetensors, whole or not at all.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from georeg_diffusion.editing.directions import Directions, DirectionsInfo, load_directions, save_directions
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "directions.safetensors"
        ...     save_directions(file, Directions(torch.ones(1, 1, 1, 8, 8), DirectionsInfo("x", ("smile",))))
        ...     load_directions(file, {"x": (1, 8, 8)}).info.names
        ('smile',)
    """
    tensors = {"directions": directions.vectors}
    if directions.values is not None:
        tensors["values"] = directions.values
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(target) as scratch:
        save_file(plain, scratch, {"georeg": json.dumps(asdict(directions.info))})


def load_directions(file: Path, shapes: dict[str, tuple[int, ...]]) -> Directions:
    """Read directions, also another program's: its one tensor ``(...)``, ``(k, ...)`` or ``(k, B, ...)``.

    Args:
        file: what :func:`save_directions` wrote.
        shapes: of one vector in each space, such as ``{"x": (3, 32, 32), "h": (512, 4, 4)}``.

    Raises:
        RunError: the file is missing, damaged, or holds no directions of these shapes, or zero or NaN.
    """
    if not file.is_file():
        raise RunError(
            f"{file} {'is not a file' if file.exists() else 'does not exist'}, expected directions (.safetensors)"
        )
    try:
        with safe_open(str(file), framework="pt") as opened:
            names, metadata = list(opened.keys()), opened.metadata() or {}
            name = "directions" if "directions" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise RunError(f"{file} holds the tensors {', '.join(names) or '(none)'}, expected one named directions")
            vectors: Tensor = opened.get_tensor(name)
            values = opened.get_tensor("values") if "values" in names and name != "values" else None
        info = _info(json.loads(metadata["georeg"])) if "georeg" in metadata else None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"cannot read the directions {file}: {' '.join(str(error).split())}") from error
    space = info.space if info else next((s for s, shape in shapes.items() if _fits(vectors, shape)), "")
    if space not in shapes or not _fits(vectors, shapes[space]) or not vectors.is_floating_point():
        expected = " or ".join(f"(k, B, {', '.join(map(str, shape))}) in {s}" for s, shape in shapes.items())
        raise RunError(
            f"{file} holds {vectors.dtype} of shape {tuple(vectors.shape)}, expected directions of this model, {expected}"
        )
    missing = len(shapes[space]) + 2 - vectors.ndim
    vectors = vectors.unsqueeze(-len(shapes[space]) - 1) if missing else vectors
    vectors = vectors[None] if missing == 2 else vectors
    lengths = torch.linalg.vector_norm(vectors.double().flatten(2), dim=2)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise RunError(f"{file} holds directions that are zero or not finite (NaN or infinity)")
    if info is None or len(info.names) != len(vectors):
        info = DirectionsInfo(space, tuple(f"direction {i + 1}" for i in range(len(vectors))))
    if values is not None and (values.ndim != 2 or len(values) != len(vectors)):
        values = None
    return Directions(vectors, info, values)


def _fits(vectors: Tensor, shape: tuple[int, ...]) -> bool:
    leading = vectors.ndim - len(shape)
    return 0 <= leading <= 2 and tuple(vectors.shape[leading:]) == tuple(shape) and vectors.numel() > 0


def _info(content: dict[str, object]) -> DirectionsInfo:
    info = DirectionsInfo(**content)  # type: ignore[arg-type]
    timestep = None if info.timestep is None else float(info.timestep)
    names, sources = tuple(map(str, info.names)), tuple(map(str, info.sources))
    return DirectionsInfo(str(info.space), names, str(info.method), str(info.model), timestep, sources)
