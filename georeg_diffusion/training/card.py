"""Model cards: what a model is, how its geometry was scored, how to load it; and the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from georeg_diffusion._compat import diffusers
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.scorecard import ROWS
from georeg_diffusion.files import replacing
from georeg_diffusion.training.config import TrainConfig

_TAGS = ("diffusers", "isometric-diffusion", "georeg")


def write_card(folder: Path, name: str, config: TrainConfig, record: dict[str, Any], *, trained_on: str) -> None:
    """Write ``README.md`` into a model's folder, from diffusers' template.

    Args:
        folder: of the model.
        name: ``"isometric"`` or ``"base"``.
        config: of the run.
        record: as ``metrics.json`` holds it; models that stand beside this one in it are its table's columns.
        trained_on: such as ``"1,797 images of digits at 16²"``.
    """
    from huggingface_hub import ModelCard, ModelCardData

    hub_utils = diffusers.utils.hub_utils
    base = config.pretrained_model_name_or_path
    is_local = base is None or Path(base).exists() or base.count("/") != 1
    data = ModelCardData(library_name="diffusers", base_model=None if is_local else base)
    card = ModelCard.from_template(
        data,
        template_path=str(hub_utils.MODEL_CARD_TEMPLATE_PATH),
        model_description=_text(folder, name, config, record, trained_on),
    )
    lora = ["lora"] if (folder / "lora.json").is_file() else []
    hub_utils.populate_model_card(card, tags=[*_TAGS, *lora])
    with replacing(folder / "README.md") as target:
        target.write_text(str(card))


def _text(folder: Path, name: str, config: TrainConfig, record: dict[str, Any], trained_on: str) -> str:
    weight = config.lambda_iso if name == "isometric" else 0.0
    kind = "normalised (1 is perfect)" if config.normalize else "bare ratio of Eq. 6"
    kind = kind if config.regularizer == "isometry" else f"the {config.regularizer} loss in place of Eq. 6"
    kind += "" if config.lambda_iso_schedule == "constant" else f", {config.lambda_iso_schedule}"
    start = f", continued from `{config.pretrained_model_name_or_path}`" if config.pretrained_model_name_or_path else ""
    lines = [
        f"# {config.output_dir.resolve().name}: {name}",
        "",
        f"A diffusion model trained on {trained_on}{start}, with the loss of Isometric Diffusion (Hahm et al. 2024) at "
        f"λ = {weight:g} ({kind}), p = {config.isometry_skip:g}, metric `{config.metric}`, seed {config.seed}.",
        "",
        *_usage(folder),
    ]
    models: dict[str, Any] = record.get("models") or {}
    if models:
        lines += ["", "## Scores", "", f"| score | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
        protocols = []
        for key, label, _ in ROWS:
            entries = [models[model].get(key) for model in models]
            if any(entries):
                lines.append(f"| {label.strip()} | {' | '.join(_cell(entry) for entry in entries)} |")
                protocol = next(entry for entry in entries if entry).get("protocol")
                protocols += [f"- {label.strip()}: {protocol}"] if protocol else []
        lines += ["", "± one standard error.", "", *protocols]
        if record.get("features"):
            lines += ["", f"Fréchet distance on {record['features']}."]
    return "\n".join(lines)


def _usage(folder: Path) -> list[str]:
    if (folder / "lora.json").is_file():
        code = 'pipeline = DiffusionPipeline.from_pretrained("BASE MODEL")\npipeline.load_lora_weights("THIS MODEL")'
    else:
        code = 'pipeline = DiffusionPipeline.from_pretrained("THIS MODEL")'
    return ["```python", "from diffusers import DiffusionPipeline", "", *code.splitlines(), "```"]


def _cell(entry: dict[str, Any] | None) -> str:
    if not entry or entry.get("value") is None:
        return "—"
    error = entry.get("stderr")
    return f"{entry['value']:.4g}" + (f" ± {error:.2g}" if error else "")


def claim_repository(config: TrainConfig) -> str:
    """Make sure that the model can be pushed, before it is trained; the repository's full id.

    Raises:
        RunError: no login, no network, or a name that the hub refuses.
    """
    from huggingface_hub import create_repo

    name = config.hub_model_id or config.output_dir.resolve().name
    try:
        return str(create_repo(name, exist_ok=True, private=config.hub_private_repo or None).repo_id)
    except Exception as error:  # no login, no network, a wrong name: the hub's client raises all sorts of things
        raise RunError(f"--push-to-hub: cannot create {name}: {_reason(error)}; see `hf auth login`") from error


def push(folder: Path, repository: str, extras: list[Path]) -> str:
    """Upload a model's folder, and files beside it; the address of the commit.

    Raises:
        RunError: the upload failed; the model is still on disk.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        for file in extras:
            api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=repository)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="End of training")
    except Exception as error:  # as above
        raise RunError(
            f"--push-to-hub: cannot upload {folder} to {repository}: {_reason(error)}; the model is complete on disk, and "
            "the same command tries again"
        ) from error
    return str(getattr(done, "commit_url", done))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
