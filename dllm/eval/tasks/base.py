"""Interfaces of a task: dataset (questions), scorer (grades of replies), exact distribution.

Text only: no model, no tokenizer, no torch. A task has the first two and may have the third. It is
a dataclass whose fields are its options, so that a user names it as "shuffle:n=4+6,surface=infill"
(dllm.registry). Sample i is a function of (SUITE, task, n, seed, i) alone, whatever the options
that only change its wording.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from dllm.eval.shapes import shaped

SUITE = "dllm-suite-1"  # changes whenever a sample or a grade of any task does

# What is wrong with an answer. Reasons that only some tasks have come last.
REASONS = {
    "ok": "right",
    "parse": "no answer of the asked form can be read",
    "length": "too few or too many items",
    "duplicate": "an item stands too often",
    "missing": "an item that has to be there is not",
    "foreign": "an item that nobody gave",
    "unchanged": "the question's own items, although something had to change",
    "order": "the right items in a wrong order, or a wrong place changed",
    "arithmetic": "a wrong number",
    "steps": "the right result, but a step is wrong or left out",
    "clue": "a cell that was given is changed",
    "row": "a row holds a digit twice",
    "column": "a column holds a digit twice",
    "box": "a box holds a digit twice",
    "keys": "other keys than asked for",
    "values": "a wrong value",
    "header": "a wrong line of headings",
    "rows": "too few or too many rows",
    "cells": "a wrong cell",
    "tree": "a program that does something else",
    "fail": "a test of the program fails",
    "error": "the program raises an exception",
    "timeout": "the program takes too long",
    "memory": "the program takes too much memory",
}
Surface = Literal["free", "infill"]
Span = tuple[int, int]  # [start, end) in characters


@dataclass(frozen=True, slots=True)
class Sample:
    """One question. prompt: the user's turn; shots: (question, answer) turns before it; answer: a
    right one, where there are many one draw of them; facts: JSON values that grading needs.
    """

    prompt: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)
    shots: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the answer."""
        turns = [("user", self.prompt)]
        for question, answer in reversed(self.shots):
            turns = [("user", question), ("assistant", answer), *turns]
        return [{"role": role, "content": content} for role, content in turns]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: object) -> Sample:
        """The inverse of `as_dict`, other keys left out; ValueError names what is wrong."""
        sample = shaped(cls, fields, name="sample")
        if any(len(shot) != 2 for shot in sample.shots):
            raise ValueError("shots: expected pairs of a question and an answer")
        return sample


@dataclass(frozen=True, slots=True)
class Grade:
    """score: right, however it is wrapped (chatter before it, brackets, quotes, spaces); strict:
    right and in exactly the asked form; reason: "ok" if and only if `score`, else a code.
    """

    score: bool
    strict: bool
    reason: str

    @classmethod
    def of(cls, reason: str, *, strict: bool) -> Grade:
        """A right answer is strict where its form is; a wrong one never is."""
        return cls(reason == "ok", reason == "ok" and strict, reason)


class Dataset(Protocol):
    """Questions of several sizes. See `TaskBase` for what the members of a task mean."""

    @property
    def n(self) -> tuple[int, ...]: ...
    def count(self, n: int) -> int | None: ...
    def sample(self, rng: random.Random, n: int, i: int) -> Sample: ...


class Scorer(Protocol):
    """Judgement of replies to a dataset's questions."""

    def grade(self, sample: Sample, reply: str) -> Grade: ...
    def items(self, sample: Sample, reply: str) -> list[Span]: ...


class Task(Dataset, Scorer, Protocol):
    """A dataset, its scorer, and how a question is put."""

    name: ClassVar[str]

    @property
    def surface(self) -> Surface: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def chat(self) -> bool | Literal["auto"]: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def note(self) -> str: ...


@runtime_checkable
class ExactDistribution(Protocol):
    """The known distribution of a task's right answers, of tasks that have one: an exact model can
    answer those, and losses are split into the method's and the model's.
    """

    def form(self, n: int) -> tuple[str, int]:
        """The task of `closed_forms` (and of `oracle.Joint`) that size `n` is; its size there."""
        ...

    def symbols(self, sample: Sample) -> Sequence[str]:
        """The words behind the symbols 0, 1, ... of `oracle.Joint` for this sample."""
        ...

    def write(self, sample: Sample, words: Sequence[str]) -> str:
        """An answer in the asked form that consists of the items `words`."""
        ...


def closed_form(task: Task, n: int) -> tuple[str, int] | None:
    """`ExactDistribution.form`; None for a task without an exact distribution."""
    return task.form(n) if isinstance(task, ExactDistribution) else None


@dataclass(frozen=True)
class TaskBase:
    """Defaults of a `Task`. The class attribute `name` is the task's name in tables.

    n: sizes (items, steps, blanks); each is a cell of its own. surface: "free", the model writes
    the whole answer; "infill", its punctuation is prefilled and each item is one masked position.
    """

    name: ClassVar[str] = ""
    n: tuple[int, ...] = ()
    surface: Surface = "free"

    @property
    def budget(self) -> int | None:
        """Tokens of the answer's canvas; None where the runner measures what answers need."""
        return None

    @property
    def chat(self) -> bool | Literal["auto"]:
        """Whether the prompt goes through the chat template ("auto": if the model has one). Without
        one the prompt, shots in it, is plain text that the answer goes on from.
        """
        return "auto"

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return ()

    @property
    def note(self) -> str:
        """A warning to the user before the task is graded; "" for none."""
        return ""

    def count(self, n: int) -> int | None:
        """The number of samples of size `n`; None where they do not end."""
        return None

    def items(self, sample: Sample, reply: str) -> list[Span]:
        """Spans of the answer's items in `reply`, as lenient grading reads it; else []."""
        return []


def draw(task: Task, n: int, seed: int, i: int) -> Sample:
    """Sample `i` of size `n`: a function of its arguments and the suite's version alone."""
    return task.sample(random.Random(f"{SUITE}/{task.name}/{n}/{seed}/{i}"), n, i)
