"""The command line: a thin shell over the functions of the package; heavy imports happen inside the commands."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

_NEEDED = ("typer", "rich", "yaml", "diffusers", "accelerate", "sklearn", "matplotlib", "PIL")


def _refuse_without_extra() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"georeg-diffusion needs {', '.join(missing)}: pip install 'georeg[diffusion]'", file=sys.stderr)
        raise SystemExit(2)


def _stop(message: str, code: int) -> NoReturn:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("Error: ", "bold red"), " ".join(message.split())))
    raise SystemExit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 the run failed, 2 wrong usage, 130 SIGINT, 143 SIGTERM."""
    _refuse_without_extra()
    from georeg_diffusion.errors import RunError, UsageError

    app = build()
    try:
        with _terminable():
            app(args=arguments, prog_name="georeg-diffusion")
    except UsageError as error:
        _stop(str(error), 2)
    except RunError as error:
        _stop(str(error), 1)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as schedulers send it, unwinds like Ctrl-C, so that every command leaves its folder in order."""
    from georeg_diffusion.errors import Interrupted

    def stop(number: int, _: object) -> NoReturn:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def build():  # type: ignore[no-untyped-def]  # typer.Typer, which is only importable with the extra
    """The Typer application."""
    import typer

    from georeg_diffusion import commands
    from georeg_diffusion.options import as_command

    # --max_train_steps, as diffusers' scripts spell it, is accepted too.
    settings = {"token_normalize_func": lambda token: token.replace("_", "-"), "help_option_names": ["-h", "--help"]}
    app = typer.Typer(
        help="Train and study diffusion models whose latent space is close to a scaled isometry.",
        context_settings=settings,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _group() -> None:
        """Train and study diffusion models whose latent space is close to a scaled isometry."""

    for name, module in commands.available().items():
        body = as_command(module.CONFIG, _loading(module.run), with_presets=name == "train")
        app.command(name, context_settings=settings)(body)
    return app


def _loading(run: Callable[[Any], None]) -> Callable[[Any], None]:
    """Show that something happens while a command imports torch and diffusers."""

    def start(config: Any) -> None:
        from rich.console import Console

        from georeg_diffusion.errors import Interrupted

        with Console(stderr=True).status("Loading torch and diffusers"):
            import_module("georeg_diffusion._compat")
        try:
            run(config)
        except KeyboardInterrupt as error:  # here, since typer would leave without a word
            stop = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
            if os.environ.get("RANK", "0") != "0":  # one of many processes speaks
                raise SystemExit(128 + stop.number) from None
            _stop(str(stop), 128 + stop.number)

    return start


if __name__ == "__main__":
    main()
