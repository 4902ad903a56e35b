"""A task with a fixed number of questions, put as plain text, that ends its answers by a string."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from dllm.eval.tasks import Grade, Sample, TaskBase


@dataclass(frozen=True)
class Finite(TaskBase):
    """Three questions of each size."""

    name: ClassVar[str] = "finite"
    n: tuple[int, ...] = (1, 2)
    budget: ClassVar[int] = 24
    chat: ClassVar[bool] = False
    stop: ClassVar[tuple[str, ...]] = (",",)

    def count(self, n: int) -> int:
        return 3

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        assert i < 3
        return Sample(f"Copy the list: {'pear, ' * n}fig{i}", "pear", {"i": i})

    def grade(self, sample: Sample, reply: str) -> Grade:
        return Grade.of("parse" if "," in reply else "ok", strict=True)
