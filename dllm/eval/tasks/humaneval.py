"""HumanEval (arXiv 2107.03374): the body of a Python function, graded by running its tests.

The settings are those under which LLaDA, Dream, Fast-dLLM and dParallel report it; the wording is
ours. Answers to a plain prompt go on inside the function and end where it ends. Answers of a chat
may hold the whole function or its body, in a code block or not. Reasons of its own: "fail", an
assertion does not hold; "error", the program raised something else; "timeout"; "memory". Programs
run as `execution` describes: read there what that does not protect from.
"""

from __future__ import annotations

import itertools
import random
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dllm.eval.sandbox.execution import best_wall, execute
from dllm.eval.tasks.base import Grade, Sample
from dllm.eval.tasks.files import Convention, FileTask, Setup


@dataclass(frozen=True)
class Wording(Convention):
    """ask: what is said before the code; then the code stands in a code block, and so should the
    answer.
    """

    ask: str = ""


ASK = "Complete this Python function. Reply with the whole function in one code block."
SETUPS: dict[Setup, Wording] = {
    "llada": Wording(1024, chat=False),
    "llada-instruct": Wording(512, chat=True, ask=ASK),
    "dream": Wording(512, chat=False),
    "dream-instruct": Wording(768, chat=True, ask=ASK),
    "fast-dllm": Wording(256, chat=True),
    "dparallel": Wording(256, chat=True),
}

FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"\n(?=\S)")  # the end of a function's body
DEMO = re.compile(r"^(?:if __name__\b|print\(|assert\b)", re.MULTILINE)
# A line of a module, as opposed to one of prose.
BEGIN = re.compile(r"(?:def|class|import|from|async) |@\w")
CODE = re.compile(BEGIN.pattern + r"|\s|$|[#)\]}]|\w+ = ")


def fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"


def continued(prompt: str, body: str) -> str | None:
    """`prompt` and what of `body` is inside its function; None where nothing is."""
    end = OUTSIDE.search(body)
    body = body[: end.start()] if end else body
    return f"{prompt}{body}\n" if body.strip() else None


def unfenced(reply: str) -> str:
    """The lines of code in a reply without a code block; the reply if there are none."""
    lines = itertools.dropwhile(lambda line: not BEGIN.match(line), reply.split("\n"))
    return "\n".join(itertools.takewhile(CODE.match, lines)) or reply


def definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:async )?def {name}\b", re.MULTILINE)


def extracted(prompt: str, name: str, reply: str) -> str | None:
    """The program that a chat answer gives for the function `name`, or None.

    A whole function gets what stands before the function in the prompt (imports, helpers) and
    loses what tries it out; a body gets the prompt.
    """
    if re.match(r"\n*(?: {4}|\t)", reply):
        return continued(prompt, reply)
    signature = definition(name)
    blocks: list[str] = FENCE.findall(reply) or [unfenced(reply)]
    code = next(filter(signature.search, blocks), blocks[0])
    start = signature.search(code)
    if start is None:
        code = code.strip("\n")
        return continued(prompt, code if code[:1].isspace() else textwrap.indent(code, "    "))
    demo = DEMO.search(code, start.end())
    above: str = signature.split(prompt, maxsplit=1)[0]
    return above + (code[: demo.start()] if demo else code)


@dataclass(frozen=True)
class HumanEval(FileTask):
    """timeout: seconds of wall clock that a program may take."""

    name: ClassVar[str] = "humaneval"
    source: ClassVar[str] = (
        "PATH of HumanEval.jsonl or .jsonl.gz (MIT, github.com/openai/human-eval)"
    )
    patterns: ClassVar[Mapping[str, str]] = {
        "task_id": r"\S",
        "prompt": r"(?m)^def ",
        "canonical_solution": r"\S",
        "entry_point": r"^\w+$",
        "test": r"(?m)^def check\(",
    }
    setups: ClassVar[Mapping[Setup, Convention]] = SETUPS
    timeout: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout={self.timeout}: expected a number of seconds above 0")

    @property
    def stop(self) -> tuple[str, ...]:
        return () if self.chat else ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```")

    @property
    def note(self) -> str:
        return f"programs run behind {best_wall().about}"

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        row = self.rows[i]
        prompt, answer = row["prompt"], row["canonical_solution"]
        facts = {key: row[key] for key in ("task_id", "prompt", "entry_point", "test")}
        if ask := SETUPS[self.setup].ask:
            prompt, answer = f"{ask}\n\n{fenced(prompt)}", fenced(prompt + answer)
        return Sample(prompt, answer, facts)

    def grade(self, sample: Sample, reply: str) -> Grade:
        """By running it; strict where the code block that was asked for defines the function."""
        prompt, name, test = (sample.facts[key] for key in ("prompt", "entry_point", "test"))
        program = extracted(prompt, name, reply) if self.chat else continued(prompt, reply)
        if program is None:
            return Grade.of("parse", strict=False)
        given = definition(name).split(prompt, maxsplit=1)[0]  # imports and helpers, for tests too
        test = f"{given}\n{test}\ncheck({name})"
        outcome = execute(program, test, name, timeout=self.timeout).outcome
        asked = SETUPS[self.setup].ask
        strict = not asked or any(map(definition(name).search, FENCE.findall(reply)))
        return Grade.of("parse" if outcome == "syntax" else outcome, strict=strict)
