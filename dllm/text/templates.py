"""Chat templates of checkpoints, rendered in a process of their own: time and memory are bounded.

A template is a program that somebody else wrote. jinja2's sandbox keeps it from the machine, not
from looping or allocating: every operator, filter, method, comparison and capture can do either, so
the bounds are those of a process. One serves all templates of this process, from the first one on.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any, cast

from dllm.errors import DllmError

SECONDS = 10  # of one text
MEMORY = 2**29  # bytes of the process
WORKER = Path(__file__).with_name("template_worker.py")


def render(template: str, values: Mapping[str, Any]) -> str:
    """The text of a jinja2 template with `values`, as transformers renders it.

    DllmError where the template refuses or fails, takes more than `SECONDS` or `MEMORY`, or where
    `values` are not JSON.
    """
    try:
        request = json.dumps({"template": template, "values": values})
    except (TypeError, ValueError, RecursionError) as error:
        raise DllmError(f"messages: expected what can be JSON: {error}") from error
    reply = _worker.ask(request.encode() + b"\n")
    if "error" in reply:
        raise DllmError(f"the checkpoint's chat template {reply['error']}")
    return reply["text"]


class _Worker:
    """The process, started with the first request and again after one that it did not survive."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0  # a fork inherits the pipes but must not use them

    def ask(self, request: bytes) -> dict[str, str]:
        """What the process answers to a line."""
        with self.lock:
            process = self.running()
            timer = Timer(SECONDS, process.kill)
            timer.start()
            try:
                line = _answer(process, request)
            except BaseException:
                self.stop()  # the next answer would be that to this request
                raise
            finally:
                late = timer.finished.is_set()
                timer.cancel()
            if line.endswith(b"\n"):
                return cast("dict[str, str]", json.loads(line))
            self.stop()
            return {"error": f"takes more than {SECONDS} seconds" if late else "ends its process"}

    def running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            command = [sys.executable, "-P", os.fspath(WORKER), str(SECONDS + 60), str(MEMORY)]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process
            )
            self.owner = os.getpid()
        return self.process

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()


def _answer(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The line that the process answers, less where it ends before."""
    try:
        cast("IO[bytes]", process.stdin).write(request)
        cast("IO[bytes]", process.stdin).flush()
    except BrokenPipeError:
        return b""
    return cast("IO[bytes]", process.stdout).readline()


_worker = _Worker()
atexit.register(_worker.stop)
