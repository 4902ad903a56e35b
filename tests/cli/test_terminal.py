"""A conversation in a terminal: what is typed too early smears nothing and is not lost."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

import pytest

from dllm.cli.terminal import unechoed


@pytest.fixture
def terminal(monkeypatch):
    """The master of a terminal that is stdin."""
    master, slave = pty.openpty()
    with open(slave, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield master
    os.close(master)


def read(master, until, seconds=120.0):
    """What the terminal shows until `until` is on it, or nothing more comes."""
    shown, end = b"", time.monotonic() + seconds
    while until not in shown and time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                shown += os.read(master, 4096)
            except OSError:  # the other side is closed
                break
    return shown


def test_nothing_typed_meanwhile_is_shown_and_nothing_is_lost(terminal):
    before = termios.tcgetattr(terminal)
    with unechoed():
        os.write(terminal, b"early\n")
        assert read(terminal, b"early", seconds=0.5) == b""
    assert termios.tcgetattr(terminal) == before
    assert sys.stdin.readline() == "early\n"
    os.write(terminal, b"late\n")
    assert b"late" in read(terminal, b"late")


def test_the_terminal_is_as_before_after_an_error(terminal):
    before = termios.tcgetattr(terminal)
    with pytest.raises(KeyboardInterrupt), unechoed():
        raise KeyboardInterrupt
    assert termios.tcgetattr(terminal) == before


def test_elsewhere_nothing_happens(monkeypatch):
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with unechoed():
            pass


CHAT = """
import pathlib, sys, time
import dllm.api
from dllm.__main__ import main
from tests.echo import echo, write_tiny

folder = pathlib.Path(sys.argv[1])
engine = echo(write_tiny(folder))

def load(*_, **__):
    print("LOADING", flush=True)
    while not (folder / "go").exists():
        time.sleep(0.01)
    return engine

dllm.api.load = load
sys.argv = ["dllm", "chat", "--no-watch"]
main()
"""


def test_chat(tmp_path, root):
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(root), "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHAT, str(tmp_path)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
    )
    os.close(slave)
    shown = read(master, b"LOADING")
    os.write(master, b"one two three\n")
    shown += read(master, b"one two", seconds=0.5)
    assert b"one two" not in shown
    (tmp_path / "go").touch()
    shown += read(master, b"finished")
    os.write(master, b"/exit\n")
    shown += read(master, b"no more")
    assert process.wait(60) == 0
    os.close(master)
    text = shown.decode()
    assert "/reset forgets the conversation" in text
    assert re.search(r"^one two three\s*$", text, re.MULTILINE)
