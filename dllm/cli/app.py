"""The application that verbs are added to, and how what a user did wrong is told."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from dllm.errors import DllmError

INTERRUPTED = 130  # exit status: 128 + SIGINT
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EBADF)  # cannot be written
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])  # typer exports no name for it


class Commands(TyperGroup):
    """The verbs; whatever a user did wrong becomes one line on stderr and exit status 2."""

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # what its encoding lacks is spelled out
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(*args, **{**settings, "standalone_mode": False})
            if sys.stdout is not None:
                sys.stdout.flush()
        except UsageError as error:
            status = told(usage_message(error))
        except DllmError as error:
            status = told(str(error))
        except BrokenPipeError:  # who read stdout has seen enough
            status = 1
        except OSError as error:  # all files but stdout have their names
            place = error.filename or ("stdout" if error.errno in FULL else None)
            status = told(f"{place}: {error.strerror}" if place else str(error))
        except typer.Abort:
            status = INTERRUPTED
        drop_unwritten()
        sys.exit(status)


def told(message: str) -> int:
    """Print what a user did wrong; the exit status of that."""
    print("error:", message.replace("\n", " "), file=sys.stderr)
    return 2


def drop_unwritten() -> None:
    """Empty stdout, into nothing if it cannot be written: the interpreter would tell at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # no file, in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
