"""What tests of searches share: random lattices and branches, and trees by brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

from dllm.verify.draft.lattice import Branch, Lattice
from dllm.verify.sources.memory import Memory, SourceSession
from dllm.verify.tree import Tree

# (tokens before) -> (weight, token) of everything that may come next
Conditional = Callable[[tuple[int, ...]], Sequence[tuple[float, int]]]


def lattice_of(columns: Sequence[dict[int, float]], eos: Sequence[int] = ()) -> Lattice:
    """A lattice from {token: probability} per column."""
    width = max((len(column) for column in columns), default=0)
    tokens = np.full((len(columns), width), -1)
    logp = np.full((len(columns), width), -np.inf)
    for i, column in enumerate(columns):
        for j, token in enumerate(sorted(column, key=lambda token: -column[token])):
            tokens[i, j], logp[i, j] = token, math.log(column[token])
    return Lattice(tokens, logp, frozenset(eos))


@st.composite
def lattices(draw: st.DrawFn, vocabulary: int = 6, depth: int = 4) -> Lattice:
    """Columns of 1 to 4 tokens with some mass missing, and perhaps an end token."""
    columns = []
    for _ in range(draw(st.integers(0, depth))):
        tokens = draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=4, unique=True))
        parts = draw(st.lists(st.integers(1, 20), min_size=len(tokens), max_size=len(tokens)))
        whole = sum(parts) + draw(st.sampled_from([0, 0, 1, 7]))
        columns.append({token: part / whole for token, part in zip(tokens, parts)})
    return lattice_of(columns, draw(st.sampled_from([(), (0,), (1, 3)])))


@st.composite
def branch_lists(draw: st.DrawFn, vocabulary: int = 6, depth: int = 5) -> list[Branch]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        tokens = draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=depth))
        weights = [draw(st.sampled_from([0.05, 0.3, 0.5, 0.8, 1.0])) for _ in tokens]
        found.append(Branch(tuple(tokens), tuple(weights), draw(st.sampled_from(["suffix", "x"]))))
    return found


class Say(SourceSession):
    """A source that says what it is told to, once per call; a proxy if it has a table g[u, v]."""

    name = "say"

    def __init__(self, branches: Sequence[Branch] = (), table: np.ndarray | None = None) -> None:
        self.said, self.table = list(branches), table
        self.came: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        self.came += tokens

    def learn(self, tokens, top) -> None:
        self.learned = tokens, top

    def branches(self, depth: int) -> list[Branch]:
        return [Branch(b.tokens[:depth], b.weights[:depth], b.source) for b in self.said]

    def logp(self, context, candidates):
        if self.table is None:
            return None
        return np.log(self.table[(*self.came, *context)[-1], candidates])

    def pairs(self, left, right):
        return None if self.table is None else self.table[left[:, :, None], right[:, None, :]]


def all_nodes(
    conditional: Conditional, depth: int, eos: Sequence[int] = ()
) -> dict[tuple[int, ...], float]:
    """Weight of every path of at most `depth` tokens, by enumeration."""
    found: dict[tuple[int, ...], float] = {}

    def visit(path: tuple[int, ...], weight: float) -> None:
        if len(path) == depth or (path and path[-1] in eos):
            return
        for given, token in conditional(path):
            if given > 0:
                found[(*path, token)] = weight * given
                visit((*path, token), weight * given)

    visit((), 1.0)
    return found


def paths(tree: Tree) -> list[tuple[int, ...]]:
    """The path of tokens to each node behind the root, in the order of the nodes."""
    return [tuple(tree.tokens[i] for i in tree.path(node)) for node in range(1, len(tree))]


def check_tree(tree: Tree, eos: Sequence[int] = ()) -> None:
    """What every tree of a search promises."""
    assert len(set(paths(tree))) == tree.drafts
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        assert parent < node
        assert 0 < tree.weights[node] <= tree.weights[parent] <= 1
        assert parent == 0 or tree.tokens[parent] not in eos
        if node > 1:
            assert tree.weights[node] <= tree.weights[node - 1]


def check_heaviest(tree: Tree, nodes: dict[tuple[int, ...], float], drafts: int) -> None:
    """The tree holds the `drafts` heaviest of these nodes, with their weights, in order."""
    assert tree.drafts == min(drafts, len(nodes))
    given = [nodes[path] for path in paths(tree)]
    np.testing.assert_allclose(tree.weights[1:], given, rtol=1e-9)
    np.testing.assert_allclose(given, sorted(nodes.values(), reverse=True)[:drafts], rtol=1e-9)


ROOT = 3  # the last committed token


def table(seed, vocabulary=6):
    """A proxy g[u, v] without zeros."""
    return np.random.default_rng(seed).dirichlet(np.full(vocabulary, 0.5), vocabulary) + 0.01


def memory_of(branches=(), seed=None):
    memory = Memory([Say(branches, None if seed is None else table(seed))])
    memory.extend([ROOT])
    return memory


def columns_of(lattice):
    """[{token: probability}] up to the first column without a token."""
    columns = [
        {int(t): math.exp(p) for t, p in zip(*column) if t >= 0}
        for column in zip(lattice.tokens, lattice.logp)
    ]
    return list(itertools.takewhile(bool, columns))


def fused(own, branches):
    """The conditional distribution of a lattice (path -> {token: weight}) and branches."""

    def conditional(path):
        inside = all(token in own(path[:i]) for i, token in enumerate(path))
        ours, theirs = own(path) if inside else {}, {}
        for branch in branches:
            if branch.tokens[: len(path)] == path and len(branch.tokens) > len(path):
                token = branch.tokens[len(path)]
                theirs[token] = max(theirs.get(token, 0), branch.weights[len(path)])
        return [(1 - (1 - ours.get(t, 0)) * (1 - theirs.get(t, 0)), t) for t in {*ours, *theirs}]

    return conditional


def check_search(search, own, lattice, branches, drafts, seed=None):
    """The tree is the heaviest nodes of `own` and the branches."""
    tree = search.grow(ROOT, lattice, memory_of(branches, seed), drafts, None)
    assert tree.tokens[0] == ROOT
    assert not tree.draws
    check_tree(tree, lattice.eos)
    cut = [Branch(b.tokens[:drafts], b.weights[:drafts], b.source) for b in branches]
    nodes = all_nodes(fused(own, cut), 6, lattice.eos)
    check_heaviest(tree, nodes, drafts)
