"""Ways out of the sandbox and around its test: each wall stops them, alone and with the other."""

import os
import sys
import time
from pathlib import Path

import pytest

from dllm.errors import DllmError
from dllm.eval.sandbox import execution
from dllm.eval.sandbox.execution import WALLS, Execution, execute
from dllm.eval.sandbox.guard import guard
from tests.eval.sandbox.programs import RIGHT, TEST, WRONG, without_hook

HOOK = WALLS[-1]

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
    "hook": "try: open('/nowhere/new', 'w')\nexcept PermissionError as e:\n"
    "    e.__traceback__.tb_frame.f_globals.clear()",
    "equal": "class Five:\n    def __eq__(self, other): return True\ndef add(a, b): return Five()",
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
def test_nor_do_they_where_the_hook_is_got_around(monkeypatch, wall, program):
    without_hook(monkeypatch)
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
import os, re
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
for fd in range(3, 32):
    try:
        found |= set(re.findall(rb"SIGN[0-9]ED", os.pread(fd, 2**20, 0)))
    except OSError:
        pass
raise ValueError(sorted(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mem")
def test_the_test_is_nowhere_that_the_program_can_read(monkeypatch):
    """Neither in its memory nor in its files, where it may read all of them."""
    without_hook(monkeypatch)
    done = execute(HUNT, "answer = 'SIGN1ED'", wall=HOOK)
    if "Permission denied" in done.error:
        pytest.skip("the system itself keeps a process from reading this")
    assert done == Execution("error", "ValueError: [b'SIGN2ED']")


ESCAPES = {
    "dir_fd": "fd = os.open(OUT, 0)\nos.close(os.open('new', os.O_WRONLY | os.O_CREAT, dir_fd=fd))",
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


CREATE = os.O_WRONLY | os.O_CREAT


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("new", None, CREATE)),  # os.open, perhaps with dir_fd
        ("open", ("/new", "w", CREATE)),
        ("open", ("/lib/new", "w", CREATE)),
        ("open", ("/lib/../etc/passwd", "r", 0)),
        ("open", ("/library", "r", 0)),
        ("open", (b"/lib/os.py", "r", 0)),
        ("open", ("/folder/../new", "w", CREATE)),
        ("cpython.PyInterpreterState_New", ()),
        ("import", ("_ctypes", None)),
    ],
)
def test_the_hook_refuses(event, arguments):
    with pytest.raises((PermissionError, ImportError), match="is not allowed here"):
        guard("/folder", ("/lib",))(event, arguments)


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("new", "w", CREATE)),
        ("open", ("./new", "w", CREATE)),
        ("open", ("/folder/new", None, CREATE)),
        ("open", ("/lib/os.py", "r", 0)),
        ("open", (os.devnull, "w", CREATE)),
        ("open", (3, "w", CREATE)),
        ("import", ("json", None)),
        ("os.listdir", ("/",)),
    ],
)
def test_the_hook_lets_pass(event, arguments):
    guard("/folder", ("/lib",))(event, arguments)


@pytest.fixture
def escape(tmp_path):
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
def test_an_escape_is_stopped_by_the_system(monkeypatch, escape, which):
    """With the first wall alone, whether that is namespaces or bubblewrap."""
    if execution.best_wall() == HOOK:
        pytest.skip("no wall of the system here")
    without_hook(monkeypatch)
    assert not escape(which, execution.best_wall())


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux has them")
@pytest.mark.parametrize("which", sorted(set(ESCAPES) - {"path", "globals"}))
def test_an_escape_is_one_where_nothing_stops_it(monkeypatch, escape, which):
    without_hook(monkeypatch)
    assert escape(which, HOOK)


ALONE = """
import ctypes, os, socket
assert os.getcwd() == "/tmp", os.getcwd()
assert os.listdir() == []
assert os.listdir("/dev") == ["null"], os.listdir("/dev")
assert set(os.listdir("/")) <= {"dev", "tmp", *SHOWN}, os.listdir("/")
assert not os.path.exists(SECRET), SECRET
assert {name for _, name in socket.if_nameindex()} <= {"lo"}
assert os.getppid() in (0, 1)
for place in ("/usr/new", os.path.dirname(os.__file__) + "/new", "/dev/new"):
    try:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
    except OSError as error:
        assert error.errno in (2, 30), error  # ENOENT, EROFS
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


def test_there_is_nothing_but_the_library(monkeypatch, wall):
    """No network, no files, no processes, nothing that can be changed, no way to change that."""
    if wall == HOOK:
        pytest.skip("this is what it cannot do")
    without_hook(monkeypatch)
    shown = {place.split("/")[1] for place in (*execution.places(), sys.executable)}
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
