"""Tasks on the datasets of the bundled models, with prompts of which they have seen none.

Strict grading judges the whole reply, lenient grading the answer that can be read in it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from dllm.eval.tasks.base import Grade, Sample, TaskBase
from dllm.eval.tasks.datasets import DATASETS, GeneratedDataset, draw_held_out
from dllm.eval.tasks.options import check_sizes
from dllm.eval.tasks.puzzles import LATIN_RULES, grid_reason, read_grid

CALCULATION = r"[0-9]+ [-+*] [0-9]+ = [0-9]+"
STEP = re.compile(rf"^[ \t]*({CALCULATION})[ \t]*$", re.MULTILINE)
RESULT = re.compile(r"^[ \t*]*Answer:[ \t*]*([0-9]+)(?: [a-z]+)?[.* \t]*$", re.MULTILINE)


def last(found: list[str]) -> str | None:
    return found[-1] if found else None


@dataclass(frozen=True)
class GeneratedTask(TaskBase):
    """Held-out questions of a dataset. n: by default all of the dataset's sizes."""

    dataset: ClassVar[GeneratedDataset]

    def __post_init__(self) -> None:
        sizes = self.dataset.sizes
        if not self.n:
            object.__setattr__(self, "n", sizes)
        check_sizes(self.n, sizes[0], sizes[-1])
        if self.surface != "free":
            raise ValueError(f"surface={self.surface!r}: expected free, {self.name} has no items")

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        return draw_held_out(self.dataset, rng, n)

    def grade(self, sample: Sample, reply: str) -> Grade:
        if self.reason(sample, reply) == "ok":
            return Grade.of("ok", strict=True)
        answer = self.read(reply)
        reason = "parse" if answer is None else self.reason(sample, answer)
        return Grade.of(reason, strict=False)

    def reason(self, sample: Sample, answer: str) -> str:
        """The reason code of an answer that nothing but blanks may stand around."""
        raise NotImplementedError

    def read(self, reply: str) -> str | None:
        """The answer that stands in `reply`, without what is around it; None where none does."""
        raise NotImplementedError


@dataclass(frozen=True)
class WordProblem(GeneratedTask):
    """A word problem in 1 to 4 steps, each of which the answer has to show."""

    name: ClassVar[str] = "word_problem"
    dataset: ClassVar[GeneratedDataset] = DATASETS["word_problem"]

    def reason(self, sample: Sample, answer: str) -> str:
        """Every line must be right; the code says where the first fault lies."""
        if answer.strip() == sample.answer:
            return "ok"
        final = re.search(r"Answer: (\d+)\s*$", answer)
        if final is None:
            return "parse"
        return "arithmetic" if int(final[1]) != sample.facts["result"] else "steps"

    def read(self, reply: str) -> str | None:
        results = list(RESULT.finditer(reply))
        if not results:
            return None
        steps = STEP.findall(reply, 0, results[-1].start())
        return "\n".join([*steps, f"Answer: {results[-1][1]}"])


@dataclass(frozen=True)
class Calculation(GeneratedTask):
    """One calculation, written down with its result."""

    name: ClassVar[str] = "calculation"
    dataset: ClassVar[GeneratedDataset] = DATASETS["calculation"]

    def reason(self, sample: Sample, answer: str) -> str:
        return "ok" if answer.strip() == sample.answer else "arithmetic"

    def read(self, reply: str) -> str | None:
        return last(re.findall(CALCULATION, reply))


@dataclass(frozen=True)
class LatinFill(GeneratedTask):
    """A Latin square of 4 by 4 to complete."""

    name: ClassVar[str] = "latin_fill"
    dataset: ClassVar[GeneratedDataset] = DATASETS["latin"]

    def reason(self, sample: Sample, answer: str) -> str:
        return grid_reason(sample.facts["puzzle"], answer, LATIN_RULES)

    def read(self, reply: str) -> str | None:
        return read_grid(reply) or None
