"""One row decoded with a cache, spelled out: lists, sets of positions, one model call a step.

Nothing here knows the engine, its policies or its samplers. A `Method` says which positions the
text of its paper computes; keys and values of all others stay in the row's own store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from dllm.cache.plan import ForwardPlan
from dllm.models.decoder import Decoder
from tests.cache.models import EOS, MASK, PLAIN, Watched, decoder, run, steps


@dataclass
class Row:
    """A row, and what the current forward is: the `i`-th in its window [s, e), `step` of the row.

    before[n]: the positions known before forward n (M_n). seen: the probability that the token last
    proposed at a position had.
    """

    model: Decoder
    prompt: list[int]
    size: int
    block: int | None
    s: int = 0
    e: int = 0
    i: int = 0
    step: int = 0
    before: list[set[int]] = field(default_factory=list)
    seen: dict[int, float] = field(default_factory=dict)
    queries: list[set[int]] = field(default_factory=list)
    commits: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x = [*self.prompt, *[MASK] * self.size]
        self.known = set(range(len(self.prompt)))
        self.kv = self.model.new_kv(1, self.end)

    @property
    def end(self) -> int:
        return len(self.prompt) + self.size

    @property
    def shift(self) -> int:
        return self.model.spec.shift

    @property
    def every(self) -> set[int]:
        return set(range(self.end))

    @property
    def masks(self) -> list[int]:
        """Of the window."""
        return [p for p in range(self.s, self.e) if p not in self.known]

    @property
    def last(self) -> set[int]:
        """Committed in the last step."""
        return self.before[-1] - self.before[-2] if self.step else set()

    def forward(self, compute: set[int], want: list[int]) -> dict[int, list[float]]:
        """Probabilities of all tokens at the positions `want`."""
        rows = {p: max(p - self.shift, 0) for p in want}
        query = sorted(compute | set(rows.values()))
        self.queries.append(set(query))
        head = torch.tensor([[query.index(rows[p]) for p in want]])
        plan = ForwardPlan(torch.tensor([query]), head)
        logits = self.model(torch.tensor([self.x]), plan, self.kv)[0]
        logits[:, MASK] = -torch.inf
        return dict(zip(want, logits.softmax(-1).tolist(), strict=True))

    @property
    def ended(self) -> bool:
        """The first end token has no mask before it."""
        for p in range(len(self.prompt), self.end):
            if p not in self.known or self.x[p] == EOS:
                return p in self.known
        return False


# Chooses among the proposed positions: probabilities and 1 - them by position.
Choice = Callable[[Row, dict[int, float], dict[int, float]], list[int]]
# The positions to compute, and those of the window's masks that are predicted.
Method = Callable[[Row], tuple[set[int], list[int]]]


def by_confidence(doubt: dict[int, float]) -> list[int]:
    return sorted(doubt, key=lambda p: (doubt[p], p))


def threshold(bar: float) -> Choice:
    """All at or above the bar, else the best one."""

    def choose(row: Row, sure: dict[int, float], doubt: dict[int, float]) -> list[int]:
        return [p for p in sure if sure[p] >= bar] or by_confidence(doubt)[:1]

    return choose


def quota(total: int | None) -> Choice:
    """LLaDA's m // n or one more in each of a window's n steps, n its share of all of them."""

    def choose(row: Row, sure: dict[int, float], doubt: dict[int, float]) -> list[int]:
        count = row.size if total is None else total
        offset = len(row.prompt)
        upto_end = count * (row.e - offset) // row.size
        n = max(1, upto_end - count * (row.s - offset) // row.size)
        m = row.e - row.s
        return by_confidence(doubt)[: max(1, m // n + (row.i < m % n))]

    return choose


def decode(row: Row, choose: Choice, method: Method) -> Row:
    """Window by window, until nothing is left or the text has ended."""
    row.e = len(row.prompt)
    # windows count from the prompt's end, or with the blocks of the model's attention from 0
    origin = row.e if row.model.spec.block_length is None else 0
    while row.e < row.end:
        row.s, row.i = row.e, 0
        done = (row.s - origin) // row.block if row.block else 0
        row.e = min(origin + (done + 1) * row.block, row.end) if row.block else row.end
        while row.masks:
            row.before.append(set(row.known))
            compute, want = method(row)
            distribution = row.forward(compute, want)
            token = {
                p: max(range(len(distribution[p])), key=distribution[p].__getitem__) for p in want
            }
            sure = {p: distribution[p][token[p]] for p in want}
            doubt = {p: sum(distribution[p]) - sure[p] for p in want}
            row.seen |= sure
            chosen = sorted(choose(row, sure, doubt))
            for p in chosen:
                row.x[p] = token[p]
            row.known |= set(chosen)
            row.commits.append((chosen, [row.x[p] for p in chosen]))
            row.i, row.step = row.i + 1, row.step + 1
            if row.ended:
                return row
    return row


@dataclass(frozen=True)
class Case:
    """A prompt, a model and how it is decoded."""

    prompt: list[int]
    size: int
    block: int | None
    shift: int
    seed: int
    sampler: str

    @property
    def choose(self) -> Choice:
        name, _, value = self.sampler.partition(":")
        value = value.partition("=")[2]
        if name == "threshold":
            return threshold(float(value))
        return quota(int(value) if value else None)


SAMPLERS = ("quota", "quota:steps=4", "threshold:threshold=0.3", "threshold:threshold=0.7")
cases = st.builds(
    Case,
    # not empty: where all rows are the same mask, all positions tie
    prompt=st.lists(st.sampled_from(PLAIN), min_size=1, max_size=6),
    size=st.integers(1, 12),
    block=st.sampled_from([None, 3, 4, 6]),
    shift=st.sampled_from([0, 1]),
    seed=st.integers(0, 5),
    sampler=st.sampled_from(SAMPLERS),
)


def agree(case: Case, method: Method, cache: Any, attention: int | None = None) -> Row:
    """Assert that the engine with `cache` does what `method` does; the row as it was decoded.

    attention: the length of the model's blocks, if its attention is causal between blocks.
    """
    model = decoder(case.shift, attention, case.seed)
    with torch.no_grad():
        row = decode(Row(model, case.prompt, case.size, case.block), case.choose, method)
    watched = Watched(model)
    (output,) = run(
        watched,
        [case.prompt],
        max_new_tokens=case.size,
        block_length=case.block,
        sampler=case.sampler,
        cache=cache,
    )
    assert watched.queries == row.queries
    assert steps(output) == row.commits
    assert output.nfe == len(row.queries)
    return row


def whole(method: Callable[[Row], set[int]]) -> Method:
    """The method that computes these positions and predicts all masks of the window."""
    return lambda row: (method(row), row.masks)


def spec(name: str, **options: Any) -> str:
    """The part as a user types it."""
    return f"{name}:" + ",".join(f"{key}={value}".lower() for key, value in options.items())


def nth(count: int, every: int | None) -> bool:
    """Whether the count-th forward, from 0, is one of every so many."""
    return every is not None and count % every == 0


def every(*values: int | None) -> st.SearchStrategy[int | None]:
    return st.sampled_from(values)
