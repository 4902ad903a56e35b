"""Runs a program that nobody has read, and says how it ended.

Every program gets a fresh interpreter with the standard library alone, an empty folder, no input,
no environment, and limits on time, memory and file size. The test that judges it runs in another
process (`inside`), where the program's answers are all it sees. Around both stands a `Wall`: the
system's own where it has one, so that there is no network, no other process, and of the files only
the library, read-only; and everywhere an audit hook that refuses sockets, other processes, and
files outside the folder. The hook alone stops accidents and the tricks that models are known to
try. It is no defence against a determined attacker, who can get around it from inside the
interpreter, then read and change what the user can: run such programs in a container or a virtual
machine. Memory is not limited on macOS.
"""

from __future__ import annotations

import errno
import marshal
import math
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Literal

from dllm.errors import DllmError

Outcome = Literal["ok", "fail", "syntax", "error", "timeout", "memory"]
FAILED: tuple[Outcome, ...] = ("fail", "syntax", "error", "timeout", "memory")

INSIDE = ("plain", "guard", "enclosure", "inside")  # modules of this folder, in this order
# No folder of the script, of the user or of site-packages in the path; no byte code written. The
# modules come compiled: that takes as long as starting the interpreter.
PYTHON = (sys.executable, "-P", "-s", "-S", "-B", "-c")
START = """
import marshal, os, sys
for name, code in marshal.loads(os.read(0, {size})):
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main()
"""
SHARED = ("typing",)  # slow to import, and read by most programs and their tests alike
BEGUN = "+"  # as in `inside`: what comes before it is no program's fault
LONGEST = 4096  # bytes of a report
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # sets have one order, so that a program has one outcome


@dataclass(frozen=True, slots=True)
class Execution:
    """The end of a program: "ok", it ran to its end; "fail", an assertion; "syntax", it cannot be
    compiled; "error", any other exception or exit. error: what was raised, on one line.
    """

    outcome: Outcome
    error: str = ""


@dataclass(frozen=True, slots=True)
class Wall:
    """A barrier that keeps programs in. about: in words; prefix: how a command begins that runs
    another one inside, given an empty folder for it; None where the system lacks what that takes.
    """

    name: str
    about: str
    prefix: Callable[[str], list[str] | None]


def namespaces(home: str) -> list[str] | None:
    """Namespaces of util-linux's unshare; `enclosure.enclose` does the rest."""
    unshare = shutil.which("unshare") if sys.platform == "linux" else None
    if unshare is None:
        return None
    kinds = ("--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts")
    return [unshare, *kinds, "--fork", "--kill-child"]


def bubblewrap(home: str) -> list[str] | None:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return None
    python = {sys.executable, os.path.realpath(sys.executable)}
    binds = [word for place in (*places(), *python) for word in ("--ro-bind", place, place)]
    binds += ["--dev-bind", os.devnull, os.devnull, "--bind", home, "/tmp", "--remount-ro", "/"]
    alone = ("--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--as-pid-1")
    return [bwrap, *alone, *binds, "--chdir", "/tmp"]


WALLS = (
    Wall("namespaces", "namespaces of their own (unshare), and an audit hook", namespaces),
    Wall("bubblewrap", "bubblewrap, and an audit hook", bubblewrap),
    Wall(
        "hook",
        "an audit hook alone, which stops accidents and no attacker: neither unshare nor bwrap "
        "works here",
        lambda home: [],
    ),
)


@cache
def places() -> tuple[str, ...]:
    """The folders and files that Python needs, none of them inside another one."""
    libraries = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/gnu/store")
    bases = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    python = [sysconfig.get_path(kind, vars=bases) for kind in ("stdlib", "platstdlib")]
    data = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
    found: list[str] = []
    for place in sorted({*libraries, *python, f"{sys.base_prefix}/lib", *data}):
        if os.path.exists(place) and not any(place.startswith(f"{outer}/") for outer in found):
            found.append(place)
    return tuple(found)


