"""Programs that mean harm, or just are wrong: each ends soon, and only an honest one is ok."""

import errno
import io
import marshal
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dllm.errors import DllmError
from dllm.eval.suite import execution
from dllm.eval.suite.execution import Execution, execute, judge, supervise

TEST = "assert add(2, 3) == 5"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"


def test_the_right_program_is_ok():
    assert execute(RIGHT, TEST) == Execution("ok")


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
    done = execute(program, TEST)
    assert done.outcome == outcome
    assert done.error.startswith(error)
    assert len(done.error) <= 500


def test_an_exception_that_cannot_be_put_in_words_is_an_error():
    program = "class E(Exception):\n    def __str__(self):\n        raise self\nraise E"
    assert execute(program) == Execution("error", "ended early with exit status 1")


def test_a_program_cannot_swallow_its_test():
    assert execute(f"{RIGHT}x = '''", f"'''\n{TEST}").outcome == "syntax"
    assert execute(f"{WRONG}x = (", f")\n{TEST}").outcome == "syntax"


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
def test_what_does_not_end_is_stopped(program):
    start = time.monotonic()
    assert execute(program, timeout=0.3) == Execution("timeout")
    assert time.monotonic() - start < 5


def test_a_thread_that_goes_on_does_not_hold_up_the_end():
    program = f"{RIGHT}import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)])"
    assert execute(f"{program}.start()", TEST) == Execution("ok")


def test_output_is_dropped():
    assert execute(f"print('x' * 10 ** 6)\n{RIGHT}", TEST) == Execution("ok")


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory elsewhere")
@pytest.mark.parametrize(
    "program", ["x = [0] * 10 ** 10", "x = []\nwhile True: x.append(bytes(10 ** 6))"]
)
def test_memory_is_limited(program):
    assert execute(program, memory=2**28) == Execution("memory")


def scripted(monkeypatch, tmp_path, text):
    """Put a script without any guard in the place of the sandbox."""
    script = tmp_path / "script.py"
    script.write_text(text)
    monkeypatch.setattr(execution, "PYTHON", (sys.executable, "-S", str(script)))


