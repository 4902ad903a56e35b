"""Programs that mean harm, or just are wrong: each ends soon, and only an honest one is ok."""

import errno
import io
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dllm.errors import DllmError
from dllm.eval.sandbox import execution
from dllm.eval.sandbox.execution import WALLS, Execution, execute, judge
from tests.eval.sandbox.programs import RIGHT, TEST, WRONG, scripted

NAMESPACES, BUBBLEWRAP, HOOK = WALLS


def test_the_right_program_is_ok(wall):
    assert execute(RIGHT, TEST, "add", wall=wall) == Execution("ok")


@pytest.mark.parametrize(
    ("program", "outcome", "error"),
    [
        (WRONG, "fail", "AssertionError:"),
        (f"{RIGHT}assert 0, 'a\\nb'", "fail", "AssertionError: a b"),
        ("", "error", "NameError: name 'add' is not defined"),
        (f"{RIGHT}1 / 0", "error", "ZeroDivisionError: division by zero"),
        (f"{RIGHT}raise SystemExit", "error", "SystemExit:"),
        (f"{RIGHT}raise KeyboardInterrupt", "error", "KeyboardInterrupt:"),
        (f"{RIGHT}raise GeneratorExit", "error", "GeneratorExit:"),
        (f"{RIGHT}import sys\nsys.exit(0)", "error", "SystemExit: 0"),
        (f"{RIGHT}import os\nos._exit(0)", "error", "ended early with exit status 0"),
        (f"{RIGHT}import os\nos.abort()", "error", "ended early with exit status -6"),
        (f"{RIGHT}def f():\n    f()\nf()", "error", "RecursionError: maximum recursion depth"),
        (f"{RIGHT}input()", "error", "EOFError"),
        (f"{RIGHT}import dllm", "error", "ModuleNotFoundError: No module named 'dllm'"),
        (f"{RIGHT}raise ValueError('é' * 9999)", "error", "ValueError: éé"),
        (f"{RIGHT}raise ValueError('\\udcff')", "error", "ValueError: \\udcff"),
        ("def add(a, b:", "syntax", "SyntaxError:"),
        ("def add(a, b):\nreturn", "syntax", "IndentationError:"),
        ("x = '''", "syntax", "SyntaxError:"),
        ("\0", "syntax", ""),
        ("x = '\ud800'", "syntax", "UnicodeEncodeError:"),
        ("(" * 5000, "syntax", ""),
        # the annotations of a program are its own matter
        ("def add(a: Number, b):\n    return a + b", "error", "NameError: name 'Number'"),
    ],
)
def test_every_other_end_is_told_apart(program, outcome, error):
    done = execute(program, TEST, "add")
    assert done.outcome == outcome
    assert done.error.startswith(error)
    assert len(done.error) <= 500


def test_an_exception_that_cannot_be_put_in_words_is_an_error():
    program = "class E(Exception):\n    def __str__(self):\n        raise self\nraise E"
    assert execute(program) == Execution("error", "ended early with exit status 1")


def test_a_program_cannot_swallow_its_test():
    assert execute(f"{RIGHT}x = '''", f"'''\n{TEST}", "add").outcome == "syntax"
    assert execute(f"{WRONG}x = (", f")\n{TEST}", "add").outcome == "syntax"


def test_modules_and_classes_behave_as_in_a_file():
    program = """
from __future__ import annotations
import pickle
from dataclasses import dataclass
@dataclass
class Point:
    x: int
    y: "Number" = 0
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
assert __name__ != "__main__"
"""
    assert execute(program) == Execution("ok")


ENDLESS = {
    "sleep": "import time\ntime.sleep(60)",
    "output": "import sys\nwhile True: print('x' * 10000, file=sys.stderr), print('x' * 10000)",
    "c": "10 ** 10 ** 9",
    "catches": "import signal\nwhile True:\n    try:\n        while True: signal.signal(15, 1)\n"
    "    except BaseException: pass",
    "silent": "import os\nos.closerange(3, 64)\nwhile True: pass",
    "exit": "import atexit, time\natexit.register(time.sleep, 60)\ntime.sleep(60)",
}


@pytest.mark.parametrize("program", ENDLESS.values(), ids=ENDLESS)
def test_what_does_not_end_is_stopped(wall, program):
    start = time.monotonic()
    assert execute(program, timeout=0.3, wall=wall) == Execution("timeout")
    assert time.monotonic() - start < 5


def test_a_thread_that_goes_on_does_not_hold_up_the_end():
    program = f"{RIGHT}import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)])"
    assert execute(f"{program}.start()", TEST, "add") == Execution("ok")


def test_output_is_dropped():
    assert execute(f"print('x' * 10 ** 6)\n{RIGHT}", TEST, "add") == Execution("ok")


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory elsewhere")
@pytest.mark.parametrize(
    "program", ["x = [0] * 10 ** 10", "x = []\nwhile True: x.append(bytes(10 ** 6))"]
)
def test_memory_is_limited(program):
    assert execute(program, memory=2**28) == Execution("memory")