def source(module: str) -> str:
    return Path(__file__).with_name(f"{module}.py").read_text("utf-8")


@cache
def compiled() -> bytes:
    """The names and the code of `INSIDE`."""
    names = {module: f"{__package__}.{module}" for module in INSIDE}
    return marshal.dumps([(names[m], compile(source(m), f"<{m}>", "exec")) for m in INSIDE])


@cache
def best_wall() -> Wall:
    """The first of `WALLS` behind which a program runs here."""
    for each in WALLS[:-1]:
        with suppress(DllmError):
            if execute("", wall=each) == Execution("ok"):
                return each
    return WALLS[-1]


def execute(
    program: str,
    test: str = "",
    function: str = "",
    *,
    timeout: float = 10.0,
    memory: int = 2**30,
    wall: Wall | None = None,
) -> Execution:
    """Run `program`, then `test`, which may call the program's `function` and sees no more of it.

    What goes in and out of the function is handed over as plain values (`plain.pack`). timeout:
    seconds of wall clock, start of the interpreter included. memory: bytes of address space. wall:
    default: the best there is. Returns soon after the timeout at the latest, with all processes of
    the group dead. DllmError where programs cannot be run.
    """
    if os.name != "posix":
        raise DllmError(f"cannot run programs on {sys.platform}: expected Linux or macOS")
    wall = wall or best_wall()
    with (
        TemporaryDirectory(prefix="dllm-", ignore_cleanup_errors=True) as home,
        TemporaryFile() as stdin,  # a file never makes its writer wait
    ):
        prefix = wall.prefix(home)
        if prefix is None:
            raise DllmError(f"wall={wall.name}: expected one that this system has")
        script = compiled()
        seconds = math.ceil(timeout) + 1  # for a process whose parent was killed
        shared = ",".join(name for name in SHARED if name in program and name in test)
        arguments = (wall.name, str(seconds), str(memory), shared, *places())
        command = [*prefix, *PYTHON, START.format(size=len(script)), *arguments]
        stdin.write(script + marshal.dumps((program, test, function)))
        stdin.seek(0)
        report, status = supervise(command, stdin, home, timeout)
    if status is not None and not report.startswith(BEGUN) and status != errno.ENOMEM:
        raise DllmError(
            f"cannot run programs behind {wall.about}: {report or f'exit status {status}'}"
        )
    return judge(report.removeprefix(BEGUN), status)


def supervise(
    command: list[str], stdin: IO[bytes], home: str, timeout: float
) -> tuple[str, int | None]:
    """The report of the processes and their exit status, None if they ran out of time."""
    deadline = time.monotonic() + timeout
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=home,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        report = read(process.stdout, deadline)
        status = process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return report, None
    finally:
        with suppress(ProcessLookupError, PermissionError):  # nobody left; PermissionError on macOS
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return report, status


def read(pipe: IO[bytes], deadline: float) -> str:
    """Text from `pipe` until it is closed or time is over; no more than a report can be."""
    report = b""
    with DefaultSelector() as selector:
        fd = selector.register(pipe, EVENT_READ).fd
        while len(report) < LONGEST and selector.select(max(deadline - time.monotonic(), 0)):
            part = os.read(fd, LONGEST)
            if not part:
                break
            report += part
    return report.decode(errors="replace")


def judge(report: str, status: int | None) -> Execution:
    """The judge's word counts where its process ended well. It alone can write and end so."""
    if status is None or status == -signal.SIGXCPU:
        return Execution("timeout")
    if (report, status) == ("ok", 0):
        return Execution("ok")
    outcome, _, error = report.partition(" ")
    for known in FAILED:
        if outcome == known:
            return Execution(known, error)
    if status in (errno.ENOMEM, -signal.SIGKILL):  # SIGKILL: by the kernel, memory ran out
        return Execution("memory")
    return Execution("error", f"ended early with exit status {status}")
