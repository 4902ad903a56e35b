"""The loop of speculative decoding: draft, search, verify in one pass, emit. All of it.

It knows no model, tokenizer or method: a drafter proposes, a search grows a tree, a rule walks it
by the target's own logits, a controller says how much of each. What is emitted has the target's
own law whatever the parts do (see accept.py).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dllm.verify.accept.rules import (
    AcceptanceRule,
    AcceptedPath,
    Emit,
    GreedyAcceptance,
    Scores,
    go_on,
)
from dllm.verify.control.controllers import Control, ControlPart, Observed, Spent
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Search
from dllm.verify.output import Round, RowRound
from dllm.verify.protocol import Drafter, DraftSession, Scored, Target, TargetSession
from dllm.verify.rng import Rng
from dllm.verify.sources.memory import Memory, Rate, Rates, SourcePart
from dllm.verify.tree import Tree

LIMIT = 256  # drafts of a tree; a mask of trees is quadratic in it


@dataclass(frozen=True, slots=True)
class SpeculationComponents:
    """The methods of a run.

    reuse: instead of a new draft the rest of the last one is used while it has that many columns
    (tail reuse; 0: never). Its columns know nothing of the token that replaced a draft's.
    rates: how often the sources were right, over all texts of these parts.
    """

    search: Search
    rule: AcceptanceRule
    control: ControlPart
    sources: tuple[SourcePart, ...] = ()
    reuse: int = 0
    rates: Rates = field(default_factory=lambda: defaultdict(Rate), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """One text to go on with.

    ids: the prompt, at least one token.  room: tokens to emit at most.  rng: of all draws.
    ended(emitted): the reason why the row is finished after these new tokens, or None.
    """

    ids: Sequence[int]
    budget: int
    rng: Rng
    ended: Callable[[Sequence[int]], str | None]


class Process(Protocol):
    """What the target's own decoding makes of its logits; rows are numbered as the requests are."""

    def row(self, row: int, emitted: Sequence[int], logits: Tensor) -> Tensor:
        """Logits [V] of a row behind these new tokens, some of which may be rejected drafts."""
        ...

    def batch(self, emitted: Mapping[int, Sequence[int]], logits: Tensor) -> Tensor:
        """Logits [n, V] behind the new tokens of all n live rows, in a pass without drafts."""
        ...


def memory_of(parts: SpeculationComponents) -> Memory:
    """The sources of a row that begins."""
    return Memory([source.open() for source in parts.sources], rates=parts.rates)


def looked_up(tokens: Sequence[int]) -> Emit:
    """The greedy choice at a node where the most likely token behind each is known already."""
    return lambda node, emitted: tokens[node]


@dataclass(slots=True)
class SpeculatedRow:
    """A text that is not finished."""

    number: int
    request: Request
    memory: Memory
    emitted: list[int] = field(default_factory=list)
    left: Lattice | None = None  # columns of the last draft that are still ahead
    reason: str | None = None

    @property
    def context(self) -> list[int]:
        return [*self.request.ids, *self.emitted]

    @property
    def last(self) -> int:
        return self.emitted[-1] if self.emitted else self.request.ids[-1]

    @property
    def depth(self) -> int:
        """Drafts that can still be accepted: a round emits one token more."""
        return self.request.budget - len(self.emitted) - 1

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the row is finished once it has emitted `tokens` in this round."""
        emitted = [*self.emitted, *tokens]
        self.reason = self.request.ended(emitted)
        if self.reason is None and len(emitted) >= self.request.budget:
            self.reason = "length"
        return self.reason is not None


def as_scored(scored: Scored, at: int) -> Scores:
    """The target's logits of row `at` of a pass as they are."""
    return lambda node, tokens: scored.row(at, node)


def processed(process: Process, row: SpeculatedRow, scored: Scored, at: int) -> Scores:
    """The logits of row `at` of a pass, each processed when it is asked for."""
    return lambda node, tokens: process.row(
        row.number, [*row.emitted, *tokens], scored.row(at, node)
    )


def at_root(logits: Tensor) -> Scores:
    """Processed logits [V] behind a tree that is a root alone."""
    return lambda node, tokens: logits


def speculate(
    target: Target,
    drafter: Drafter | None,
    requests: Sequence[Request],
    parts: SpeculationComponents,
    process: Process | None = None,
) -> Iterator[Round]:
    """Go on with all requests until each has ended; one `Round` per pass of the target.

    The requests are checked at once, before the first round is asked for.
    """
    loop = Loop(target, drafter, requests, parts, process)
    return loop.rounds()


