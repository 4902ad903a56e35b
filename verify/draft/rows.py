"""Row drafter: all of a round but the target's pass, namely trees before it and lessons behind it.

The loop of this package and those of others (chain.py) draft by it: a drafter's session, the
model-free sources of each row, a controller and a search give trees; what the target then emits
calibrates all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from dllm.verify.accept.rules import AcceptanceRule
from dllm.verify.control.controllers import Controller, Observed, Spent
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Search
from dllm.verify.protocol import Drafter, DraftSession
from dllm.verify.rng import Rng
from dllm.verify.sources.memory import Memory, Rate, Rates, Source
from dllm.verify.tree import Tree

LIMIT = 256  # drafts of a tree; a mask of trees is quadratic in it


@dataclass(frozen=True, slots=True)
class SpeculationComponents:
    """The methods of a run.

    reuse: instead of a new draft the rest of the last one is used while it has that many columns
    (tail reuse; 0: never). Its columns know nothing of the token that replaced a draft's.
    rates: how often the sources were right, over all texts that these components draft for.
    """

    search: Search
    rule: AcceptanceRule
    control: Controller
    sources: tuple[Source, ...] = ()
    reuse: int = 0
    rates: Rates = field(default_factory=lambda: defaultdict(Rate), compare=False, repr=False)


@dataclass(slots=True)
class DraftedRow:
    """A text that is drafted for, and what the round that runs has of it.

    number: its place at the start, by which the controller knows it.  tokens: committed ones,
    prompt included.  limit: tokens that the text may have at most.  rng: of a search that draws.
    left: columns of the last draft that are still ahead.  ahead: drafts that can be accepted yet.
    depth: columns that the drafter was asked for (0: it was not).  accepted: nodes of the tree
    that the text went through.
    """

    number: int
    tokens: list[int]
    limit: int
    rng: Rng
    memory: Memory
    left: Lattice | None = None
    ahead: int = 0
    drafts: int = 0
    depth: int = 0
    lattice: Lattice = field(default_factory=Lattice.empty)
    tree: Tree = field(default_factory=lambda: Tree.root(0))
    accepted: list[int] = field(default_factory=list)

    @property
    def weights(self) -> NDArray[np.float64]:
        """[drafts] of the tree's nodes without the root."""
        return np.array(self.tree.weights[1:])


