"""Accuracy and forwards of an engine on a task's held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval.tasks.datasets import Example, Task, examples
from dllm.intervals import wilson
from dllm.output import Output

T = TypeVar("T")


@dataclass(slots=True)
class Score:
    """Counts over the prompts of one task; `reasons` are the grader's, "ok" among them."""

    reasons: Counter[str] = field(default_factory=Counter)
    nfe: int = 0
    answer_tokens: int = 0

    @property
    def count(self) -> int:
        return self.reasons.total()

    @property
    def accuracy(self) -> float:
        return self.reasons["ok"] / self.count

    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy, Wilson's."""
        return wilson(self.reasons["ok"], self.count)

    def add(self, reason: str, output: Output) -> None:
        self.reasons[reason] += 1
        self.nfe += output.nfe
        self.answer_tokens += output.answer_tokens


def held_out(task: Task, count: int, *, seed: int, sizes: tuple[int, ...] | None) -> list[Example]:
    """`count` different held-out examples, sizes in turn (fewer where a task has no more)."""
    found: dict[str, Example] = {}
    for tried, example in enumerate(examples(task, seed, held_out=True, sizes=sizes)):
        found.setdefault(example.prompt, example)
        if len(found) == count or tried > 50 * count:
            break
    return list(found.values())


def evaluate(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    config: DecodeConfig,
    *,
    batch_size: int = 32,
) -> Score:
    """Decode and grade `examples` of `task`, in batches of like length."""
    score = Score()
    for batch in batches(sorted(examples, key=lambda e: len(e.prompt)), batch_size):
        outputs = engine.generate([e.prompt for e in batch], config)
        for example, output in zip(batch, outputs, strict=True):
            score.add(task.grade(example, output.text), output)
    return score


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
