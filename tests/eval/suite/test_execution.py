"""Programs that mean harm, or just are wrong: each ends soon, and only an honest one is ok."""

import errno
import io
import math
import os
import signal
import sys
import time
from collections import Counter, deque, namedtuple
from contextlib import suppress
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.errors import DllmError
from dllm.eval.suite import execution
from dllm.eval.suite.execution import WALLS, Execution, execute, judge
from dllm.eval.suite.sandbox import Thing, pack, unpack

TEST = "assert add(2, 3) == 5"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
NAMESPACES, BUBBLEWRAP, HOOK = WALLS


@pytest.fixture(params=WALLS, ids=[wall.name for wall in WALLS], scope="module")
def wall(request):
    """Each wall that this system has."""
    try:
        execute("", wall=request.param)
    except DllmError as error:
        pytest.skip(str(error))
    return request.param


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


def scripted(monkeypatch, tmp_path, text):
    """Put a script in the place of the sandbox's."""
    script = tmp_path / "script.py"
    script.write_text(text)
    monkeypatch.setattr(execution, "SANDBOX", script)


def without_hook(monkeypatch, tmp_path):
    """The sandbox without its second wall."""
    text = execution.SANDBOX.read_text()
    for line in ("    hide()\n", "    sys.addaudithook(guard(os.getcwd(), tuple(shown)))\n"):
        assert text.count(line) == 1
        text = text.replace(line, "")
    scripted(monkeypatch, tmp_path, text)


@pytest.mark.parametrize("last", ["os._exit(0)", "time.sleep(60)"])
def test_processes_of_the_program_die_with_it(monkeypatch, tmp_path, last):
    """A grandchild that keeps the pipe open, too."""
    beats = tmp_path / "beats"
    scripted(
        monkeypatch,
        tmp_path,
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
def test_a_wall_that_falls_is_no_answer_of_the_program(monkeypatch, tmp_path, text):
    """It is an error of its own, and not of the program; the next wall is taken."""
    scripted(monkeypatch, tmp_path, text)
    said = r"cannot run programs behind an audit hook.*: (exit status 1|mount: not permitted)"
    with pytest.raises(DllmError, match=said):
        execute(RIGHT, TEST, "add", wall=HOOK)
    assert execution.best_wall.__wrapped__() == HOOK


def test_a_system_without_namespaces_has_the_hook(monkeypatch):
    monkeypatch.setattr(execution.shutil, "which", lambda _: None)
    assert execution.best_wall.__wrapped__() == HOOK
    with pytest.raises(DllmError, match="wall=namespaces: expected one that this system has"):
        execute(RIGHT, wall=NAMESPACES)


CHEATS = {
    "exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
    "write": "import os\nos.write = os._exit = lambda *a: 0",
    "exceptions": "import builtins\nbuiltins.AssertionError = builtins.BaseException = OSError",
    "names": "import os, sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('run', 'end', 'exit', '_exit', 'loads', 'put', 'get', 'reply'):\n"
    "        if hasattr(m, n): setattr(m, n, lambda *a, **k: None)",
    "frames": "import sys\nf = sys._getframe()\nwhile f:\n"
    "    for n in ('reply', 'leave'): f.f_locals[n] = lambda *a: None\n"
    "    f.f_globals.clear() if f.f_back is None else 0\n    f = f.f_back",
    "reports": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'ok')\n"
    "    except OSError: pass",
    "closed": f"import os\n{RIGHT}os.closerange(3, 64)",
    "unraisable": "import sys\nsys.unraisablehook = sys.excepthook = lambda *a: None",
    "audit": "import sys\nsys.addaudithook(lambda *a: None)",
    "hook": "try: open('/new', 'w')\nexcept PermissionError as e:\n"
    "    e.__traceback__.tb_frame.f_globals.clear()",
    "equal": "class Five:\n    def __eq__(self, other): return True\n"
    "def add(a, b): return Five()",
    "builtins": "import builtins\nbuiltins.add = builtins.check = lambda *a: 5",
    "exit": "import os\nadd = lambda a, b: os._exit(0)",
    "replies": "import sys\nframe = sys._getframe(1)\n"
    "for _ in range(9): frame.f_globals['send'](frame.f_locals['answers'], 'value', 6)",
    "end": "import sys\nsys._getframe(1).f_globals['end'](1, 'ok')",
    "judge": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
}


