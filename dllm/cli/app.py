"""The application that verbs are added to, and how what a user did wrong is told."""

from __future__ import annotations

import sys
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from dllm.errors import DllmError

INTERRUPTED = 130  # exit status: 128 + SIGINT
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])  # typer exports no name for it


class Commands(TyperGroup):
    """The verbs; whatever a user did wrong becomes one line on stderr and exit status 2."""

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        try:
            status = super().main(*args, **{**settings, "standalone_mode": False})
        except UsageError as error:
            fail(usage_message(error))
        except DllmError as error:
            fail(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            fail(f"{error.filename}: {error.strerror}")
        except typer.Abort:
            status = INTERRUPTED
        sys.exit(status)


def fail(message: str) -> NoReturn:
    print("error:", message.replace("\n", " "), file=sys.stderr)
    sys.exit(2)


def usage_message(error: Any) -> str:
    """What is wrong with the command line, with the known choices."""
    message: str = error.format_message()
    command = getattr(error.ctx, "command", None)
    if command is not None and message.startswith("No such option"):
        names = (
            name for p in command.get_params(error.ctx) for name in [*p.opts, *p.secondary_opts]
        )
        return f"{message}; known: {', '.join(name for name in names if name.startswith('--'))}"
    if command is not None and message.startswith("No such command"):
        return f"{message} Known: {', '.join(command.commands)}"
    return message


app = typer.Typer(
    cls=Commands,
    help="Parallel decoding of masked-diffusion language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="dllm")
