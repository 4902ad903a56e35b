"""Batches for training: prompt, answer, end-of-text padding; where examples come from is elsewhere.

Every batch is a function of its number, so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dllm.eval.tasks import Sample
from dllm.eval.tasks.datasets import DATASETS, is_held_out
from dllm.train.tokenizer import ASSISTANT, USER

POOL = 4  # batches cut from one length-sorted pool: little padding, still mixed


@dataclass(frozen=True, slots=True)
class Mixture:
    """The tasks that a stage of the curriculum draws from.

    weights: task name -> share;  sizes: task name -> difficulties (all where absent);
    tail: longest run of extra end-of-text padding, and the share of batches that get one.
    """

    weights: dict[str, float]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tail: int = 0
    tail_share: float = 0.0


class TrainingPair(NamedTuple):
    """Token ids of a templated prompt and of its answer, without the token that ends it.

    order: the forward in which a decoder committed each token of the answer, the end token's last;
    empty where nobody knows.  whole: False if the answer was cut off before its end.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    order: Sequence[int] = ()
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """ids [B, T]; start [B] is the first answer position, end [B] the one behind the answer.

    whole [B]: whether what follows at `end` is right; it is made up where an answer was cut off.
    order [B, T]: see `TrainingPair`; 0 in the prompt, -1 where nobody knows.
    """

    ids: Tensor
    start: Tensor
    end: Tensor
    whole: Tensor
    order: Tensor

    @property
    def size(self) -> int:
        return self.ids.numel()


Draw = Callable[[random.Random, int], list[TrainingPair]]  # so many fresh examples


@dataclass(frozen=True)
class Drawn:
    """Endless fresh examples: number of a batch -> batch.

    ends, tail, tail_share: as in `Shuffled`.
    """

    draw: Draw
    ends: tuple[int, int]
    batch_size: int
    seed: int = 0
    tail: int = 0
    tail_share: float = 0.0

    def __call__(self, index: int) -> Batch:
        rng = random.Random(f"{self.seed}/{index // POOL}")
        pool = self.draw(rng, self.batch_size * POOL)
        rows = piece(pool, rng, index, self.batch_size)
        return lay_out(rows, self.ends, padding(self.tail, self.tail_share, self.seed, index))


def mixed(
    tokenizer: Tokenizer, mixture: Mixture, eos_id: int, batch_size: int, seed: int = 0
) -> Drawn:
    """Endless fresh examples of the task generators."""
    names, weights = list(mixture.weights), list(mixture.weights.values())

    def drawn(rng: random.Random, count: int) -> list[TrainingPair]:
        chosen = rng.choices(names, weights=weights, k=count)
        examples = [draw(rng, name, mixture.sizes.get(name)) for name in chosen]
        return [encode_example(tokenizer, each.prompt, each.answer) for each in examples]

    return Drawn(drawn, (eos_id, eos_id), batch_size, seed, mixture.tail, mixture.tail_share)


@dataclass(frozen=True)
class Shuffled:
    """The same examples over and over, every time in another order: number of a batch -> batch.

    ends: the token behind an answer, and what fills rows up.  tail, tail_share: as in `Mixture`.
    """

    pairs: Sequence[TrainingPair]
    ends: tuple[int, int]
    batch_size: int
    seed: int = 0
    tail: int = 0
    tail_share: float = 0.0

    def __call__(self, index: int) -> Batch:
        size = self.batch_size * POOL
        first = index // POOL * size
        pool = [self.pairs[self.place(number)] for number in range(first, first + size)]
        rng = random.Random(f"{self.seed}/{index // POOL}")
        rows = piece(pool, rng, index, self.batch_size)
        return lay_out(rows, self.ends, padding(self.tail, self.tail_share, self.seed, index))

    def place(self, number: int) -> int:
        """The number of the example at a place of the endless stream."""
        epoch, at = divmod(number, len(self.pairs))
        return shuffled(len(self.pairs), f"{self.seed}/{epoch}/order")[at]


@lru_cache(maxsize=4)
def shuffled(count: int, seed: str) -> list[int]:
    return random.Random(seed).sample(range(count), count)


def padding(most: int, share: float, seed: int, index: int) -> int:
    """Extra end-of-text padding of a batch."""
    extra = random.Random(f"{seed}/{index}/tail")
    return extra.randint(0, most) if extra.random() < share else 0


def piece(
    pool: list[TrainingPair], rng: random.Random, index: int, size: int
) -> list[TrainingPair]:
    """Batch number `index` of those that a pool, sorted by length, is cut into."""
    pool.sort(key=lambda pair: len(pair.prompt) + len(pair.answer))
    part = rng.sample(range(POOL), POOL)[index % POOL]
    return pool[part * size : (part + 1) * size]


def lay_out(rows: Sequence[TrainingPair], ends: tuple[int, int], tail: int = 0) -> Batch:
    """Rows as one batch, with at least two end tokens behind every answer and `tail` more."""
    length = max(len(row.prompt) + len(row.answer) for row in rows) + 2 + tail
    ids = torch.full((len(rows), length), ends[1])
    order = torch.full((len(rows), length), -1)
    start = torch.tensor([len(row.prompt) for row in rows])
    end = start + torch.tensor([len(row.answer) for row in rows])
    for i, (row, first, last) in enumerate(zip(rows, start, end)):
        ids[i, :last] = torch.tensor([*row.prompt, *row.answer])
        ids[i, last] = ends[0]
        order[i, :first] = 0
        if row.order:
            order[i, first : first + len(row.order)] = torch.tensor(row.order)
            order[i, last + 1 :] = row.order[-1]
    return Batch(ids, start, end, torch.tensor([row.whole for row in rows]), order)


def encode_example(tokenizer: Tokenizer, prompt: str, answer: str) -> TrainingPair:
    """Token ids of the templated prompt and of the answer, as the chat template lays them out."""
    head = tokenizer.encode(f"{USER} {prompt}{ASSISTANT}").ids
    return TrainingPair(head, tokenizer.encode(f" {answer}").ids)


def draw(rng: random.Random, name: str, sizes: Sequence[int] | None = None) -> Sample:
    """A training example of a dataset."""
    dataset = DATASETS[name]
    while True:
        sample = dataset.make(rng, rng.choice(sizes or dataset.sizes))
        if not is_held_out(sample.prompt):
            return sample
