"""Runs a program that nobody has read, and says how it ended.

Every program gets a fresh interpreter with the standard library alone, an empty folder, no input,
no environment, and limits on time, memory and file size. Sockets, other processes and changes of
files outside the folder are refused by an audit hook, and on Linux the process has no network where
the kernel allows that. This stops accidents and the tricks that models are known to try. It is no
defence against a determined attacker, who can get around an audit hook from inside the interpreter
and can read what the user can read: run such programs in a container or a virtual machine. Memory
is not limited on macOS. A process that leaves its group outlives the program.
"""

from __future__ import annotations

import errno
import marshal
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Literal

from dllm.errors import DllmError

Outcome = Literal["ok", "fail", "syntax", "error", "timeout", "memory"]
REPORTED: tuple[Outcome, ...] = ("fail", "syntax", "error")

SANDBOX = Path(__file__).with_name("sandbox.py")
# no folder of the script, of the user or of site-packages in the path; no byte code written
PYTHON = (sys.executable, "-P", "-s", "-S", "-B", str(SANDBOX))
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # sets have one order, so that a program has one outcome


@dataclass(frozen=True, slots=True)
class Execution:
    """How a program ended: "ok", it ran to its end; "fail", an assertion; "syntax", it cannot be
    compiled; "error", any other exception or exit. error: what was raised, on one line.
    """

    outcome: Outcome
    error: str = ""


def execute(
    program: str, test: str = "", *, timeout: float = 10.0, memory: int = 2**30
) -> Execution:
    """Run `program`, then `test` in the same module.

    timeout: seconds of wall clock, start of the interpreter included. memory: bytes of address
    space. Returns soon after the timeout at the latest, with all processes of the group dead.
    """
    if os.name != "posix":
        raise DllmError(f"cannot run programs on {sys.platform}: expected Linux or macOS")
    token = secrets.token_hex(16)
    request = {
        "program": program,
        "test": test,
        "token": token,
        "seconds": math.ceil(timeout) + 1,  # for a process whose parent was killed
        "memory": memory,
    }
    with (
        TemporaryDirectory(prefix="dllm-", ignore_cleanup_errors=True) as home,
        TemporaryFile() as stdin,  # a file never makes its writer wait
    ):
        stdin.write(marshal.dumps(request))
        stdin.seek(0)
        return judge(*supervise(stdin, home, timeout), token)


def supervise(stdin: IO[bytes], home: str, timeout: float) -> tuple[str, int | None]:
    """What the process reported, or "" and its exit status, None if it ran out of time."""
    deadline = time.monotonic() + timeout
    process = subprocess.Popen(
        PYTHON,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=home,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        report = read(process.stdout, timeout)
        status = None if report else process.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        return "", None
    finally:
        with suppress(ProcessLookupError, PermissionError):  # nobody left; PermissionError on macOS
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return report, status


def read(pipe: IO[bytes], timeout: float) -> str:
    """The first that comes out of `pipe`, or "" if it is closed or nothing comes in time."""
    with DefaultSelector() as selector:
        fd = selector.register(pipe, EVENT_READ).fd
        return os.read(fd, 4096).decode(errors="replace") if selector.select(timeout) else ""


def judge(report: str, status: int | None, token: str) -> Execution:
    if report == token:
        return Execution("ok")
    for outcome in REPORTED:
        if report.startswith(f"{outcome} "):
            return Execution(outcome, report.removeprefix(f"{outcome} "))
    if report:
        return Execution("error", "wrote to the report")
    if status in (None, -signal.SIGXCPU):
        return Execution("timeout")
    if status in (errno.ENOMEM, -signal.SIGKILL):  # SIGKILL: by the kernel, memory ran out
        return Execution("memory")
    return Execution("error", f"ended early with exit status {status}")
