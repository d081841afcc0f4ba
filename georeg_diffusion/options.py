"""One frozen dataclass per command: its fields are the Typer options, the YAML keys and the record of a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import Field, asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
import yaml

from georeg_diffusion import presets
from georeg_diffusion.errors import UsageError

C = TypeVar("C")


def option(
    default: Any,
    help: str,
    *,
    panel: str = "Options",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field that is an option, with its help, its panel in ``--help`` and its allowed values."""
    metadata = {"help": help, "panel": panel, "choices": choices, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata=metadata | {"argument": None})


def argument(help: str, *, metavar: str, many: bool = False) -> Any:
    """A dataclass field that is a positional argument (``str``; with ``many`` a ``tuple[str, ...]`` of one or more)."""
    metadata = {"help": help, "panel": "Arguments", "choices": (), "minimum": None, "maximum": None}
    return field(default=() if many else "", metadata=metadata | {"argument": metavar})


def flag_of(name: str) -> str:
    """``max_train_steps`` → ``--max-train-steps``."""
    return "--" + name.replace("_", "-")


def _optional(annotation: Any) -> tuple[Any, bool]:
    """The type behind ``T | None``, and whether None is allowed."""
    arguments = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
    return (arguments[0], True) if arguments and type(None) in annotation.__args__ else (annotation, False)


def as_command(config: type[Any], run: Callable[[Any], None], *, with_presets: bool = False) -> Callable[..., None]:
    """A function whose Typer signature has one option per field of ``config``, plus ``--config`` and ``--preset``."""
    hints = get_type_hints(config)

    def command(context: typer.Context, **given: Any) -> None:
        file, preset = given.pop("config"), given.pop("preset", None)
        sources = ([presets.path_of(preset)] if preset else []) + ([file] if file else [])
        run(resolve(config, sources, {name: value for name, value in given.items() if _was_typed(context, name)}))

    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option("--config", help="YAML file with the same keys; the command line wins.", metavar="FILE.yaml"),
            ],
        ),
    ]
    if with_presets:
        parameters.append(
            inspect.Parameter(
                "preset",
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    str | None,
                    typer.Option(
                        "--preset",
                        help=f"A configuration inside the package: {', '.join(presets.names())}.",
                        metavar="NAME",
                    ),
                ],
            )
        )
    for entry in fields(config):
        if entry.metadata["argument"]:
            parameters.append(_positional(entry))
            continue
        inner, _ = _optional(hints[entry.name])
        names = [flag_of(entry.name)]
        if inner is bool:
            names = [f"{flag_of(entry.name)}/--no-{entry.name.replace('_', '-')}"]
        annotation, shown = hints[entry.name], None
        if entry.metadata["choices"] or inner in (int, float):  # as text, so that `resolve` alone says what is wrong
            annotation = str if entry.default is not None else str | None
            shown = f"<{'|'.join(entry.metadata['choices']) or inner.__name__}>"
        parameters.append(
            inspect.Parameter(
                entry.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=entry.default,
                annotation=Annotated[
                    annotation,
                    typer.Option(
                        *names, help=entry.metadata["help"], rich_help_panel=entry.metadata["panel"], metavar=shown
                    ),
                ],
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    about = (config.__doc__ or "").partition("\n    Example:")[0]  # which is for readers of Python
    command.__doc__ = "\n\n".join(" ".join(part.split()) for part in about.split("\n\n"))  # lines of the terminal's width
    return command


def _positional(entry: Field[Any]) -> inspect.Parameter:
    """Optional for Typer, because a YAML file may name it too; a missing one is refused by :func:`resolve`."""
    is_many = isinstance(entry.default, tuple)
    kind: Any = list[str] if is_many else str
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=[] if is_many else None,
        annotation=Annotated[
            kind if is_many else kind | None,
            typer.Argument(metavar=entry.metadata["argument"], help=entry.metadata["help"], show_default=False),
        ],
    )


def _was_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def resolve(config: type[C], files: list[Path], given: dict[str, Any]) -> C:
    """Defaults, then the files in turn, then what was typed.

    Raises:
        UsageError: a file that cannot be read, a key that is not known, or a value of the wrong kind or range.
    """
    known = {entry.name: entry for entry in fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for file in files:
        for key, value in _read_yaml(file).items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise UsageError(f"{file}: unknown key {key!r}; known are {', '.join(known)}")
            values[name] = value
    values.update(given)
    hints = get_type_hints(config)
    checked = {name: _checked(known[name], hints[name], value) for name, value in values.items()}
    for name, entry in known.items():
        if entry.metadata["argument"] and not checked.get(name):
            raise UsageError(f"{entry.metadata['argument']}: got nothing, expected {_lower_first(entry.metadata['help'])}")
    return config(**checked)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _read_yaml(file: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"--config: cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {file} is not YAML: {str(error).splitlines()[0]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"--config: {file} holds a {type(content).__name__}, expected keys and values, as in `seed: 0`")
    return content


def _checked(entry: Field[Any], annotation: Any, value: Any) -> Any:
    """A value of the field's type and range."""
    flag = entry.metadata["argument"] or flag_of(entry.name)
    if isinstance(entry.default, tuple):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise UsageError(f"{flag}: got {value!r}, expected a list of names")
        return tuple(items)
    inner, optional = _optional(annotation)
    if value is None:
        if optional:
            return None
        raise UsageError(f"{flag}: got nothing, expected {inner.__name__}")
    wrong = UsageError(f"{flag}: got {value!r}, expected {inner.__name__}")
    if inner is Path:
        if not isinstance(value, (str, Path)):
            raise wrong
        value = Path(value)
    elif inner is bool:
        if not isinstance(value, bool):
            raise wrong
    elif inner in (int, float):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
        if isinstance(value, bool) or (inner is int and not number.is_integer()):
            raise wrong
        value = number if inner is float else _whole(value)
    else:  # in YAML a list such as [fid, ppl], or numbers
        items = value if isinstance(value, (list, tuple)) else [value]
        if not items or not all(isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in items):
            raise wrong
        value = ",".join(map(str, items))
    choices, low, high = entry.metadata["choices"], entry.metadata["minimum"], entry.metadata["maximum"]
    if choices:  # either spelling, as of options
        value = next((one for one in choices if one.replace("_", "-") == str(value).replace("_", "-")), value)
    if choices and value not in choices:
        raise UsageError(f"{flag}: got {value!r}, expected one of {', '.join(choices)}")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"a number from {low} to {high}"
        raise UsageError(f"{flag}: got {value}, expected {bounds}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{flag}: got {value}, expected a finite number")
    return value


def _whole(value: Any) -> int:
    """Of a number or text such as ``"3"`` and ``"1e3"``, exact where it has digits alone."""
    try:
        return int(value)
    except ValueError:
        return int(float(value))


def as_plain(config: Any) -> dict[str, Any]:
    """The configuration as YAML and JSON can hold it."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in asdict(config).items()}