@pytest.mark.parametrize("last", ["os._exit(0)", "time.sleep(60)"])
def test_processes_of_the_program_die_with_it(monkeypatch, tmp_path, last):
    """A grandchild that keeps the pipe open, too."""
    beats = tmp_path / "beats"
    scripted(
        monkeypatch,
        tmp_path,
        f"""
import os, signal, time
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
    assert execute("", timeout=0.7).outcome in ("timeout", "error")
    assert time.monotonic() - start < 5
    size = beats.stat().st_size
    assert size > 0
    time.sleep(0.1)
    assert beats.stat().st_size == size


def test_cpu_time_is_limited_where_nobody_watches(tmp_path):
    request = {"program": "while 1: pass", "test": "", "token": "", "memory": 2**30, "seconds": 1}
    with (tmp_path / "request").open("w+b") as stdin:
        stdin.write(marshal.dumps(request))
        stdin.seek(0)
        report, status = supervise(stdin, str(tmp_path), 20)
    assert (report, status) == ("", -signal.SIGXCPU)


@pytest.mark.parametrize(
    ("report", "status", "expected"),
    [
        ("secret", None, Execution("ok")),
        ("secret ", None, Execution("error", "wrote to the report")),
        ("ok", None, Execution("error", "wrote to the report")),
        ("ok ", 0, Execution("error", "wrote to the report")),
        ("fail a b", None, Execution("fail", "a b")),
        ("failsecret", None, Execution("error", "wrote to the report")),
        ("", None, Execution("timeout")),
        ("", -signal.SIGXCPU, Execution("timeout")),
        ("", -signal.SIGKILL, Execution("memory")),
        ("", errno.ENOMEM, Execution("memory")),
        ("", 0, Execution("error", "ended early with exit status 0")),
        ("", -signal.SIGSEGV, Execution("error", "ended early with exit status -11")),
    ],
)
def test_what_a_report_and_a_status_mean(report, status, expected):
    assert judge(report, status, "secret") == expected


CHEATS = {
    "exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
    "write": "import os\nos.write = os._exit = lambda *a: 0",
    "exceptions": "import builtins\nbuiltins.AssertionError = builtins.BaseException = OSError",
    "names": "import os, sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('run', 'end', 'exit', '_exit', 'loads', 'put', 'get'):\n"
    "        if hasattr(m, n): setattr(m, n, lambda *a, **k: None)",
    "frames": "import sys\nf = sys._getframe()\nwhile f:\n"
    "    for n in ('finish', 'leave'): f.f_locals[n] = lambda *a: None\n"
    "    f.f_globals.clear() if f.f_back is None else 0\n    f = f.f_back",
    "codes": "import sys\nf = sys._getframe()\nwhile f:\n    for v in f.f_locals.values():\n"
    "        if isinstance(v, list): v.clear()\n    f = f.f_back",
    "reports": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'ok')\n"
    "    except OSError: pass",
    "closed": f"import os\n{RIGHT}os.closerange(3, 64)",
    "unraisable": "import sys\nsys.unraisablehook = sys.excepthook = lambda *a: None",
    "audit": "import sys\nsys.addaudithook(lambda *a: None)",
    "hook": "try: open('/new', 'w')\nexcept PermissionError as e:\n"
    "    e.__traceback__.tb_frame.f_globals.clear()",
}


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_tricks_do_not_pass(program):
    if "def add" not in program:
        program = f"{WRONG}{program}"
    assert execute(program, TEST, timeout=0.5).outcome in ("fail", "error", "timeout")


SPY = """
import re, sys
def texts(frame):
    while frame:
        yield from (repr(v) for s in (frame.f_locals, frame.f_globals) for v in list(s.values()))
        frame = frame.f_back
def attempts():
    yield from texts(sys._getframe())
    try:
        open("/new", "w")
    except PermissionError as error:
        yield from texts(error.__traceback__.tb_next.tb_frame)
    for module in list(sys.modules.values()):
        yield from (repr(v) for v in list(vars(module).values()) if type(v) in (str, bytes, dict))
    for stream in (sys.stdin, sys.__stdin__):
        for source in (stream, stream.buffer):
            try:
                source.seek(0)
            except OSError:
                pass
            yield str(source.read())
    yield repr(sys.argv + sys.orig_argv)
    for file in ("cmdline", "environ"):
        try:
            yield open(f"/proc/self/{file}").read()
        except OSError:
            pass
found = [hit for text in attempts() for hit in re.findall(TOKEN, text)]
raise ValueError(f"found {found}")
"""


def test_the_token_is_not_in_sight(monkeypatch):
    """Nor in frames, modules, streams or arguments; the spy does find what is in sight."""
    monkeypatch.setattr(execution.secrets, "token_hex", lambda _: "5eed" * 8)
    hidden = f"TOKEN = r'\\b(?:5eed){{8}}\\b'{SPY}"
    assert execute(hidden) == Execution("error", "ValueError: found []")
    seen = execute("TOKEN = 'SIGN[0-9]ED'" + SPY, "'SIGN1ED'")
    assert seen.error.startswith("ValueError: found ['SIGN1ED'")


REFUSED = """
ctypes = __import__('ctypes')
__import__('_ctypes').dlopen(None, 0)
__import__('fcntl').flock(0, 8)
gc.get_objects()
os.chdir('/')
os.execv('/bin/true', ['true'])
os.fork()
os.kill(os.getppid(), 0)
os.killpg(0, 0)
os.mkdir('folder')
os.posix_spawn('/bin/true', ['true'], {})
os.symlink('/', 'root')
os.system('true')
__import__('pty').spawn('true')
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
__import__('signal').pthread_kill(0, 0)
socket.getaddrinfo('localhost', 80)
socket.socket()
subprocess.run(['true'])
sys._current_frames()
sys.setprofile(print)
sys.settrace(print)
"""
CHANGES = """
open(OLD, 'a')
open(OLD, 'r+')
open(OLD, 'w')
open(OLD.encode(), 'w')
open(NEW, 'x')
open('../new', 'w')
os.chmod(OLD, 0)
os.link(OLD, 'mine')
os.open(NEW, os.O_RDONLY | os.O_CREAT)
os.open(OLD, os.O_WRONLY | os.O_TRUNC)
os.remove(OLD)
os.rename(OLD, NEW)
os.replace(OLD, 'mine')
os.truncate(OLD, 0)
os.unlink(OLD)
os.utime(OLD, (0, 0))
pathlib.Path(OLD).unlink()
pathlib.Path(OLD).write_text('')
shutil.rmtree(HOME)
"""
TRIES = """
import gc, os, pathlib, resource, shutil, socket, subprocess, sys
OLD, NEW, HOME, STATEMENTS = {!r}
done = []
for statement in STATEMENTS.strip().splitlines():
    try:
        exec(statement)
    except PermissionError as error:
        if str(error).endswith(" is not allowed here"):
            continue
    except BaseException:
        pass
    done.append(statement)
raise ValueError(done)
"""


@pytest.mark.parametrize("statements", [REFUSED, CHANGES])
def test_what_is_refused(tmp_path, statements):
    """Processes, sockets, looking at other frames, changes of files elsewhere."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("text")
    before = old.stat()
    done = execute(TRIES.format((str(old), str(new), str(tmp_path), statements)))
    assert done == Execution("error", "ValueError: []")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert old.read_text() == "text"
    assert (old.stat().st_mode, old.stat().st_mtime) == (before.st_mode, before.st_mtime)


def test_the_folder_is_new_writable_and_gone_afterwards():
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
    done = execute(program)
    kind, _, home = done.error.partition(": ")
    assert kind == "ValueError", done
    assert Path(home).is_absolute()
    assert not Path(home).exists()


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


def test_there_is_no_network():
    """But in a kernel that gives nobody a network of his own."""
    probe = "import ctypes\nraise SystemExit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    if sys.platform != "linux" or subprocess.run([sys.executable, "-c", probe]).returncode:
        pytest.skip("no network namespaces here")
    devices = "open('/proc/self/net/dev').read().splitlines()[2:]"
    assert execute(f"raise ValueError([line.split()[0] for line in {devices}])").error in (
        "ValueError: []",
        "ValueError: ['lo:']",
    )
    inside = execute("import os\nraise ValueError(os.stat('/proc/self/ns/net').st_ino)").error
    assert inside != f"ValueError: {os.stat('/proc/self/ns/net').st_ino}"


def test_a_system_without_process_groups_is_named(monkeypatch):
    monkeypatch.setattr(execution.os, "name", "nt")
    with pytest.raises(DllmError, match=r"cannot run programs on .*expected Linux or macOS"):
        execute(RIGHT)


def test_the_pipe_is_read_once():
    read, write = os.pipe()
    os.write(write, b"x" * 5000)
    with io.FileIO(read) as pipe:
        assert execution.read(pipe, 1) == "x" * 4096
    os.close(write)