def wrong(cheat):
    return cheat if "def add" in cheat else f"{WRONG}{cheat}"


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_tricks_do_not_pass(wall, program):
    done = execute(wrong(program), TEST, "add", timeout=0.7, wall=wall)
    assert done.outcome in ("fail", "error", "timeout")


@pytest.mark.parametrize("wall", WALLS[::2], ids=["namespaces", "nothing"])
@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_nor_do_they_where_the_hook_is_got_around(monkeypatch, tmp_path, wall, program):
    without_hook(monkeypatch, tmp_path)
    try:
        done = execute(wrong(program), TEST, "add", timeout=0.7, wall=wall)
    except DllmError as error:
        pytest.skip(str(error))
    assert done.outcome != "ok"


def test_what_the_test_uses_is_its_own():
    """Not what the program makes of builtins, of modules and of the test's helpers."""
    test = "import math\ndef half(x): return x / 2\n"
    test += "assert abs(half(add(2, 3)) - math.floor(2.5)) < 1"
    assert execute(RIGHT, test, "add") == Execution("ok")
    change = "import builtins, math\nbuiltins.abs = math.floor = half = lambda x: 0\n"
    assert execute(change + WRONG, test, "add").outcome == "fail"


HUNT = """
import re
found = set()
mine = "SIGN" + str(2) + "ED"
with open("/proc/self/maps") as file:
    maps = [line.split() for line in file]
with open("/proc/self/mem", "rb", 0) as memory:
    for place, rights, *_, in maps:
        start, end = (int(word, 16) for word in place.split("-"))
        if rights.startswith("rw") and end - start < 2**26:
            memory.seek(start)
            found |= set(re.findall(rb"SIGN[0-9]ED", memory.read(end - start)))
raise ValueError(sorted(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mem")
def test_the_test_is_nowhere_in_the_memory_of_the_program(monkeypatch, tmp_path):
    """Even where the program may read all of it."""
    without_hook(monkeypatch, tmp_path)
    done = execute(HUNT, "answer = 'SIGN1ED'", wall=HOOK)
    if "Permission denied" in done.error:
        pytest.skip("the system itself keeps a process from reading this")
    assert done == Execution("error", "ValueError: [b'SIGN2ED']")


ESCAPES = {
    "dir_fd": "fd = os.open(OUT, 0)\n"
    "os.close(os.open('new', os.O_WRONLY | os.O_CREAT, dir_fd=fd))",
    "mkfifo": "os.mkfifo(f'{OUT}/new')",
    "mknod": "os.mknod(f'{OUT}/new')",
    "posix": "import sys\ndel sys.modules['posix']\nimport posix\nposix.mkfifo(f'{OUT}/new')",
    "process": """
import _posixsubprocess
late = f'sleep 0.3; echo > {OUT}/new'.encode()
shell = [b'/bin/sh', b'-c', late]
read, write = os.pipe()
rest = [*(-1,) * 6, read, write, True, True, -1, None, None, None, -1, None, True]
for last in (None, -1):
    try:
        _posixsubprocess.fork_exec(shell, shell[:1], True, (write,), None, None, *rest[:last])
    except TypeError:
        pass
""",
    "interpreter": """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
interpreters.run_string(interpreters.create(), f"open('{OUT}/new', 'w')")
""",
    "string": """
class Path(str):
    def rfind(self, *_): return -1
    def rpartition(self, _): return '', '', self
    def __getitem__(self, _): return ''
open(Path(f'{OUT}/new'), 'w')
""",
    "path": """
class Path:
    calls = 0
    def __fspath__(self):
        Path.calls += 1
        return 'new' if Path.calls == 2 else f'{OUT}/new'