class RowDrafter:
    """Trees for a batch of texts, round by round.

    A round is `propose`, the target's pass, `learn` where `top` asks for it, `settle`.
    """

    def __init__(
        self,
        components: SpeculationComponents,
        drafter: Drafter | None,
        vocab_size: int,
        texts: Sequence[Sequence[int]],
        limits: Sequence[int],
        rngs: Sequence[Rng],
        *,
        paths: bool = False,
    ) -> None:
        """drafter: None for model-free drafts only.  vocab_size: of the target; no id above it is
        drafted.  limits: tokens that each text will not exceed, prompt included.  paths: of each
        tree only the heaviest path, for a target that compares what it emits with one path.
        """
        self.components, self.vocab_size, self.paths = components, vocab_size, paths
        self.rows = [
            DraftedRow(number, list(tokens), limit, rng, self._memory())
            for number, (tokens, limit, rng) in enumerate(zip(texts, limits, rngs, strict=True))
        ]
        for row in self.rows:
            row.memory.extend(row.tokens)
        self.session: DraftSession | None = drafter.open(limits) if drafter else None
        self.control = components.control.open(len(self.rows))
        self._draft = self._search = self._proposed = 0.0  # seconds, seconds, the clock

    def _memory(self) -> Memory:
        """The sources of a row that begins, as right as they were in other texts."""
        sources = [source.open() for source in self.components.sources]
        return Memory(sources, rates=self.components.rates)

    def propose(self, most: int = LIMIT) -> list[Tree]:
        """The trees to verify behind the texts: no deeper than tokens are left or `most`, as large
        as the controller says.
        """
        began = perf_counter()
        for row in self.rows:
            # a round emits one token more than it accepts
            row.ahead = max(min(row.limit - len(row.tokens) - 1, most), 0)
            drafts = min(self.control.drafts(row.number), LIMIT) if row.ahead else 0
            row.drafts = min(drafts, row.ahead) if self.paths else drafts
        self._ask()
        drafted = perf_counter()
        for row in self.rows:
            row.tree = self._grown(row)
        self._cut()
        self._proposed = perf_counter()
        self._draft, self._search = drafted - began, self._proposed - drafted
        return [row.tree for row in self.rows]

    @property
    def top(self) -> int:
        """How many tokens behind each node `learn` wants; 0: it need not be called."""
        return max((row.memory.top for row in self.rows), default=0)

    def learn(self, row: int, top: NDArray[np.int64]) -> None:
        """top [n, k]: what the target finds most likely behind a row's tree, its first n nodes."""
        found = self.rows[row]
        found.memory.learn(found.tree.tokens[: len(top)], top)

    def settle(
        self,
        emitted: Sequence[Sequence[int]],
        verified: float,
        alive: Sequence[int] | None = None,
    ) -> Spent:
        """Tell sources and controller what came behind each text, and go on with the rows `alive`
        (None: all).

        verified: when the target's share of the round ended, by `perf_counter`.
        """
        for row, tokens in zip(self.rows, emitted, strict=True):
            self.observe(row, tokens)
        rows, width = len(self.rows), max(len(row.tree) for row in self.rows)
        depth = max(row.depth for row in self.rows)
        if alive is not None and len(alive) < rows:
            self._keep(alive)
        host = self._search + perf_counter() - verified
        spent = Spent(rows, width, depth, self._draft, verified - self._proposed, host)
        self.control.spent(spent)
        return spent

    def observe(self, row: DraftedRow, tokens: Sequence[int]) -> None:
        """Append what was emitted, and say what became of the row's drafts."""
        row.accepted = row.tree.follow(tokens)
        row.memory.extend(tokens)
        row.tokens += tokens
        if self.components.reuse:
            row.left = row.lattice.shift(len(tokens), tokens[-1])
        kept = np.zeros(row.tree.drafts, bool)
        kept[np.array(row.accepted, int) - 1] = True
        self.control.observe(
            row.number,
            Observed(
                depth=row.depth,
                end=row.lattice.first_end(),
                drafts=row.tree.drafts,
                accepted=len(row.accepted),
                weights=row.weights,
                kept=kept,
            ),
        )

    def _ask(self) -> None:
        """Find every row's lattice: what is left of the last one, or a new one."""
        rest = [self._rest(row) for row in self.rows]
        for row, left in zip(self.rows, rest, strict=True):
            wanted = row.drafts and not left and self.session is not None
            row.depth = min(self.control.depth(row.number), row.ahead) if wanted else 0
        depths = [row.depth for row in self.rows]
        new = [Lattice.empty()] * len(depths)
        if self.session is not None and any(depths):
            new = self.session.propose([list(row.tokens) for row in self.rows], depths)
        for row, left, lattice in zip(self.rows, rest, new, strict=True):
            row.lattice = (left or lattice).checked(self.vocab_size, row.ahead)

    def _rest(self, row: DraftedRow) -> Lattice | None:
        """The columns of the last draft that are used again, if there are enough."""
        reuse = self.components.reuse
        return row.left if reuse and row.left is not None and len(row.left) >= reuse else None

    def _grown(self, row: DraftedRow) -> Tree:
        """The tree of a row, before the controller has seen its weights."""
        root = row.tokens[-1]
        if not row.drafts:
            return Tree.root(root)
        search = self.components.search
        tree = search.grow(root, row.lattice, row.memory, row.drafts, row.rng)
        tree = tree.within(row.ahead, self.vocab_size)
        return tree.heaviest_path() if self.paths else tree

    def _cut(self) -> None:
        """Cut every tree to the size that the controller gives it."""
        # A size that looks at drawn tokens would bias what a rule makes of their probabilities; a
        # path is compared with what is emitted, and may be cut anywhere.
        if self.components.search.samples and not self.paths:
            return
        sizes = self.control.sizes([row.weights for row in self.rows])
        for row, size in zip(self.rows, sizes, strict=True):
            row.tree = row.tree.cut(size)

    def _keep(self, alive: Sequence[int]) -> None:
        """Only these rows go on."""
        self.rows = [self.rows[i] for i in alive]
        if alive and self.session is not None:
            self.session.keep(alive)
