"""Datasets of the bundled models: seeded generators of questions, each with a right answer.

They make training data and evaluation alike. `is_held_out` splits them by prompt, so that no
evaluated prompt was ever trained on. Grading is not here: see `dllm.eval.tasks.scorer_of`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dllm.eval.tasks.base import Sample

HELD_OUT_SHARE = 16  # one prompt in this many is kept for evaluation


@dataclass(frozen=True, slots=True)
class GeneratedDataset:
    """A family of questions. group: of datasets in tables; sizes: difficulties (list length, steps,
    blanks, ...); make: draws a question of one of them.
    """

    name: str
    group: str
    sizes: tuple[int, ...]
    make: Callable[[random.Random, int], Sample]


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the evaluation split (a fixed hash of its text)."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0


def draw_held_out(dataset: GeneratedDataset, rng: random.Random, size: int) -> Sample:
    """A question of the evaluation split."""
    while not is_held_out((sample := dataset.make(rng, size)).prompt):
        pass
    return sample


def examples(
    dataset: GeneratedDataset, seed: int, *, held_out: bool, sizes: tuple[int, ...] | None = None
) -> Iterator[Sample]:
    """Endless questions of one split, sizes in turn; a function of the arguments alone."""
    rng = random.Random(f"{dataset.name}/{seed}")
    chosen = dataset.sizes if sizes is None else sizes
    turn = 0
    while True:
        sample = dataset.make(rng, chosen[turn % len(chosen)])
        if is_held_out(sample.prompt) == held_out:
            turn += 1
            yield sample


def held_out(
    dataset: GeneratedDataset, count: int, *, seed: int, sizes: tuple[int, ...] | None = None
) -> list[Sample]:
    """`count` different held-out questions, sizes in turn; fewer where a dataset has no more."""
    found: dict[str, Sample] = {}
    for tried, sample in enumerate(examples(dataset, seed, held_out=True, sizes=sizes)):
        found.setdefault(sample.prompt, sample)
        if len(found) == count or tried > 50 * count:
            break
    return list(found.values())
