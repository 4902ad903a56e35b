"""The inside of `execution`: runs one program in a process that was started for it alone.

A script for a fresh interpreter, not for import. It reads a request from stdin, gives up what it
can do without, and runs the program in a second thread, below which stands no Python frame but
`run`. The token that says "passed" is written by the first thread, whose variables the second
cannot reach by way of frames, modules or builtins.
"""

from __future__ import annotations

import errno
import marshal
import os
import resource
import sys
from _queue import SimpleQueue
from _thread import start_new_thread
from itertools import repeat
from types import ModuleType

TYPE_CHECKING = False  # importing typing takes longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FILE_BYTES = 2**20
MESSAGE = 500  # bytes; up to 512 enter a pipe at once
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET of sched.h

# Audit events by prefix (docs.python.org/3/library/audit_events.html).
REFUSED = (
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
HARMLESS = {"os.fwalk", "os.listdir", "os.putenv", "os.scandir", "os.unsetenv", "os.walk"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(home: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: no sockets, processes or changes of files; new files directly in `home`."""
    places = ("", ".", home)

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            inside = path == os.devnull or os.path.dirname(path) in places
            refused = bool(flags & WRITES) and not inside
        else:
            refused = event.startswith(REFUSED) and event not in HARMLESS
        if refused:
            raise PermissionError(f"{event} is not allowed here")

    return check


def leave_network() -> None:
    """Move to a network of its own that has no devices, where the kernel lets anybody do so."""
    if sys.platform == "linux":
        try:
            import ctypes
        except ImportError:  # a Python that was built without libffi
            return
        ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK)
        del sys.modules["ctypes"]  # a second import is caught by the audit hook


def limit(seconds: int, memory: int) -> None:
    """CPU seconds, bytes of address space (not on macOS), bytes of a file; no core dump."""
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, most in limits.items():
        try:
            resource.setrlimit(kind, most)
        except (ValueError, OSError):  # a stricter limit stands, or the system has none
            continue


def end(
    report: int,
    outcome: str,
    error: BaseException,
    write: Callable[[int, bytes], int] = os.write,
    leave: Callable[[int], None] = os._exit,
) -> None:
    """Say what was raised, if that can be put in words, and end the process in any case."""
    try:
        words = f"{outcome} {type(error).__name__}: {str(error)[:MESSAGE]}".split()
        write(report, " ".join(words).encode("utf-8", "backslashreplace")[:MESSAGE])
    finally:
        leave(1)


def run(request: dict[str, Any], report: int) -> None:
    """Run program and test in one module. Returns only where both ran to their end."""
    finish, leave = end, os._exit  # the program may change what the names mean
    module = ModuleType("program")
    sys.modules["program"] = module
    try:
        codes = tuple(
            compile(request[name], f"<{name}>", "exec", dont_inherit=True)
            for name in ("program", "test")
        )
    except Exception as error:
        finish(report, "syntax", error)
        raise
    try:
        any(map(exec, codes, repeat(module.__dict__)))  # in C, out of reach for the program
    except MemoryError:
        leave(errno.ENOMEM)  # there may be no memory for a message
        raise
    except AssertionError as error:
        finish(report, "fail", error)
        raise
    except BaseException as error:
        finish(report, "error", error)
        raise


def main() -> None:
    with open(0, "rb", closefd=False) as file:
        request = marshal.load(file)
    token = request.pop("token").encode()
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    leave_network()
    limit(request["seconds"], request["memory"])
    finished: SimpleQueue[None] = SimpleQueue()
    write, leave = os.write, os._exit  # the program may change what the names mean
    sys.addaudithook(guard(os.getcwd()))
    # any, put and map are C: `run` sees neither the queue nor this frame
    start_new_thread(any, (map(finished.put, map(run, [request], [report])),))
    finished.get()
    write(report, token)
    leave(0)


if __name__ == "__main__":
    main()