for i in range(4):
    Path.calls = i
    try: os.close(os.open(Path(), os.O_WRONLY | os.O_CREAT))
    except OSError: pass
""",
    "functions": "os.path.dirname = lambda _: ''\nopen(f'{OUT}/new', 'w')",
    "builtins": "import builtins\nbuiltins.bool = lambda _: False\nopen(f'{OUT}/new', 'w')",
    "globals": """
try: os.mkdir(f'{OUT}/new')
except PermissionError as error:
    frame = error.__traceback__.tb_next.tb_frame
    frame.f_globals['REFUSED'] = frame.f_locals['prefixes'] = ()
os.mkdir(f'{OUT}/new')
""",
    "opener": "open('new', 'w', opener=lambda _, flags: os.open(f'{OUT}/new', flags))",
    "link": "os.symlink(OUT, 'out')\nopen('out/new', 'w')",
    "shared": "import _posixshmem\n_posixshmem.shm_open(NAME, os.O_CREAT | os.O_EXCL | os.O_RDWR)",
}


@pytest.fixture
def escape(tmp_path, monkeypatch):
    """Runs one of `ESCAPES`; whether it came out: a new file, its name in `tmp_path` or in shared
    memory.
    """
    out, name = tmp_path / "out", f"/dllm-test-{os.getpid()}"
    out.mkdir()
    shared = Path(f"/dev/shm{name}")

    def run(which, wall):
        program = f"import os\nOUT, NAME = {str(out)!r}, {name!r}\n{ESCAPES[which]}"
        try:
            execute(program, wall=wall)
        except DllmError as error:
            pytest.skip(str(error))
        if which == "process":
            time.sleep(0.5)
        return bool(list(out.iterdir())) or shared.exists()

    yield run
    shared.unlink(missing_ok=True)


@pytest.mark.parametrize("which", ESCAPES)
def test_an_escape_is_stopped_by_both_walls(escape, wall, which):
    assert not escape(which, wall)


@pytest.mark.parametrize("which", ESCAPES)
def test_an_escape_is_stopped_by_the_system(monkeypatch, tmp_path, escape, which):
    """With the first wall alone, whether that is namespaces or bubblewrap."""
    if execution.best_wall() == HOOK:
        pytest.skip("no wall of the system here")
    without_hook(monkeypatch, tmp_path)
    assert not escape(which, execution.best_wall())


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux has them")
@pytest.mark.parametrize("which", set(ESCAPES) - {"path", "globals"})
def test_an_escape_is_one_where_nothing_stops_it(monkeypatch, tmp_path, escape, which):
    without_hook(monkeypatch, tmp_path)
    assert escape(which, HOOK)


ALONE = """
import ctypes, os, socket
assert os.getcwd() == "/tmp", os.getcwd()
assert os.listdir() == []
assert os.listdir("/dev") == ["null"], os.listdir("/dev")
assert {"home", "root", "proc", "sys", "var", "work", "bin"}.isdisjoint(set(os.listdir("/")) - SHOWN)
assert not os.path.exists(SECRET), SECRET
assert {name for _, name in socket.if_nameindex()} <= {"lo"}
assert os.getppid() in (0, 1)
for place in ("/new", os.path.dirname(os.__file__) + "/new", "/dev/new"):
    try:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        assert error.errno in (30, 13, 1), error  # EROFS
    else:
        raise ValueError(place)
