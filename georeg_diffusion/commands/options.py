"""The options that all commands on a trained model share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from georeg_diffusion.errors import UsageError
from georeg_diffusion.options import argument, option

_CONDITION, _RUN = "Condition of the model", "Run"


@dataclass(frozen=True)
class ModelOptions:
    """A model, where results go, and how they are computed. Commands derive their own dataclass from this one."""

    model: str = argument("A diffusers pipeline folder, a network folder, or a hub id.", metavar="MODEL")

    prompt: str | None = option(None, "Text prompt, for a text-conditioned model.", panel=_CONDITION)
    negative_prompt: str | None = option(None, "What guidance steers away from.", panel=_CONDITION)
    guidance_scale: float | None = option(
        None,
        "Classifier-free guidance; 1 is none. Default: 7.5 with a prompt, otherwise 1.",
        panel=_CONDITION,
        minimum=0,
    )
    class_label: int | None = option(
        None, "Class, for a class-conditional model. Default: each sample draws its own.", panel=_CONDITION, minimum=0
    )

    output_dir: Path | None = option(None, "Where results are written. Default: outputs/<command>.", panel=_RUN)
    overwrite: bool = option(False, "Replace what an earlier run of this command wrote there.", panel=_RUN)
    seed: int = option(
        0,
        "Seeds all noise: sample i starts from seed + i, in batches of any size.",
        panel=_RUN,
        minimum=0,
        maximum=2**63 - 1,
    )
    num_inference_steps: int = option(50, "Denoising steps.", panel=_RUN, minimum=1)
    batch_size: int = option(16, "Samples that go through the network at once.", panel=_RUN, minimum=1)
    device: str | None = option(None, "Device, such as cpu, cuda or cuda:1. Default: a GPU where there is one.", panel=_RUN)
    dtype: str = option(
        "float32",
        "Precision of the network.",
        panel=_RUN,
        choices=("float32", "float16", "bfloat16", "float64"),
    )


def timesteps_of(text: str | None) -> tuple[int, ...] | None:
    """What ``--timesteps`` names, such as ``600,800``; None without it.

    Raises:
        UsageError: anything but whole numbers.
    """
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--timesteps: got {text!r}, expected whole numbers such as 600,800") from error