class Loop:
    """The state of one batch between rounds."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        requests: Sequence[Request],
        parts: SpeculationComponents,
        process: Process | None = None,
    ) -> None:
        self.parts, self.process, self.vocab_size = parts, process, target.vocab_size
        self.rows = [
            SpeculatedRow(number, request, memory_of(parts))
            for number, request in enumerate(requests)
            if request.budget > 0
        ]
        for row in self.rows:
            row.memory.extend(row.request.ids)
        prompts = [row.request.ids for row in self.rows]
        rooms = [row.request.budget for row in self.rows]
        totals = [len(ids) + budget for ids, budget in zip(prompts, rooms, strict=True)]
        self.target: TargetSession = target.open(prompts, rooms)
        self.drafter: DraftSession | None = drafter.open(totals) if drafter else None
        self.control: Control = parts.control.open(len(requests))

    def rounds(self) -> Iterator[Round]:
        """One after another, while rows are left."""
        while self.rows:
            yield self.round()

    def round(self) -> Round:
        """Draft, grow, verify, emit; finished rows leave."""
        started = time.perf_counter()
        limits = [min(self.control.drafts(row.number), LIMIT) for row in self.rows]
        lattices, depths = self.draft(limits)
        drafted = time.perf_counter()
        trees = self.grow(lattices, limits)
        grown = time.perf_counter()
        scored = self.target.score(trees)
        walks = self.walk(trees, scored)
        verified = time.perf_counter()
        self.target.commit([walk.nodes for walk in walks])
        done = []
        for i, (row, tree, walk) in enumerate(zip(self.rows, trees, walks, strict=True)):
            if row.memory.top:
                row.memory.learn(tree.tokens, scored.top(i, row.memory.top))
            done.append(self.emit(row, lattices[i], depths[i], tree, walk))
        rows = len(self.rows)
        self.drop()
        spent = Spent(
            rows=rows,
            width=max(map(len, trees)),
            depth=max(depths),
            draft=drafted - started,
            verify=verified - grown,
            host=grown - drafted + time.perf_counter() - verified,
        )
        self.control.spent(spent)
        return Round(tuple(done), spent.draft, spent.verify, spent.host)

    def draft(self, limits: Sequence[int]) -> tuple[list[Lattice], list[int]]:
        """A lattice for every row, and how many columns the drafter was asked for (0: none)."""
        rest = [self.rest(row) for row in self.rows]
        depths = [
            min(self.control.depth(row.number), row.depth) if limit and not left else 0
            for row, limit, left in zip(self.rows, limits, rest, strict=True)
        ]
        if self.drafter is None or not any(depths):
            depths = [0] * len(depths)
            lattices = [Lattice.empty() for _ in depths]
        else:
            lattices = self.drafter.propose([row.context for row in self.rows], depths)
        lattices = [left or new for left, new in zip(rest, lattices, strict=True)]
        return [
            lattice.checked(self.vocab_size, row.depth)
            for row, lattice in zip(self.rows, lattices, strict=True)
        ], depths

    def rest(self, row: SpeculatedRow) -> Lattice | None:
        """The columns of the last draft that are used again, if there are enough."""
        enough = self.parts.reuse and row.left is not None and len(row.left) >= self.parts.reuse
        return row.left if enough else None

    def grow(self, lattices: Sequence[Lattice], limits: Sequence[int]) -> list[Tree]:
        """The trees to verify: no deeper than there is room, as large as the controller says."""
        search = self.parts.search
        trees = []
        for row, lattice, limit in zip(self.rows, lattices, limits, strict=True):
            tree = Tree.root(row.last)
            if limit and row.depth:
                tree = search.grow(row.last, lattice, row.memory, limit, row.request.rng)
            trees.append(tree.within(row.depth, self.vocab_size))
        if search.samples:  # a size that looks at drawn tokens would bias what is emitted
            return trees
        sizes = self.control.sizes([np.array(tree.weights[1:]) for tree in trees])
        return [tree.cut(size) for tree, size in zip(trees, sizes, strict=True)]

    def walk(self, trees: Sequence[Tree], scored: Scored) -> list[AcceptedPath]:
        """What each row emits."""
        rule = self.parts.rule
        if isinstance(rule, GreedyAcceptance) and self.process is None:
            best = scored.best()  # for all rows at once
            return [
                go_on(AcceptedPath([0], []), tree, looked_up(best[i]), row.ended)
                for i, (row, tree) in enumerate(zip(self.rows, trees, strict=True))
            ]
        scores = self.scores(trees, scored)
        return [
            rule.walk(tree, scores[i], row.request.rng, row.ended)
            for i, (row, tree) in enumerate(zip(self.rows, trees, strict=True))
        ]

    def scores(self, trees: Sequence[Tree], scored: Scored) -> list[Scores]:
        """Of each row the target's processed logits behind the nodes of its tree."""
        process = self.process
        if process is None:
            return [as_scored(scored, i) for i in range(len(trees))]
        if any(tree.drafts for tree in trees):
            return [processed(process, row, scored, i) for i, row in enumerate(self.rows)]
        logits = torch.stack([scored.row(i, 0) for i in range(len(trees))])
        changed = process.batch({row.number: row.emitted for row in self.rows}, logits)
        return [at_root(scores) for scores in changed]

    def emit(
        self, row: SpeculatedRow, lattice: Lattice, depth: int, tree: Tree, walk: AcceptedPath
    ) -> RowRound:
        """Append what was emitted, and tell sources and controller what became of the drafts."""
        path = tree.follow(walk.tokens)
        row.memory.extend(walk.tokens)
        row.emitted += walk.tokens
        if self.parts.reuse:
            row.left = lattice.shift(len(walk.tokens), walk.tokens[-1])
        kept = np.zeros(tree.drafts, bool)
        kept[np.array(path, int) - 1] = True
        self.control.observe(
            row.number,
            Observed(
                depth=depth,
                end=lattice.first_end(),
                drafts=tree.drafts,
                accepted=len(path),
                weights=np.array(tree.weights[1:]),
                kept=kept,
            ),
        )
        return RowRound(
            row=row.number,
            tokens=tuple(walk.tokens),
            sources=tuple(tree.sources[node] for node in path),
            drafts=tree.drafts,
            depth=depth,
            finish_reason=row.reason,
        )

    def drop(self) -> None:
        """Finished rows leave the batch."""
        alive = [i for i, row in enumerate(self.rows) if row.reason is None]
        if len(alive) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in alive]
        if alive:
            self.target.keep(alive)
            if self.drafter is not None:
                self.drafter.keep(alive)
