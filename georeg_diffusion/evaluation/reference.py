"""What generated images are compared with: features of real ones, or published statistics; kept on disk."""

from __future__ import annotations

import hashlib
import math
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.feature_moments import FeatureMoments
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, features_of
from georeg_diffusion.evaluation.score import OutOfTimeError
from georeg_diffusion.files import replacing
from georeg_diffusion.progress import Bar, progress

_KEPT = 10_000
_PART = 1024


@dataclass(frozen=True)
class Reference:
    """Statistics of real images under one feature network.

    Attributes:
        name: of the images, with their number.
        mean, covariance: of the features, ``(F,)`` and ``(F, F)``, float64.
        count: images; None where a published file does not say.
        features: of the images, or of 10,000 spread evenly over them ``(M, F)``; None for a published file, which has
            moments alone.
    """

    name: str
    mean: Tensor
    covariance: Tensor
    count: int | None
    features: Tensor | None


def reference_of(
    images: Images,
    network: FeatureNetwork,
    *,
    cache: Path | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    deadline: float = math.inf,
) -> Reference:
    """Statistics of a set of images, all of them, un-augmented.

    With a cache, features are kept in parts of 1,024 images until all are there, so that little is lost in between.

    Args:
        images: at the model's resolution.
        network: the features.
        cache: folder to keep the statistics in. The file's name is a hash of the network's weights, of the images
            (names, sizes and dates of files), their resolution and their number.
        batch_size: images at once.
        device: where the network is.
        deadline: by ``time.monotonic()``.

    Raises:
        RunError: fewer than two images.
        OutOfTimeError: the deadline has passed.
    """
    if len(images) < 2:
        raise RunError(f"--reference: {images.name} holds {len(images)} image, expected at least 2 for a covariance")
    name = f"{len(images):,} images of {images.name} at {images.resolution}²"
    target = None if cache is None else cache / f"reference-{_fingerprint(images, network)}.safetensors"
    state = _read(target, "mean", "covariance", "features")
    if state is None:
        moments, kept = None, []
        chosen = set(np.linspace(0, len(images) - 1, min(_KEPT, len(images)), dtype=int).tolist())
        parts = torch.arange(len(images)).split(_PART)
        files = [
            None if target is None else target.with_name(f"{target.stem}-part{i}.safetensors") for i in range(len(parts))
        ]
        with progress("Features of real images", len(images)) as bar:
            for rows, file in zip(parts, files, strict=True):
                features = _part(images, network, rows.split(batch_size), file, device, deadline, bar)
                part = FeatureMoments.of(features)
                moments = part if moments is None else moments + part
                kept.append(features[[int(row) in chosen for row in rows]])
        assert moments is not None
        state = {"mean": moments.mean, "covariance": moments.covariance, "features": torch.cat(kept)}
        _write(target, state)
        for file in files:
            if file is not None:
                file.unlink(missing_ok=True)
    return Reference(name, state["mean"], state["covariance"], len(images), state["features"])


def _part(
    images: Images,
    network: FeatureNetwork,
    batches: Sequence[Tensor],
    file: Path | None,
    device: torch.device | str,
    deadline: float,
    bar: Bar,
) -> Tensor:
    """Features of some of the images, kept in a file."""
    count = sum(map(len, batches))
    known = _read(file, "features")
    if known is not None and len(known["features"]) == count:
        bar.advance(steps=count)
        return known["features"]
    found = []
    for rows in batches:
        if time.monotonic() >= deadline:
            raise OutOfTimeError(f"out of time after the features of {bar.completed:,} of {len(images):,} real images")
        found.append(features_of(network, images.batch(rows).to(device)).cpu())
        bar.advance(steps=len(rows))
    _write(file, {"features": torch.cat(found)})
    return torch.cat(found)


def _write(target: Path | None, state: dict[str, Tensor]) -> None:
    if target is not None:
        with replacing(target) as scratch:
            save_file({key: value.contiguous() for key, value in state.items()}, scratch)


def _fingerprint(images: Images, network: FeatureNetwork) -> str:
    digest = hashlib.sha256(network.key.encode())
    digest.update(f"{images.name} {len(images)} {images.channels} {images.resolution}".encode())
    digest.update(images.fingerprint().encode())
    return digest.hexdigest()[:32]


def _read(target: Path | None, *names: str) -> dict[str, Tensor] | None:
    """What was kept; a damaged file is made anew."""
    if target is None or not target.is_file():
        return None
    try:
        state: dict[str, Tensor] = load_file(target)
    except (OSError, SafetensorError):
        return None
    return state if set(names) <= set(state) else None


def reference_from_file(file: Path) -> Reference:
    """Statistics published as ``.npz`` with ``mu`` and ``sigma``, as pytorch-fid writes them.

    Nothing in such a file says which features it was made with; it is on the user to pair it with the right ones.

    Raises:
        RunError: the file is missing, damaged, or holds something else.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            missing = [key for key in ("mu", "sigma") if key not in content]
            if missing:
                raise RunError(f"--reference: {file} has no {missing[0]}, expected mu and sigma, as pytorch-fid writes them")
            mean, covariance = (torch.from_numpy(np.asarray(content[key], dtype=np.float64)) for key in ("mu", "sigma"))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise RunError(f"--reference: {file} {reason}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise RunError(
            f"--reference: {file} holds mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}, expected (F,) and (F, F)"
        )
    if not (bool(torch.isfinite(mean).all()) and bool(torch.isfinite(covariance).all())):
        raise RunError(f"--reference: {file} holds numbers that are not finite")
    return Reference(f"the statistics in {file.name}", mean, covariance, None, None)
