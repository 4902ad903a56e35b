"""Running sums modulo 10: one right answer, but each number needs the one before it.

It tells a model that cannot answer in parallel from a distribution that forbids it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from dllm.eval.tasks.base import Grade, Sample, Span, TaskBase
from dllm.eval.tasks.options import ask, check_shots, check_sizes

LONGEST = 64
NUMBER = re.compile("[0-9]+")
# Whole numbers on one line with commas or blanks between them, none a part of something longer.
NUMBERS = re.compile(r"(?<![\w.+-])(?>[0-9]+(?:(?:[ \t]*[,;][ \t]*|[ \t]+)[0-9]+)*)(?!\w|\.[0-9])")
QUESTION = """\
These are {n} digits: {digits}
Write their {n} running sums modulo 10: number k is the last digit of the sum of the first k digits.
Answer with the {n} numbers only, separated by single spaces."""


@dataclass(frozen=True)
class CumulativeSums(TaskBase):
    """The n running sums of n digits, modulo 10. shots: example turns before the question."""

    name: ClassVar[str] = "cumulative_sums"
    n: tuple[int, ...] = (4, 6, 8, 12, 16)
    shots: int = 1

    def __post_init__(self) -> None:
        check_sizes(self.n, 2, LONGEST)
        check_shots(self.shots)

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        return ask(lambda rng: _question(rng, n), rng, self.shots)

    def grade(self, sample: Sample, reply: str) -> Grade:
        numbers = [reply[slice(*span)] for span in self.items(sample, reply)]
        reason = _reason(numbers, sample.answer.split())
        return Grade.of(reason, strict=reply.strip() == sample.answer)

    def items(self, sample: Sample, reply: str) -> list[Span]:
        """The last numbers in `reply` that are as many as asked for, else the last ones."""
        found = [
            [number.span() for number in NUMBER.finditer(reply, *numbers.span())]
            for numbers in NUMBERS.finditer(reply)
        ]
        asked = [spans for spans in found if len(spans) == len(sample.answer.split())]
        return (asked or found or [[]])[-1]

    def form(self, n: int) -> tuple[str, int]:
        return "copy", n

    def symbols(self, sample: Sample) -> Sequence[str]:
        return sample.answer.split()

    def write(self, sample: Sample, words: Sequence[str]) -> str:
        return " ".join(words)


def _question(rng: random.Random, n: int) -> Sample:
    digits = [rng.randrange(10) for _ in range(n)]
    sums = [total % 10 for total in accumulate(digits)]
    prompt = QUESTION.format(n=n, digits=" ".join(map(str, digits)))
    return Sample(prompt, " ".join(map(str, sums)))


def _reason(numbers: list[str], gold: list[str]) -> str:
    if not numbers:
        return "parse"
    if len(numbers) != len(gold):
        return "length"
    return "ok" if numbers == gold else "arithmetic"
