"""diffusers pipelines and networks on disk: read into parts, and written back with all of them."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from georeg_diffusion._compat import diffusers
from georeg_diffusion.conditioning import text_conditioner
from georeg_diffusion.errors import RunError
from georeg_diffusion.files import replacing

NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel")
PIPELINES = (
    "DDPMPipeline",
    "DDIMPipeline",
    "LDMPipeline",
    "DiTPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
)
_NETWORK, _CODEC = ("unet", "transformer"), ("vae", "vqvae")
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")


LORA = "pytorch_lora_weights.safetensors"
_BASE = "lora.json"


def read_pipeline(path: str, adapters: Sequence[Path] = ()) -> dict[str, Any]:
    """The parts of a pipeline folder or hub id, as :class:`Bundle` takes them.

    Args:
        path: of the pipeline.
        adapters: folders of LoRA weights to merge into it, one after the other.

    Raises:
        RunError: naming what is missing or not supported.
    """
    try:
        index = dict(diffusers.DiffusionPipeline.load_config(path))
    except (OSError, ValueError) as error:
        raise _cannot_load(path, error) from error
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise RunError(f"cannot use {path}: it is a {name}, expected {', '.join(PIPELINES[:-1])} or {PIPELINES[-1]}")
    for part, source in index.items():
        if not isinstance(source, list) or not source or source[0] is None:
            continue
        if source[0] not in _LIBRARIES:
            raise RunError(f"cannot use {path}: its {part} is code of its own ({source[0]}), and remote code is not run")
        # Early pipelines of the hub hold everything in one folder, which diffusers reads too.
        if Path(path).is_dir() and not (Path(path) / part).is_dir() and not (Path(path) / "config.json").is_file():
            raise RunError(f"cannot load {path}: its folder {part} is missing, which model_index.json names")
    try:
        pipeline_class = getattr(diffusers, name)
        transformers = sys.modules.get("transformers")
        if transformers is not None:  # its bars, one for each text encoder that is read
            transformers.utils.logging.disable_progress_bar()
        # diffusers wants to be told of what was saved as nothing, such as Stable Diffusion 3 without its third encoder.
        absent = {part: None for part, source in index.items() if isinstance(source, list) and not any(source)}
        with _any_codec():
            pipeline = pipeline_class.from_pretrained(path, use_safetensors=True, **absent)
    except Exception as error:  # a broken folder can raise anything
        raise _cannot_load(path, error) from error
    for folder in adapters:
        _merge(pipeline, folder)
    taken = [p for p in inspect.signature(type(pipeline).__init__).parameters if p not in ("self", "args", "kwargs")]
    parts = {part: pipeline.components.get(part, index.get(part)) for part in taken}
    network_name, codec_name = _slot(taken, _NETWORK), _slot(taken, _CODEC)
    network = parts.pop(network_name) if network_name else None
    if type(network).__name__ not in NETWORKS:
        raise RunError(
            f"cannot use {path}: its {name} holds a {type(network).__name__}, expected {', '.join(NETWORKS[:-1])} or "
            f"{NETWORKS[-1]}"
        )
    codec = parts.pop(codec_name) if codec_name else None
    for frozen in (codec, *parts.values()):
        if hasattr(frozen, "requires_grad_"):
            frozen.requires_grad_(False)
    return {
        "network": network,
        "scheduler": parts.pop("scheduler"),
        "codec": codec,
        "conditioner": text_conditioner(pipeline),
        "pipeline_class": name,
        "components": parts,
    }


def read_lora(folder: Path) -> dict[str, Any]:
    """The parts of a model with the LoRA weights of a folder merged into it; ``lora.json`` there names the model.

    That may be such a folder too, of weights that training went on from.

    Raises:
        RunError: no such record, or the model is not there.
    """
    base = str(folder)
    adapters: list[Path] = []
    while (Path(base) / LORA).is_file() and Path(base) not in adapters:
        adapters.insert(0, Path(base))
        try:
            base = str(json.loads((Path(base) / _BASE).read_text())["base_model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"cannot load {base}: it holds LoRA weights, but no {_BASE} that names their model; load that model's "
                "pipeline in diffusers and call load_lora_weights"
            ) from error
    try:
        return read_pipeline(base, adapters)
    except RunError as error:
        raise RunError(f"cannot load {folder}, the LoRA weights of {base}: {error}") from error


def write_lora(folder: Path, network: Any, name: str | None, base: str) -> None:
    """Write a network's adapters in diffusers' LoRA format, with the model they belong to; whole or not at all.

    Raises:
        RunError: a pipeline that has no LoRA format.
    """
    from peft.utils import get_peft_model_state_dict

    pipeline_class: Any = getattr(diffusers, name or "", None)
    if not hasattr(pipeline_class, "save_lora_weights"):
        raise RunError(f"cannot save LoRA weights: diffusers has no format of them for {name or type(network).__name__}")
    layers = diffusers.utils.convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    (settings,) = network.peft_config.values()
    part = "unet" if "unet" in inspect.signature(pipeline_class.__init__).parameters else "transformer"
    metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    with replacing(folder) as scratch:
        pipeline_class.save_lora_weights(
            scratch, **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": metadata}
        )
        (scratch / _BASE).write_text(json.dumps({"base_model": base, "rank": settings.r, "alpha": settings.lora_alpha}))


def _merge(pipeline: Any, folder: Path) -> None:
    """Add LoRA weights to those of the network, once and for all."""
    try:
        pipeline.load_lora_weights(str(folder), weight_name=LORA)
        pipeline.fuse_lora(components=[part for part in _NETWORK if getattr(pipeline, part, None) is not None])
        pipeline.unload_lora_weights()
    except Exception as error:  # a damaged file, weights of another network, peft missing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"its adapters cannot be merged: {reason} (LoRA needs pip install 'georeg[lora]')") from error


def read_network(folder: Path) -> dict[str, Any]:
    """A bare network, with the noise schedule in its subfolder ``scheduler``, or diffusers' default one.

    Raises:
        RunError: naming what is missing or not supported.
    """
    try:
        name = json.loads((folder / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise _cannot_load(str(folder / "config.json"), error) from error
    if name not in NETWORKS:
        raise RunError(f"cannot use {folder}: it holds a {name}, expected {', '.join(NETWORKS[:-1])} or {NETWORKS[-1]}")
    try:
        network = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True)
        if (folder / "scheduler" / "scheduler_config.json").is_file():
            kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
            scheduler = getattr(diffusers, kind).from_pretrained(folder / "scheduler")
        elif name == "SD3Transformer2DModel":
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        else:
            scheduler = diffusers.DDPMScheduler()
    except Exception as error:  # a broken folder can raise anything
        raise _cannot_load(str(folder), error) from error
    return {"network": network, "scheduler": scheduler}


def write(folder: Path, network: Any, scheduler: Any, codec: Any, name: str | None, components: Mapping[str, Any]) -> None:
    """Write a pipeline, or without a class a network with its scheduler; safetensors, whole or not at all.

    Raises:
        RunError: a codec that the pipeline has no place for.
    """
    name = name or _fitting(network, codec)
    if name is None:
        with replacing(folder) as scratch:
            network.save_pretrained(scratch, safe_serialization=True)
            scheduler.save_pretrained(scratch / "scheduler")
        return
    pipeline_class = getattr(diffusers, name)
    taken = list(inspect.signature(pipeline_class.__init__).parameters)
    codec_name = _slot(taken, _CODEC)
    if codec is not None and codec_name is None:
        raise RunError(f"cannot save: a {name} has no autoencoder, but this model has a {type(codec).__name__}")
    parts: dict[str, Any] = {_slot(taken, _NETWORK) or "unet": network, "scheduler": scheduler, **components}
    if codec_name is not None:
        parts[codec_name] = codec
    pipeline = pipeline_class(**parts)
    # Plain values such as DiT's id2label are read from model_index.json, but not written there by diffusers.
    pipeline.register_to_config(**{k: v for k, v in components.items() if isinstance(v, (dict, bool, int, float, str))})
    with replacing(folder) as scratch:
        pipeline.save_pretrained(scratch, safe_serialization=True)


def _fitting(network: Any, codec: Any) -> str | None:
    """The pipeline class for a network that came without; None where a pipeline needs more than these two."""
    kind = type(network).__name__
    if kind == "UNet2DModel":
        return "DDPMPipeline" if codec is None else "LDMPipeline"
    return "DiTPipeline" if kind == "DiTTransformer2DModel" and codec is not None else None


def _slot(taken: list[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in taken), None)


@contextmanager
def _any_codec() -> Iterator[None]:
    """An LDMPipeline takes any autoencoder, though diffusers warns, at each loading, that it expected a VQModel."""

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Expected types for vqvae")

    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _cannot_load(path: str, error: Exception) -> RunError:
    if isinstance(error, ImportError):  # diffusers says which library, and how to install it
        return RunError(f"cannot load {path}: {' '.join(str(error).split())}")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return RunError(
        f"cannot load {path}: {lines[0]} (a local folder needs its weights as .safetensors; a hub id needs the "
        "network or a filled HF_HOME cache)"
    )
