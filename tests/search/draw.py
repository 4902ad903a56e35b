"""A random request: what is decoded, with which parts, by which model, and what happens to it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Prefilled
from tests.cache.models import decoder
from tests.fakes import EOS, EOT, MASK, PLAIN, VOCAB, FakeModel, constant, drifting, hashed, leaning
from tests.guarantees import Request
from tests.specs import (
    BLOCKS,
    CHANGES,
    EXACT,
    GUESSES,
    LAZY,
    LONGEST,
    RULES,
    STOPS,
    WHERE,
    references,
)

LEANING = [(3, 0.0), (EOS, 1.5), (EOS, 4.0), (EOT, 30.0), (MASK, 9.0)]


@dataclass(frozen=True)
class Source:
    """Where models come from. cached: decoders that keep keys and values, else fakes."""

    cached: bool
    shift: int
    seed: int
    drift: float | None = None  # of a fake's logits; None: hashed anew with every token
    tied: bool = False  # all logits equal
    towards: tuple[int, float] = (3, 0.0)  # a token that is raised everywhere
    block: int | None = None  # in which a decoder's attention is causal

    def model(self) -> Any:
        """A model whose calls are its own."""
        if self.cached:
            return decoder(self.shift, self.block, self.seed % 4)
        out = hashed(self.seed) if self.drift is None else drifting(self.seed, self.drift)
        return FakeModel(leaning(*self.towards, constant() if self.tied else out), self.shift)


@dataclass(frozen=True)
class Case:
    """order: of the rows, once more. cuts: where Ctrl-C comes, as shares of the lines."""

    source: Source
    request: Request
    order: Sequence[int]
    cuts: Sequence[float]

    def describe(self) -> dict[str, Any]:
        """What was drawn, less what is left at its default."""
        config, default = self.request.config, DecodeConfig()
        names = [field.name for field in fields(config)]
        changed = {
            n: getattr(config, n) for n in names if getattr(config, n) != getattr(default, n)
        }
        rows = {"prompts": self.request.prompts, "row_ids": self.request.row_ids}
        return {"model": self.source, **rows, "prefilled": self.request.prefilled, **changed}

    def parts(self) -> list[str]:
        """The names of its parts."""
        config = self.request.config
        options = ("sampler", "planner", "transform", "stop_rule", "speculator", "cache")
        chosen = [getattr(config, option) for option in options]
        names = (part if isinstance(part, str) else type(part).__name__.lower() for part in chosen)
        return [name.partition(":")[0] for name in names if name != "nonetype"]


def draw(seed: int, number: int) -> Case:
    """Case `number` of the search `seed`: always the same one."""
    rng = random.Random(f"{seed}:{number}")
    cached = rng.random() < 0.4
    cache = rng.choice(list(LAZY)) if cached else "none"
    shift, block = rng.choice([0, 1]), None
    if cached:
        block = rng.choice(BLOCKS.get(cache, [None, 4]))
    source = Source(
        cached=cached,
        shift=shift,
        seed=rng.randrange(2**32),
        drift=rng.choice([None, None, 0.1, 0.5]),
        tied=rng.random() < 0.1,
        towards=rng.choice(LEANING),
        block=block,
    )
    size = rng.randint(1, LONGEST)
    rows = rng.choice([1, 2, 2, 3, 3, 4])
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(0, 5))] for _ in range(rows)]
    # a store has one canvas a row: most of these would be refused
    guesses = rng.random() < (0.1 if cached else 0.5)
    config = DecodeConfig(
        max_new_tokens=size,
        block_length=rng.choice([None, 1, 3, 4, 8]),
        temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        top_k=rng.choice([0, 0, 3]),
        seed=rng.randrange(10),
        stop=rng.choice([(), (), (), ("b",), ("cd", "\n"), ("ba", "zz")]),
        cfg_scale=rng.choice([0.0, 0.0, 0.0, 0.5, 1.5]),
        history=rng.random() < 0.8,
        sampler=references(rng.randrange(10)) if rng.random() < 0.05 else any_of(rng, RULES),
        planner=any_of(rng, WHERE),
        transform=rng.choice([None, None, any_of(rng, CHANGES)]),
        stop_rule=rng.choice([None, None, any_of(rng, STOPS)]),
        speculator=any_of(rng, GUESSES) if guesses else None,
        cache=rng.choice([*EXACT[cache], *LAZY[cache]]),
        buckets=cached and rng.random() < 0.3,
    )
    prefilled = [stands(rng, size) if rng.random() < 0.3 else () for _ in range(rows)]
    return Case(
        source=source,
        request=Request(
            prompts, config, rng.sample(range(10), rows), prefilled, source.model().spec.stop_ids
        ),
        order=rng.sample(range(rows), rows),
        cuts=[rng.random() for _ in range(3)],
    )


def any_of(rng: random.Random, table: Mapping[str, Sequence[Any]]) -> Any:
    return rng.choice(table[rng.choice(list(table))])


def stands(rng: random.Random, size: int) -> Prefilled:
    """Pieces of an answer of `size` tokens that leave at least one masked position."""
    taken = sorted(rng.sample(range(size), rng.randrange(size)))
    tokens = {place: rng.choice([*PLAIN, *PLAIN, MASK, EOS]) for place in taken}
    pieces: list[tuple[int, list[int]]] = []
    for place in taken:
        if pieces and pieces[-1][0] + len(pieces[-1][1]) == place and rng.random() < 0.7:
            pieces[-1][1].append(tokens[place])
        else:
            pieces.append((place, [tokens[place]]))
    return pieces
