"""The inside of `execution`: a program and the test that judges it, in two processes.

The process moves behind its wall and forks. The child runs the program and calls its function when
asked to; the parent, the judge, runs the test on what comes back, which are plain values, and alone
can write the report. The program has neither the test, nor the report, nor a way into the judge:
whatever it does to its own process, it passes by right answers only. Loaded by `execution` into a
fresh interpreter, without the package.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import marshal
import os
import sys
from types import ModuleType

from dllm.eval.sandbox.enclosure import enclose, limit, lock
from dllm.eval.sandbox.guard import guard, hide
from dllm.eval.sandbox.plain import receive, send

TYPE_CHECKING = False  # importing typing takes longer than most programs
if TYPE_CHECKING:
    from typing import Any, NoReturn

MESSAGE = 500  # bytes
BEGUN = b"+"  # the wall stands


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
    """The exception that `described` describes, as far as it is known here."""
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
