"""Loop of speculative decoding: draft, search, verify in one pass, emit.

It knows no model, tokenizer or method: a drafter proposes, a search grows a tree, a rule walks it
by the target's own logits, a controller says how much of each. What is emitted has the target's
own distribution whatever the components do (see accept/rules.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dllm.verify.accept.rules import AcceptedPath, Emit, GreedyAcceptance, Scores, go_on
from dllm.verify.draft.rows import DraftedRow, RowDrafter, SpeculationComponents
from dllm.verify.output import Round, RowRound
from dllm.verify.protocol import Drafter, Scored, Target, TargetSession
from dllm.verify.rng import Rng
from dllm.verify.tree import Tree


@dataclass(frozen=True, slots=True)
class Request:
    """One text to go on with.

    ids: the prompt, at least one token.  budget: tokens to emit at most.  rng: of all draws.
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


def looked_up(tokens: Sequence[int]) -> Emit:
    """The greedy choice at a node where the most likely token behind each is known already."""
    return lambda node, emitted: tokens[node]


@dataclass(slots=True)
class SpeculatedRow:
    """A text that is not finished. number: of its request."""

    number: int
    request: Request
    emitted: list[int] = field(default_factory=list)
    reason: str | None = None

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
    components: SpeculationComponents,
    process: Process | None = None,
) -> Iterator[Round]:
    """Go on with all requests until each has ended; one `Round` per pass of the target.

    The requests are checked at once, before the first round is asked for.
    """
    loop = Loop(target, drafter, requests, components, process)
    return loop.rounds()


class Loop:
    """The state of one batch between rounds."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        requests: Sequence[Request],
        components: SpeculationComponents,
        process: Process | None = None,
    ) -> None:
        self.rule, self.process = components.rule, process
        self.rows = [
            SpeculatedRow(number, request)
            for number, request in enumerate(requests)
            if request.budget > 0
        ]
        asked = [row.request for row in self.rows]
        prompts = [request.ids for request in asked]
        self.target: TargetSession = target.open(prompts, [request.budget for request in asked])
        self.drafts = RowDrafter(
            components,
            drafter,
            target.vocab_size,
            prompts,
            limits=[len(request.ids) + request.budget for request in asked],
            rngs=[request.rng for request in asked],
        )

    def rounds(self) -> Iterator[Round]:
        """One after another, while rows are left."""
        while self.rows:
            yield self.round()

    def round(self) -> Round:
        """Draft, grow, verify, emit; finished rows leave."""
        trees = self.drafts.propose()
        scored = self.target.score(trees)
        walks = self.walk(trees, scored)
        verified = time.perf_counter()
        self.target.commit([walk.nodes for walk in walks])
        if top := self.drafts.top:
            for i in range(len(trees)):
                self.drafts.learn(i, scored.top(i, top))
        rows, drafted = self.rows, self.drafts.rows
        for row, walk in zip(rows, walks, strict=True):
            row.emitted += walk.tokens
        alive = self.drop()
        spent = self.drafts.settle([walk.tokens for walk in walks], verified, alive)
        done = tuple(map(row_round, rows, drafted, walks))
        return Round(done, spent.draft, spent.verify, spent.host)

    def walk(self, trees: Sequence[Tree], scored: Scored) -> list[AcceptedPath]:
        """What each row emits."""
        if isinstance(self.rule, GreedyAcceptance) and self.process is None:
            best = scored.best()  # for all rows at once
            return [
                go_on(AcceptedPath([0], []), tree, looked_up(best[i]), row.ended)
                for i, (row, tree) in enumerate(zip(self.rows, trees, strict=True))
            ]
        scores = self.scores(trees, scored)
        return [
            self.rule.walk(tree, scores[i], row.request.rng, row.ended)
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

    def drop(self) -> list[int]:
        """Finished rows leave the target's batch; which ones go on."""
        alive = [i for i, row in enumerate(self.rows) if row.reason is None]
        if len(alive) < len(self.rows):
            self.rows = [self.rows[i] for i in alive]
            if alive:
                self.target.keep(alive)
        return alive


def row_round(row: SpeculatedRow, drafted: DraftedRow, walk: AcceptedPath) -> RowRound:
    """What a round came to in one row."""
    return RowRound(
        row=row.number,
        tokens=tuple(walk.tokens),
        sources=tuple(drafted.tree.sources[node] for node in drafted.accepted),
        drafts=drafted.tree.drafts,
        depth=drafted.depth,
        finish_reason=row.reason,
    )
