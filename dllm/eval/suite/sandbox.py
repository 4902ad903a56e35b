"""The inside of `execution`: a program and the test that judges it, in two processes.

A script for a fresh interpreter, not for import. It moves behind its wall and forks. The child runs
the program and calls its function when asked to; the parent, the judge, runs the test on what comes
back, which are plain values (`pack`), and alone can write the report. The program has neither the
test, nor the report, nor a way into the judge: whatever it does to its own process, it passes by
right answers only.

argv: the wall ("namespaces": build it here; else it stands already), seconds, bytes of memory,
modules to import for both (joined by commas), then the folders and files that are needed. stdin:
behind this script, marshalled (program, test, function), which the judge alone reads.
"""

from __future__ import annotations

import _signal
import errno
import marshal
import os
import posix
import resource
import sys
from types import ModuleType

TYPE_CHECKING = False  # importing typing takes longer than most programs
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

FILE_BYTES = 2**20
FOLDER = "size=64m,nr_inodes=1k,mode=700"
MESSAGE = 500  # bytes
BEGUN = b"+"  # the wall stands

# Audit events by prefix (docs.python.org/3/library/audit_events.html).
REFUSED = (
    "cpython.PyInterpreterState_New",  # an interpreter without this hook
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
HARMLESS = frozenset(
    {"os.fwalk", "os.listdir", "os.putenv", "os.scandir", "os.unsetenv", "os.walk"}
)
# Modules that reach around the events.
UNKNOWN = frozenset(
    {
        "_ctypes",
        "_dbm",
        "_gdbm",
        "_interpreters",
        "_multiprocessing",
        "_posixshmem",
        "_posixsubprocess",
        "_ssl",
        "_testcapi",
        "_testinternalcapi",
        "_testmultiphase",
        "_testsinglephase",
        "_tkinter",
        "_xxsubinterpreters",
        "posix",
        "readline",
    }
)
# Functions of os and of signal without an event.
UNSEEN = (
    "chroot",
    "login_tty",
    "mkfifo",
    "mknod",
    "openpty",
    "pidfd_open",
    "pidfd_send_signal",
    "posix_openpt",
    "setns",
    "setpgid",
    "setpgrp",
    "setpriority",
    "setsid",
    "unshare",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# --- the walls ------------------------------------------------------------------------------------


def enclose(shown: Iterable[str]) -> None:
    """Give up, in namespaces of its own, everything but `shown`, read-only, and a small folder."""
    from ctypes import CDLL, c_char_p, c_int, c_long, c_uint32, c_uint64, c_ulong, get_errno

    libc = CDLL(None, use_errno=True)
    nosuid, nodev, bind, recursive = 2, 4, 4096, 16384  # MS_ of mount.h
    attributes = (c_uint64 * 4)(1 | nosuid | nodev)  # read-only; MOUNT_ATTR_ has the same numbers

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments):
            raise OSError(get_errno(), f"{name}: {os.strerror(get_errno())}")

    def mount(source: str | None, target: str, kind: str | None, flags: int, more: str = "") -> None:
        words = (None if word is None else os.fsencode(word) for word in (source, target, kind))
        call("mount", *map(c_char_p, words), c_ulong(flags), c_char_p(more.encode()))

    root = os.getcwd()
    mount("tmpfs", root, "tmpfs", nosuid | nodev, "size=1m,mode=755")
    for place in (*shown, os.devnull):
        target = root + place
        if os.path.isdir(place):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT, 0o600))
        mount(place, target, None, bind | recursive)
        if place != os.devnull:
            path, size = c_char_p(os.fsencode(target)), c_long(32)
            # mount_setattr of the working directory's (-100) paths, AT_RECURSIVE
            call("syscall", c_long(442), c_int(-100), path, c_uint32(0x8000), attributes, size)
    os.makedirs(f"{root}/tmp", exist_ok=True)
    mount("tmpfs", f"{root}/tmp", "tmpfs", nosuid | nodev, FOLDER)
    mount(None, root, None, 32 | bind | 1 | nosuid | nodev)  # MS_REMOUNT, MS_RDONLY
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", 2)  # MNT_DETACH: what was the root
    os.chdir("/tmp")
    call("prctl", 38, c_ulong(1), c_ulong(0), c_ulong(0), c_ulong(0))  # PR_SET_NO_NEW_PRIVS
    call("capset", (c_uint32 * 2)(0x20080522, 0), (c_uint32 * 6)())  # _LINUX_CAPABILITY_VERSION_3


def lock() -> None:
    """Keep other processes of the user, this one's child among them, out of its memory."""
    if sys.platform == "linux":
        try:
            from ctypes import CDLL, c_ulong
        except ImportError:  # a Python that was built without libffi
            return
        CDLL(None).prctl(4, *map(c_ulong, (0, 0, 0, 0)))  # PR_SET_DUMPABLE


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