for call in (lambda: os.chroot("/tmp"), lambda: os.setuid(1), lambda: os.mount):
    try:
        call()
    except (OSError, AttributeError):
        continue
    raise ValueError("capabilities")
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == -1
assert ctypes.get_errno() == 1  # EPERM
assert libc.ptrace(16, 1, 0, 0) == -1  # PTRACE_ATTACH to the judge
open("mine", "w").write("text")
"""


def test_there_is_nothing_but_the_library(monkeypatch, tmp_path, wall):
    """No network, no files, no processes, nothing that can be changed, no way to change that."""
    if wall == HOOK:
        pytest.skip("this is what it cannot do")
    without_hook(monkeypatch, tmp_path)
    shown = {place.split("/")[1] for place in execution.places()}
    program = f"SHOWN, SECRET = {shown!r}, {str(Path(__file__))!r}\n{ALONE}"
    assert execute(program, wall=wall) == Execution("ok")


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
    except (ImportError, PermissionError) as error:
        if " is not allowed here" in str(error):
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


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.fractions()
    | st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    lambda inner: st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(st.integers() | st.text(), inner)
    | st.sets(st.integers() | st.text())
    | st.frozensets(st.binary()),
    max_leaves=20,
)


def typed(value):
    """Tells 1, 1.0 and True apart, and -0.0 from 0.0."""
    inner = [typed(each) for each in value] if isinstance(value, (list, tuple)) else repr(value)
    if isinstance(value, dict):
        inner = {key: typed(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        inner = value
    return type(value), inner


@given(PLAIN)
def test_plain_values_come_over_as_they_are(value):
    (back,) = unpack(memoryview(pack(value)))
    assert typed(back) == typed(value)


def test_other_values_become_plain_ones_or_nothing_at_all():
    class Odd:
        def __eq__(self, other):
            return True

    point = namedtuple("Point", "x y")(1, 2)
    values = [point, Counter("aab"), bytearray(b"x"), Decimal("2.5"), HTTPStatus.OK, math.nan]
    odd = [Odd(), print, Odd, Decimal("nan"), Decimal("inf")]
    ((*back, nan),) = unpack(memoryview(pack(values)))
    assert back == [(1, 2), {"a": 2, "b": 1}, b"x", 2.5, 200]
    assert [type(each) for each in back[:3]] == [tuple, dict, bytes]
    assert math.isnan(nan)
    assert {type(each) for each in unpack(memoryview(pack(odd)))[0]} == {Thing}
    ((items, keys, found),) = unpack(memoryview(pack([map(abs, [-1]), {2: 3}.keys(), deque([4])])))
    assert [list(items), list(keys), list(found)] == [[1], [2], [4]]


@given(st.binary() | st.lists(st.sampled_from([b"l", b"d", b"q", b"S", bytes(8)])).map(b"".join))
def test_what_is_no_value_is_an_exception(data):
    with suppress(Exception):
        unpack(memoryview(data))


def test_a_program_that_hands_over_too_much_is_an_error():
    nested = "def add(a, b):\n    x = []\n    for _ in range(10 ** 5): x = [x]\n    return x"
    assert execute(nested, TEST, "add").error.startswith("RecursionError")
    itself = "def add(a, b):\n    x = []\n    x.append(x)\n    return x"
    assert execute(itself, TEST, "add").error.startswith("RecursionError")
    forged = "import os\nfor fd in range(3, 16):\n    try: os.write(fd, b't' + b'\\xff' * 64)\n"
    forged += "    except OSError: pass"
    done = execute(f"{RIGHT}{forged}", TEST, "add", timeout=0.7)
    assert done.outcome in ("memory", "error", "timeout")


def test_what_a_program_raises_is_what_the_test_can_catch():
    program = "class Odd(KeyError): pass\ndef add(a, b): raise Odd('no such sum')"
    test = "try: add(2, 3)\nexcept KeyError as error: assert str(error) == {!r}"
    assert execute(program, test.format("'no such sum'"), "add") == Execution("ok")
    assert execute(program, "add(2, 3)", "add") == Execution("error", "Odd: 'no such sum'")
    number = "def add(a, b): return b'\\xff'.decode()"
    assert execute(number, "add(2, 3)", "add").error.startswith("UnicodeDecodeError: 'utf-8'")
    assert execute("", "add(2, 3)", "add").error == "NameError: name 'add' is not defined"
    options = "def add(a, *, b): return a + b"
    assert execute(options, "assert add(2, b=3) == 5", "add") == Execution("ok")
