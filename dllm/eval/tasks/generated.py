"""Families of the bundled model as tasks: its own prompts, of which it has seen none.

Strict grading is the family's own grader on the reply; lenient grading is the same on the reply
without what stands around the answer. Reasons are the family's.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import ClassVar

from dllm.eval.tasks.base import Grade, Sample, TaskBase
from dllm.eval.tasks.datasets import TASKS, Example, Task, draw_held_out
from dllm.eval.tasks.options import check_sizes
from dllm.eval.tasks.puzzles import read_grid

CALCULATION = r"[0-9]+ [-+*] [0-9]+ = [0-9]+"
STEP = re.compile(rf"^[ \t]*({CALCULATION})[ \t]*$", re.MULTILINE)
RESULT = re.compile(r"^[ \t*]*Answer:[ \t*]*([0-9]+)(?: [a-z]+)?[.* \t]*$", re.MULTILINE)
OPENING = re.compile(r"[\[{]")
FUNCTION = re.compile(r"^def .*(?:\n(?:[ \t].*|$))*", re.MULTILINE)  # up to a line at its margin


def last(found: list[str]) -> str | None:
    return found[-1] if found else None


@dataclass(frozen=True)
class FamilyTask(TaskBase):
    """A family of `dllm.eval.tasks` as a task. n: by default all of the family's sizes."""

    family: ClassVar[Task]

    def __post_init__(self) -> None:
        if not self.n:
            object.__setattr__(self, "n", self.family.sizes)
        check_sizes(self.n, self.family.sizes[0], self.family.sizes[-1])
        if self.surface != "free":
            raise ValueError(f"surface={self.surface!r}: expected free, {self.name} has no items")

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        example = draw_held_out(self.family, rng, n)
        facts = json.loads(json.dumps(example.facts))  # as they come back from a file
        return Sample(example.prompt, example.answer, facts)

    def grade(self, sample: Sample, reply: str) -> Grade:
        example = Example(self.family.name, sample.prompt, sample.answer, sample.facts)
        if self.family.grade(example, reply) == "ok":
            return Grade.of("ok", strict=True)
        answer = self.read(reply)
        reason = "parse" if answer is None else self.family.grade(example, answer)
        return Grade.of(reason, strict=False)

    def read(self, reply: str) -> str | None:
        """The answer that stands in `reply`, without what is around it; None where none does."""
        raise NotImplementedError


@dataclass(frozen=True)
class WordProblem(FamilyTask):
    """A word problem in 1 to 4 steps, each of which the answer has to show."""

    name: ClassVar[str] = "word_problem"
    family: ClassVar[Task] = TASKS["word_problem"]

    def read(self, reply: str) -> str | None:
        results = list(RESULT.finditer(reply))
        if not results:
            return None
        steps = STEP.findall(reply, 0, results[-1].start())
        return "\n".join([*steps, f"Answer: {results[-1][1]}"])


@dataclass(frozen=True)
class Calculation(FamilyTask):
    """One calculation, written down with its result."""

    name: ClassVar[str] = "calculation"
    family: ClassVar[Task] = TASKS["calculation"]

    def read(self, reply: str) -> str | None:
        return last(re.findall(CALCULATION, reply))


@dataclass(frozen=True)
class LatinFill(FamilyTask):
    """A Latin square of 4 by 4 to complete."""

    name: ClassVar[str] = "latin_fill"
    family: ClassVar[Task] = TASKS["latin"]

    def read(self, reply: str) -> str | None:
        return read_grid(reply) or None


@dataclass(frozen=True)
class Json(FamilyTask):
    """A sentence to a JSON object."""

    name: ClassVar[str] = "json"
    family: ClassVar[Task] = TASKS["json"]

    def read(self, reply: str) -> str | None:
        return last_json(reply, dict)


@dataclass(frozen=True)
class Records(FamilyTask):
    """Sentences to a JSON list of objects."""

    name: ClassVar[str] = "records"
    family: ClassVar[Task] = TASKS["records"]

    def read(self, reply: str) -> str | None:
        return last_json(reply, list)


def last_json(reply: str, kind: type) -> str | None:
    """The text of the last JSON value of a `kind` in `reply` that is no part of another one."""
    found, at = None, 0
    while opening := OPENING.search(reply, at):
        at = opening.start()
        try:
            value, end = json.JSONDecoder().raw_decode(reply, at)
        except ValueError:
            at += 1
            continue
        except RecursionError:  # to try every bracket of a very deep nest would take minutes
            break
        found = reply[at:end] if isinstance(value, kind) else found
        at = end
    return found


@dataclass(frozen=True)
class TableTask(FamilyTask):
    """Sentences to a markdown table."""

    name: ClassVar[str] = "table"
    family: ClassVar[Task] = TASKS["table"]

    def read(self, reply: str) -> str | None:
        lines = reply.split("\n")
        marked = [at for at, line in enumerate(lines) if line.lstrip().startswith("|")]
        return "\n".join(lines[marked[0] : marked[-1] + 1]) if marked else None


@dataclass(frozen=True)
class Function(FamilyTask):
    """A description to a Python function, compared by its syntax tree and never run."""

    name: ClassVar[str] = "function"
    family: ClassVar[Task] = TASKS["function"]

    def read(self, reply: str) -> str | None:
        return last(FUNCTION.findall(reply))
