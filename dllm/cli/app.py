"""The application that verbs are added to; errors of a user become one line and a status."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from dllm import __version__
from dllm.cli.fields import expanded
from dllm.cli.terminal import printable
from dllm.errors import DllmError
from dllm.registry import describe

Function = TypeVar("Function", bound=Callable[..., None])

INTERRUPTED = 130  # exit status: 128 + SIGINT
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EBADF)  # cannot be written
STATUS = (
    "Exit status: 0 done; 2 what was asked for cannot be done, and one line on stderr says why; "
    "130 interrupted (Ctrl-C), what was finished is kept; 1 all else: a traceback "
    "is a fault of dllm, please report it."
)
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
        except (typer.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        drop_unwritten()
        sys.exit(status)


def told(message: str) -> int:
    """Print what a user did wrong; the exit status of that."""
    if message:  # of a command that was given nothing, the help is shown and says all
        print("error:", printable(message.replace("\n", " ")), file=sys.stderr)
    return 2


def drop_unwritten() -> None:
    """Empty stdout, into nothing if it cannot be written: the interpreter would tell at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # no file, in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def with_defaults(known: Mapping[str, str]) -> type[TyperCommand]:
    """A verb whose --help shows a default of every option that does not speak of it itself.

    known: defaults of the library, which the verb does not pass on. What is in neither is off.
    """

    class Verb(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            shown: dict[str, str] = {}
            switches = []  # on or off: Typer shows what the option itself has
            for option in cast(list[Any], self.get_params(ctx)):
                none = option.is_eager or option.required or option.param_type_name != "option"
                if none or re.search(r"\bdefault\b", option.help or ""):
                    continue
                if option.default in (None, False, ()):
                    off = "false" if option.default is False else "none"
                    shown[option.name] = known.get(option.name, off)
                    if option.secondary_opts and shown[option.name] == "true":
                        switches.append(option)
            ctx.default_map = shown
            try:
                for option in switches:
                    option.default = True
                super().format_help(ctx, formatter)
            finally:
                for option in switches:
                    option.default = None

    return Verb


@contextmanager
def kept_on_interrupt(there: str = "there") -> Iterator[None]:
    """Ctrl-C ends the verb, and says from where the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {there}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def usage_message(error: Any) -> str:
    """What is wrong with the command line, with the value and the known choices."""
    message: str = error.format_message()
    command = getattr(error.ctx, "command", None)
    checked = getattr(error.__cause__, "errors", None)  # of pydantic, which typer converts with
    if checked is not None and error.param is not None:
        option, hint = error.param, error.param.type_descriptor.annotation
        least = "" if option.min is None else f" of at least {option.min}"
        expected = describe(*(get_args(hint) or (hint,))) + least
        return f"{option.opts[0]} {shortened(checked()[0]['input'])}: expected {expected}"
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
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=STATUS,
)
eval_app = typer.Typer(
    help="Measure what a way to decode costs and gets right.", no_args_is_help=True
)
app.add_typer(eval_app, name="eval")


def verb(to: typer.Typer = app, name: str | None = None) -> Callable[[Function], Function]:
    """Add a function as a verb, called as it is or `name`. See `fields.OptionsOf`."""

    def add(function: Function) -> Function:
        run, defaults = expanded(function)
        to.command(name, cls=with_defaults(defaults))(run)
        return function

    return add


def shortened(value: str) -> str:
    return repr(value if len(value) <= 60 else f"{value[:57]}...")


def print_version(wanted: bool) -> None:
    if wanted:
        print("dllm", __version__)
        raise typer.Exit


@app.callback()
def of_all(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """Parallel decoding of masked-diffusion language models."""


def main() -> None:
    """Run the command line of this process."""
    try:
        app(prog_name="dllm")
    except KeyboardInterrupt:  # while what went wrong is told
        sys.exit(INTERRUPTED)
