"""The second wall around a program: an audit hook, and what has no audit event taken away.

Loaded by `execution` into a fresh interpreter, without the package.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import posix
import sys
from types import ModuleType

TYPE_CHECKING = False  # importing typing takes longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

# Audit events by prefix (docs.python.org/3/library/audit_events.html).
REFUSED = (
    "cpython.PyInterpreterState_New",  # an interpreter without this hook
    "ctypes.",
    "fcntl.",
    "gc.",
    "os.",
    "pty.",
    "resource.",
    "shutil.",
    "signal.",
    "socket.",
    "sqlite3.",
    "subprocess.",
    "sys._current",
    "sys.addaudithook",
    "sys.monitoring.",
    "sys.setprofile",
    "sys.settrace",
    "syslog.",
)
HARMLESS = frozenset(
    {"os.fwalk", "os.listdir", "os.putenv", "os.scandir", "os.unsetenv", "os.walk"}
)
# Modules that reach around the events.
UNKNOWN = frozenset(
    {
        "_ctypes",
        "_dbm",
        "_gdbm",
        "_interpreters",
        "_multiprocessing",
        "_posixshmem",
        "_posixsubprocess",
        "_ssl",
        "_testcapi",
        "_testinternalcapi",
        "_testmultiphase",
        "_testsinglephase",
        "_tkinter",
        "_xxsubinterpreters",
        "posix",
        "readline",
    }
)
# Functions of os and of signal without an event.
UNSEEN = (
    "chroot",
    "login_tty",
    "mkfifo",
    "mknod",
    "openpty",
    "pidfd_open",
    "pidfd_send_signal",
    "posix_openpt",
    "setns",
    "setpgid",
    "setpgrp",
    "setpriority",
    "setsid",
    "unshare",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(home: str, shown: tuple[str, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: no sockets, processes or changes of files; new files directly in `home`, and
    only the library is read.

    It uses constants, operators and methods of exact types alone, and defaults in place of globals:
    the program can change what names mean, and any frame's globals.
    """

    def check(
        event: str,
        arguments: tuple[Any, ...],
        home: str = home,
        shown: tuple[str, ...] = tuple(f"{place}/" for place in shown),
        null: str = os.devnull,
        writes: int = WRITES,
        prefixes: tuple[str, ...] = REFUSED,
        harmless: frozenset[str] = HARMLESS,
        unknown: frozenset[str] = UNKNOWN,
        text: type = str,
        number: type = int,
        kind: Callable[[object], type] = type,
        refusal: type[Exception] = PermissionError,
        absent: type[Exception] = ImportError,
    ) -> None:
        if event == "import" and arguments[0] in unknown:
            raise absent(f"{arguments[0]} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            if kind(path) is number:
                return  # open already
            if kind(path) is not text:  # its words may change between this look and the system's
                raise refusal("open is not allowed here but with a path that is a string")
            folder, slash, _ = path.rpartition("/")
            # os.open has no mode, and may mean a path that begins in another folder
            here = mode is not None and (slash == "" or folder == ".")
            inside = here or folder == home or path == null
            library = path.startswith(shown) and "/.." not in path
            refused = not inside and (flags & writes != 0 or not library)
        else:
            refused = event.startswith(prefixes) and event not in harmless
        if refused:
            raise refusal(f"{event} is not allowed here")

    return check


def hide() -> None:
    """Take away what changes the system and has no audit event."""

    def refuse(name: str) -> Callable[..., NoReturn]:
        def refused(*_: object, **__: object) -> NoReturn:
            raise PermissionError(f"{name} is not allowed here")

        return refused

    for name in [name for name in sys.modules if "ctypes" in name or name.startswith("dllm.")]:
        del sys.modules[name]  # the audit hook catches another import of ctypes
    for name in UNSEEN:
        for module in (os, posix, _signal):
            if hasattr(module, name):
                setattr(module, name, refuse(name))
    stub: Any = ModuleType("_posixsubprocess")  # subprocess and asyncio want to import it
    stub.fork_exec = refuse("fork_exec")
    sys.modules["_posixsubprocess"] = stub
