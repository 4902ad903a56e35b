"""Options that several tasks share: sizes, and example turns before the question."""

from __future__ import annotations

import random
from collections.abc import Callable

from dllm.eval.tasks.base import Sample


def check_sizes(n: tuple[int, ...], least: int, most: int) -> None:
    """ValueError unless `n` holds sizes from `least` to `most`, none twice."""
    if not n or len(set(n)) < len(n) or not all(least <= size <= most for size in n):
        sizes = "+".join(map(str, n))
        raise ValueError(f"n={sizes}: expected different sizes from {least} to {most}")


def check_shots(shots: int) -> None:
    if shots < 0:
        raise ValueError(f"shots={shots}: expected a number of at least 0")


def ask(draw: Callable[[random.Random], Sample], rng: random.Random, shots: int) -> Sample:
    """A question and `shots` other ones with their answers, drawn after it."""
    question = draw(rng)
    turns: list[tuple[str, str]] = []
    while len(turns) < shots:
        other = draw(rng)
        if other.prompt != question.prompt:
            turns.append((other.prompt, other.answer))
    return Sample(question.prompt, question.answer, question.facts, tuple(turns))
