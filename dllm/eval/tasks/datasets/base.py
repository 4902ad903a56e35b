"""What a task is: a seeded generator of prompts with a gold answer, and a grader of replies.

A task knows text only. The same tasks make the bundled model's training data and its evaluation;
`is_held_out` splits them by prompt, so that no evaluated prompt was ever trained on.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

HELD_OUT_SHARE = 16  # one prompt in this many is kept for evaluation


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with a right answer; `facts` is what the grader needs beside the text."""

    task: str
    prompt: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A family of prompts.

    `make(rng, size)` draws an example of a difficulty in `sizes` (list length, steps, blanks...);
    `grade(example, reply)` returns "ok" or a one-word reason. `is_random` marks tasks with many
    right answers, where `Example.answer` is one draw of them.
    """

    name: str
    group: str
    sizes: tuple[int, ...]
    make: Callable[[random.Random, int], Example]
    grade: Callable[[Example, str], str]
    is_random: bool = False


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the evaluation split (a fixed hash of its text)."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0


def draw_held_out(task: Task, rng: random.Random, size: int) -> Example:
    """An example of the evaluation split."""
    while not is_held_out((example := task.make(rng, size)).prompt):
        pass
    return example


def examples(
    task: Task, seed: int, *, held_out: bool, sizes: tuple[int, ...] | None = None
) -> Iterator[Example]:
    """Endless examples of one split, cycling through `sizes`; a function of its arguments alone."""
    rng = random.Random(f"{task.name}/{seed}")
    chosen = task.sizes if sizes is None else sizes
    turn = 0
    while True:
        example = task.make(rng, chosen[turn % len(chosen)])
        if is_held_out(example.prompt) == held_out:
            turn += 1
            yield example
