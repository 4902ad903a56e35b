"""Command lines as processes of their own that need not import torch anew: forks of one process.

A fork has the streams of its case, runs the command line with an echo as its bundled model, and
ends as an interpreter ends, with what that flushes and tells.
"""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

STREAMS = ("stdin", "stdout", "stderr")


class Done(NamedTuple):
    """What a command line came to."""

    status: int
    stdout: bytes
    stderr: bytes


def run_all(folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, Done]:
    """Run cases: arguments, and by stream a file, None (closed) or "gone" (nobody reads it), which
    is a file of the case's own where nothing is said. encoding: that of stdout.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __name__, str(folder), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, status in json.loads(done.stdout).items():
        out, err = (folder / f"{name}.{stream}" for stream in STREAMS[1:])
        found[name] = Done(status, *(f.read_bytes() if f.exists() else b"" for f in (out, err)))
    return found


def connect(folder: Path, name: str, case: dict[str, Any]) -> None:
    """Put the streams of a case in place of this process's."""
    for number, stream in enumerate(STREAMS):
        path = case.get(stream, str(folder / f"{name}.{stream}"))
        if path is None:
            os.close(number)
            setattr(sys, stream, None)
            continue
        if path == "gone":
            reader, descriptor = os.pipe()
            os.close(reader)
        elif number:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        else:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        os.dup2(descriptor, number)
        binary = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115
        setattr(sys, stream, io.TextIOWrapper(binary, encoding=case.get("encoding", "utf-8")))


def serve(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    import dllm.api
    from dllm.cli import main
    from tests.echo import echo, write_tiny

    engine = echo(write_tiny(folder))
    dllm.api.load = lambda *_, **__: engine
    gc.freeze()  # else the end of every fork goes through all that was imported
    found = {}
    for name, case in cases.items():
        child = os.fork()
        if not child:
            connect(folder, name, case)
            sys.argv = ["dllm", *case["arguments"]]
            main()
            return
        found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(found))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), json.loads(sys.argv[2]))
