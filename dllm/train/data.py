"""Batches of chat examples for training: prompt, answer, end-of-text padding. Text in, tensors out.

Every batch is a function of (seed, index), so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dllm.eval.tasks import TASKS
from dllm.eval.tasks.base import is_held_out
from dllm.train.tokenizer import ASSISTANT, USER

POOL = 4  # batches cut from one length-sorted pool: little padding, still mixed


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which tasks a stage of the curriculum draws from.

    weights: task name -> share;  sizes: task name -> difficulties (all where absent);
    tail: longest run of extra end-of-text padding, and the share of batches that get one.
    """

    weights: dict[str, float]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tail: int = 0
    tail_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """ids [B, T]; start [B] is the first answer position, end [B] the one behind the answer."""

    ids: Tensor
    start: Tensor
    end: Tensor


def encode_example(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of the templated prompt and of the answer, as the chat template lays them out."""
    head = tokenizer.encode(f"{USER} {prompt}{ASSISTANT}").ids
    return head, tokenizer.encode(f" {answer}").ids


def make_batch(
    tokenizer: Tokenizer, mixture: Mixture, *, seed: int, index: int, batch_size: int, eos_id: int
) -> Batch:
    """Batch number `index` of the stream `seed`; rows are padded to one length with EOS."""
    rng = random.Random(f"{seed}/{index // POOL}")
    names = list(mixture.weights)
    drawn = rng.choices(names, weights=list(mixture.weights.values()), k=batch_size * POOL)
    pool = [encode_example(tokenizer, *_draw(rng, mixture, name)) for name in drawn]
    pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    order = rng.sample(range(POOL), POOL)
    part = order[index % POOL]
    rows = pool[part * batch_size : (part + 1) * batch_size]

    extra = random.Random(f"{seed}/{index}/tail")
    tail = extra.randint(0, mixture.tail) if extra.random() < mixture.tail_share else 0
    length = max(len(p) + len(a) for p, a in rows) + 2 + tail
    ids = torch.full((len(rows), length), eos_id)
    for row, (p, a) in enumerate(rows):
        ids[row, : len(p) + len(a)] = torch.tensor(p + a)
    start = torch.tensor([len(p) for p, _ in rows])
    end = torch.tensor([len(p) + len(a) for p, a in rows])
    return Batch(ids, start, end)


def _draw(rng: random.Random, mixture: Mixture, name: str) -> tuple[str, str]:
    task = TASKS[name]
    sizes = mixture.sizes.get(name, task.sizes)
    while True:
        example = task.make(rng, rng.choice(sizes))
        if not is_held_out(example.prompt):
            return example.prompt, example.answer