def guard(home: str, shown: tuple[str, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: no sockets, processes or changes of files; new files directly in `home`, and
    only the library is read.

    It uses constants, operators and methods of exact types alone, and defaults in place of globals:
    the program can change what names mean, and any frame's globals.
    """

    def check(
        event: str,
        arguments: tuple[Any, ...],
        home: str = home,
        shown: tuple[str, ...] = tuple(f"{place}/" for place in shown),
        null: str = os.devnull,
        writes: int = WRITES,
        prefixes: tuple[str, ...] = REFUSED,
        harmless: frozenset[str] = HARMLESS,
        unknown: frozenset[str] = UNKNOWN,
        text: type = str,
        number: type = int,
        kind: Callable[[object], type] = type,
        refusal: type[Exception] = PermissionError,
        absent: type[Exception] = ImportError,
    ) -> None:
        if event == "import" and arguments[0] in unknown:
            raise absent(f"{arguments[0]} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            if kind(path) is number:
                return  # open already
            if kind(path) is not text:  # its words may change between this look and the system's
                raise refusal("open is not allowed here but with a path that is a string")
            folder = path.rpartition("/")[0]
            # os.open has no mode, and may mean a path that begins in another folder
            inside = folder == home or path == null or (folder in ("", ".") and mode is not None)
            library = path.startswith(shown) and "/.." not in path
            refused = not inside and (flags & writes != 0 or not library)
        else:
            refused = event.startswith(prefixes) and event not in harmless
        if refused:
            raise refusal(f"{event} is not allowed here")

    return check


def hide() -> None:
    """Take away what changes the system and has no audit event."""

    def refuse(name: str) -> Callable[..., NoReturn]:
        def refused(*_: object, **__: object) -> NoReturn:
            raise PermissionError(f"{name} is not allowed here")

        return refused

    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]  # another import is caught by the audit hook
    for name in UNSEEN:
        for module in (os, posix, _signal):
            if hasattr(module, name):
                setattr(module, name, refuse(name))
    stub: Any = ModuleType("_posixsubprocess")  # subprocess and asyncio want to import it
    stub.fork_exec = refuse("fork_exec")
    sys.modules["_posixsubprocess"] = stub


# --- plain values between the two processes -------------------------------------------------------


class Thing:
    """Stands for a value that is no plain one: equal to nothing but itself."""


def pack(value: Any) -> bytes:
    """`value` as a tag, its length and its content. Numbers, texts, None and the builtin containers
    keep their type, subclasses become what they derive from; what else can be iterated arrives as
    an iterator, all the rest as a `Thing`.
    """
    if value is None or value is True or value is False:
        tag, content = b"c", repr(value).encode()
    elif isinstance(value, int):
        tag, content = b"i", hex(value).encode()
    elif isinstance(value, float):
        tag, content = b"f", float.hex(value).encode()
    elif isinstance(value, complex):
        tag, content = b"z", pack(value.real) + pack(value.imag)
    elif isinstance(value, str):
        tag, content = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (bytes, bytearray)):
        tag, content = b"b", bytes(value)
    elif isinstance(value, range):
        tag, content = b"r", pack(value.start) + pack(value.stop) + pack(value.step)
    elif isinstance(value, dict):
        tag, content = b"d", b"".join(pack(key) + pack(each) for key, each in value.items())
    elif hasattr(value, "as_integer_ratio"):  # Decimal, Fraction
        try:
            tag, content = b"q", b"".join(map(pack, value.as_integer_ratio()))
        except (ValueError, OverflowError):  # not a number, or without an end
            tag, content = b"o", b""
    else:
        kinds = ((list, b"l"), (tuple, b"t"), (set, b"S"), (frozenset, b"F"), (object, b"I"))
        tag = next(tag for kind, tag in kinds if isinstance(value, kind))
        try:
            content = b"".join(map(pack, value))
        except TypeError:
            tag, content = b"o", b""
    return tag + len(content).to_bytes(8, "big") + content


def unpack(packed: memoryview) -> list[Any]:
    """The values that stand one after another in `packed`, whoever wrote them; some exception where
    it is nothing of the kind.
    """
    values = []
    while packed:
        tag, end = chr(packed[0]), 9 + int.from_bytes(packed[1:9], "big")
        if end > len(packed):
            raise ValueError("a value is cut short")
        values.append(unpacked(tag, packed[9:end]))
        packed = packed[end:]
    return values


def unpacked(tag: str, content: memoryview) -> Any:
    if tag in "cifs":
        word = str(content, "utf-8", "surrogatepass")
        if tag == "c":
            return {"None": None, "True": True, "False": False}[word]
        return word if tag == "s" else int(word, 16) if tag == "i" else float.fromhex(word)
    if tag == "b":
        return bytes(content)
    items = unpack(content)
    if tag == "q":
        from fractions import Fraction

        return Fraction(*items)
    make: dict[str, Callable[[], Any]] = {
        "z": lambda: complex(*items),
        "r": lambda: range(*items),
        "d": lambda: dict(zip(items[::2], items[1::2], strict=True)),
        "l": lambda: items,
        "t": lambda: tuple(items),
        "S": lambda: set(items),
        "F": lambda: frozenset(items),
        "I": lambda: iter(items),
        "o": Thing,
    }
    return make[tag]()


def send(fd: int, *values: Any) -> None:
    content = memoryview(pack(values))
    while content:
        content = content[os.write(fd, content) :]


def receive(fd: int) -> list[Any]:
    """What `send` was given at the other end; EOFError where that is gone."""
    length = int.from_bytes(read(fd, 9)[1:], "big")
    return unpack(memoryview(read(fd, length)))


def read(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# --- the program ----------------------------------------------------------------------------------


def serve(questions: int, answers: int) -> None:
    """Run the program, then its functions as they are asked for."""
    reply, leave = send, os._exit  # the program may change what the names mean
    program = ModuleType("program")
    sys.modules["program"] = program
    (source,) = receive(questions)
    try:
        code = compile(source, "<program>", "exec", dont_inherit=True)
    except Exception as error:
        reply(answers, "syntax", *described(error))
        return
    done: tuple[Any, ...] = ("value", None)
    try:
        exec(code, program.__dict__)
        while True:
            reply(answers, *done)
            name, arguments, options = receive(questions)
            if name not in program.__dict__:
                raise NameError(f"name {name!r} is not defined")
            try:
                done = "value", program.__dict__[name](*arguments, **options)
            except MemoryError:
                raise
            except BaseException as error:
                done = "raised", *described(error)
    except MemoryError:
        leave(errno.ENOMEM)  # there may be no memory for a message
    except BaseException as error:
        reply(answers, "raised", *described(error))


def described(error: BaseException) -> tuple[str, list[str], str]:
    """Its name, those of what it derives from, and its words."""
    bases = [each.__name__ for each in type(error).__mro__]
    return type(error).__name__, bases, str(error)[:MESSAGE]


# --- the judge ------------------------------------------------------------------------------------


def judge(request: int, report: int, questions: int, answers: int, pid: int) -> NoReturn:
    """Report "ok", or how the program or its test ended and in which words. pid: the program's."""
    with open(request, "rb") as file:
        program, test, function = marshal.load(file)
    try:
        code = compile(test, "<test>", "exec", dont_inherit=True)
        program.encode()
    except Exception as error:
        end(report, "syntax", error)

    def ask(*question: Any) -> Any:
        try:
            send(questions, *question)
            kind, *answer = receive(answers)
        except (OSError, EOFError):
            end(report, *fate(pid))
        if kind == "value":
            return answer[0]
        error = raised(*answer)
        if kind == "syntax":
            end(report, kind, error)
        raise error

    def call(*arguments: Any, **options: Any) -> Any:
        return ask(function, arguments, options)

    try:
        ask(program)
        exec(code, {"__name__": "test", function: call})
    except MemoryError:
        os._exit(errno.ENOMEM)  # there may be no memory for a message
    except AssertionError as error:
        end(report, "fail", error)
    except BaseException as error:
        end(report, "error", error)
    end(report, "ok")


def raised(name: str, bases: list[str], message: str) -> BaseException:
    """What `described` describes, as far as it is known here."""
    known = vars(sys.modules["builtins"])
    base = next(known[each] for each in bases if each in known)
    own = {"__init__": lambda self: None, "__str__": lambda self: message}
    error: BaseException = type(name, (base,), own)()
    return error


def fate(pid: int) -> tuple[str, str]:
    """The outcome of a process that says nothing more, and words for it."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status in (-_signal.SIGXCPU, -_signal.SIGALRM):
        return "timeout", ""
    if status in (errno.ENOMEM, -_signal.SIGKILL):  # SIGKILL: by the kernel, memory ran out
        return "memory", ""
    return "error", f"ended early with exit status {status}"


def end(report: int, outcome: str, why: BaseException | str = "") -> NoReturn:
    """Write the report, if what was raised can be put in words, and end the process in any case."""
    try:
        text = why if isinstance(why, str) else f"{type(why).__name__}: {str(why)[:MESSAGE]}"
        line = " ".join([outcome, *text.split()])
        os.write(report, line.encode("utf-8", "backslashreplace")[:MESSAGE])
    finally:
        os._exit(0)


def main() -> NoReturn:
    wall, seconds, memory, modules, *shown = sys.argv[1:]
    request, report = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if wall == "namespaces":
        enclose(shown)
    lock()
    limit(int(seconds), int(memory))
    os.write(report, BEGUN)
    for name in filter(None, modules.split(",")):
        __import__(name)
    (questions, asking), (answering, answers) = os.pipe(), os.pipe()
    pid = os.fork()
    mine = (questions, answers) if pid == 0 else (asking, answering)
    for fd in {null, request, report, questions, asking, answering, answers}:
        if fd not in mine and not (pid and fd in (request, report)):
            os.close(fd)
    hide()
    sys.addaudithook(guard(os.getcwd(), tuple(shown)))
    if pid:
        _signal.signal(_signal.SIGALRM, lambda *_: end(report, "timeout"))
    _signal.alarm(2 * int(seconds))  # for processes whose parent was killed
    if pid:
        judge(request, report, *mine, pid)
    try:
        serve(*mine)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