@pytest.mark.parametrize("last", ["os._exit(0)", "time.sleep(60)"])
def test_processes_of_the_program_die_with_it(monkeypatch, tmp_path, last):
    """A grandchild that keeps the pipe open, too."""
    beats = tmp_path / "beats"
    scripted(
        monkeypatch,
        f"""
import os, signal, time
os.write(1, b"+")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    {last}
while True:
    with open({str(beats)!r}, "a") as file:
        file.write(".")
    time.sleep(0.01)
""",
    )
    start = time.monotonic()
    assert execute("", timeout=0.7, wall=HOOK).outcome in ("timeout", "error")
    assert time.monotonic() - start < 5
    size = beats.stat().st_size
    assert size > 0
    time.sleep(0.1)
    assert beats.stat().st_size == size


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_time_is_limited_where_nobody_watches(monkeypatch, wall, program):
    monkeypatch.setattr(execution, "math", SimpleNamespace(ceil=lambda _: 0))
    start = time.monotonic()
    assert execute(program, timeout=60, wall=wall) == Execution("timeout")
    assert time.monotonic() - start < 30
    limits = "import resource\nassert resource.getrlimit(resource.RLIMIT_CPU) == (1, 2)"
    assert execute(limits, timeout=60, wall=wall) == Execution("ok")


@pytest.mark.parametrize(
    ("report", "status", "expected"),
    [
        ("ok", 0, Execution("ok")),
        ("ok", 1, Execution("error", "ended early with exit status 1")),
        ("ok", None, Execution("timeout")),
        ("ok ", 0, Execution("error", "ended early with exit status 0")),
        ("error ok", 0, Execution("error", "ok")),
        ("fail a b", 0, Execution("fail", "a b")),
        ("failok", 0, Execution("error", "ended early with exit status 0")),
        ("timeout", 0, Execution("timeout")),
        ("memory", 0, Execution("memory")),
        ("", None, Execution("timeout")),
        ("", -signal.SIGXCPU, Execution("timeout")),
        ("", -signal.SIGKILL, Execution("memory")),
        ("", errno.ENOMEM, Execution("memory")),
        ("", 0, Execution("error", "ended early with exit status 0")),
        ("", -signal.SIGSEGV, Execution("error", "ended early with exit status -11")),
    ],
)
def test_what_a_report_and_a_status_mean(report, status, expected):
    assert judge(report, status) == expected


@pytest.mark.parametrize(
    "text", ["raise OSError", "import os\nos.write(1, b'mount: not permitted')\nos._exit(1)"]
)
def test_a_wall_that_falls_is_no_answer_of_the_program(monkeypatch, text):
    """It is an error of its own, and not of the program; the next wall is taken."""
    scripted(monkeypatch, text)
    said = r"cannot run programs behind an audit hook.*: (exit status 1|mount: not permitted)"
    with pytest.raises(DllmError, match=said):
        execute(RIGHT, TEST, "add", wall=HOOK)
    assert execution.best_wall.__wrapped__() == HOOK


def test_a_system_without_namespaces_has_the_hook(monkeypatch):
    monkeypatch.setattr(execution.shutil, "which", lambda _: None)
    assert execution.best_wall.__wrapped__() == HOOK
    with pytest.raises(DllmError, match="wall=namespaces: expected one that this system has"):
        execute(RIGHT, wall=NAMESPACES)


def test_the_folder_is_new_writable_and_gone_afterwards(wall):
    program = """
import os
home = os.getcwd()
assert os.listdir() == []
for name in ("a", "./b", os.path.join(home, "c"), os.devnull):
    with open(name, "w") as file:
        file.write("text")
assert open("a").read() == "text"
assert sorted(os.listdir()) == ["a", "b", "c"]
raise ValueError(home)
"""
    done = execute(program, wall=wall)
    kind, _, home = done.error.partition(": ")
    assert kind == "ValueError", done
    if wall == HOOK:
        assert Path(home).is_absolute()
        assert not Path(home).exists()
    else:
        assert home == "/tmp"
        assert not any(Path(f"/tmp/{name}").exists() for name in ("a", "b", "c"))


def test_a_file_has_a_largest_size():
    program = "with open('a', 'wb', 0) as f:\n    for _ in range(9): f.write(bytes(2 ** 20))"
    assert execute(program).error == f"OSError: [Errno {errno.EFBIG}] File too large"


def test_nothing_comes_in_from_the_environment(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SECRET", "1")
    assert "ModuleNotFoundError" in execute("import mine").error
    program = "import os\nraise ValueError(set(os.environ) - {'LC_CTYPE', 'PYTHONHASHSEED'})"
    assert execute(program).error == "ValueError: set()"


def test_the_order_of_sets_is_the_same_every_time():
    program = "raise ValueError(str({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'}))"
    assert len({execute(program).error for _ in range(2)}) == 1


def test_a_system_without_process_groups_is_named(monkeypatch):
    monkeypatch.setattr(execution.os, "name", "nt")
    with pytest.raises(DllmError, match=r"cannot run programs on .*expected Linux or macOS"):
        execute(RIGHT)


def test_a_report_has_an_end():
    read, write = os.pipe()
    os.write(write, b"x" * 5000)
    with io.FileIO(read) as pipe:
        assert execution.read(pipe, time.monotonic() + 1) == "x" * 4096
    os.close(write)
