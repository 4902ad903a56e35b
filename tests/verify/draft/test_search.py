import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dllm.verify.draft.lattice import Branch, Lattice
from dllm.verify.draft.search import Argmax, Coupled, Cps, Product
from dllm.verify.sources.memory import Memory
from tests.verify.drafts import (
    Say,
    all_nodes,
    branch_lists,
    check_heaviest,
    check_tree,
    lattice_of,
    lattices,
    paths,
)

ROOT = 3  # the last committed token
SEARCHES = st.one_of(
    st.builds(Argmax),
    st.builds(Cps, beam=st.integers(1, 4), mass=st.sampled_from([0.5, 0.8, 1.0])),
    st.builds(Product, gamma=st.sampled_from([0.5, 1.0, 2.0])),
    st.builds(
        Coupled,
        width=st.integers(1, 4),
        gamma=st.sampled_from([0.5, 1.0, 2.0]),
        order=st.sampled_from([2, 3]),
    ),
)


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
    """The conditional law of a lattice (path -> {token: weight}) and branches, from its words."""

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


@given(lattices(), branch_lists(), st.integers(0, 25), st.sampled_from([0.5, 1.0, 3.0]))
def test_product(lattice, branches, drafts, gamma):
    columns = columns_of(lattice)

    def own(path):
        column = columns[len(path)] if len(path) < len(columns) else {}
        total, powers = sum(column.values()), sum(p**gamma for p in column.values())
        return {token: total * p**gamma / powers for token, p in column.items()}

    check_search(Product(gamma), own, lattice, branches, drafts)


RAGGED = lattice_of([{0: 0.3, 1: 0.4, 2: 0.2}, {0: 0.5, 1: 0.4}, {2: 0.3, 3: 0.3, 4: 0.4}])


def literal_coupling(g, left, right, sweeps):
    """Sinkhorn's scaling by rows and columns of the matrix itself: {(u, v): r(v|u)}."""
    pi = dict(g)
    for _ in range(sweeps):
        for u in left:
            row = sum(pi[u, v] for v in right)
            pi |= {(u, v): pi[u, v] * left[u] / row for v in right}
        for v in right:
            column = sum(pi[u, v] for u in left)
            pi |= {(u, v): pi[u, v] * right[v] / column for u in left}
    return {(u, v): pi[u, v] / sum(pi[u, w] for w in right) for u, v in pi}


@given(
    lattices(depth=3),
    branch_lists(),
    st.sampled_from([1, 7, 300]),
    st.builds(
        Coupled,
        width=st.integers(1, 4),
        sweeps=st.integers(1, 4),
        gamma=st.sampled_from([0.5, 1.0, 3.0]),
        smooth=st.sampled_from([0.01, 0.4]),
        order=st.sampled_from([2, 3]),  # the proxy knows one token: the same
    ),
    st.integers(0, 99),
)
@example(RAGGED, [], 300, Coupled(smooth=0.4), 1)
@example(RAGGED, [], 300, Coupled(smooth=0.4, order=3), 1)
def test_coupled(lattice, branches, drafts, search, seed):
    narrow = Lattice(lattice.tokens[:, : search.width], lattice.logp[:, : search.width])
    columns = columns_of(narrow)
    proxy, size = table(seed), narrow.tokens.shape[-1]
    distributions = [{t: p / sum(column.values()) for t, p in column.items()} for column in columns]
    pairs = []
    for k in range(1, len(columns)):
        g = {}
        for u in columns[k - 1]:
            total = sum(proxy[u, v] for v in columns[k])
            for v in columns[k]:
                g[u, v] = (1 - search.smooth) * proxy[u, v] / total + search.smooth / size
        pairs.append(literal_coupling(g, distributions[k - 1], distributions[k], search.sweeps))

    def own(path):
        depth = len(path)
        if depth >= len(columns):
            return {}
        mass = sum(columns[depth].values())
        distribution = (
            distributions[depth]
            if not path
            else {v: pairs[depth - 1][path[-1], v] for v in distributions[depth]}
        )
        powers = {v: p**search.gamma for v, p in distribution.items()}
        return {v: mass * p / sum(powers.values()) for v, p in powers.items()}

    check_search(search, own, lattice, branches, drafts, seed)


@given(lattices(), st.integers(0, 25), st.sampled_from([1.0, 2.0]), st.sampled_from([2, 3]))
def test_coupled_without_a_proxy_is_the_product(lattice, drafts, gamma, order):
    coupled = Coupled(gamma=gamma, order=order).grow(ROOT, lattice, memory_of(), drafts, None)
    product = Product(gamma).grow(ROOT, lattice, memory_of(), drafts, None)
    np.testing.assert_allclose(coupled.weights, product.weights, rtol=1e-9)


class Trigram(Say):
    """A proxy that knows the law [V, V, V] behind two tokens."""

    def __init__(self, distribution, pair):
        super().__init__((), pair)
        self.distribution = distribution

    def logp(self, context, candidates):
        return np.log(self.distribution[(*self.came, *context)[-2:]][candidates])


@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0]))
def test_a_chain_of_order_two_is_found_by_the_longer_context(seed, gamma):
    """Exact marginals, exact pairs of the joint law and g(v|t,u): the weights are the true law."""
    rng = np.random.default_rng(seed)
    size, distribution = 3, rng.dirichlet(np.ones(3), (3, 3)) * 0.9 + 0.1 / 3
    joint = np.einsum(
        "u,uv,vuw->uvw",
        distribution[0, ROOT % 3],
        distribution[ROOT % 3],
        np.swapaxes(distribution, 0, 1),
    )
    joint2 = joint.sum(2)
    columns = [joint2.sum(1), joint2.sum(0), joint.sum((0, 1))]
    pairs = {0: joint2 / joint2.sum(1, keepdims=True), 1: joint.sum(0)}

    class Exact(Trigram):
        def pairs(self, left, right):
            found = [
                pairs[k][np.ix_(left[k], right[k])] / pairs[k][left[k]].sum(-1, keepdims=True)
                for k in range(2)
            ]
            return np.array(found)

    memory = Memory([Exact(distribution, None)])
    memory.extend([0, ROOT % 3])
    search = Coupled(gamma=gamma, order=3, smooth=1e-12, sweeps=200)
    lattice = lattice_of([dict(enumerate(column)) for column in columns])
    tree = search.grow(ROOT, lattice, memory, 99, None)
    assert tree.drafts == size + size**2 + size**3
    for path, weight in zip(paths(tree), tree.weights[1:]):
        expected, before = 1.0, (0, ROOT % 3)
        for token in path:
            powers = distribution[before] ** gamma
            expected *= powers[token] / powers.sum()
            before = (before[1], token)
        assert weight == pytest.approx(expected, rel=1e-6)


def test_the_longer_context_is_the_whole_path():
    """So a proxy that looks far back never sees a gap behind the committed text."""
    asked = []

    class Listening(Say):
        def logp(self, context, candidates):
            asked.append(tuple(context))
            return super().logp(context, candidates)

    memory = Memory([Listening(table=table(0))])
    memory.extend([ROOT])
    lattice = lattice_of([{1: 0.9}, {2: 0.9}, {4: 0.9}, {5: 0.9}])
    Coupled(order=3).grow(ROOT, lattice, memory, 9, None)
    assert asked == [(1,), (1, 2), (1, 2, 4)]


@given(lattices(), branch_lists(), st.integers(0, 12))
def test_argmax(lattice, branches, drafts):
    columns = columns_of(lattice)
    path = tuple(max(column, key=column.get) for column in columns)

    def own(before):
        depth = len(before)
        if depth >= len(path) or before != path[:depth]:
            return {}
        return {path[depth]: columns[depth][path[depth]]}

    check_search(Argmax(), own, lattice, branches, drafts)


def score(path, columns, proxy, lam):
    before = (ROOT, *path)
    return sum(
        lam * math.log(columns[i][v]) + (1 - lam) * math.log(proxy[before[i], v])
        for i, v in enumerate(path)
    )


def pruned(columns, mass, width, eos):
    """The fewest tokens that have the mass, at most `width`, and every end token."""
    kept = []
    for column in columns:
        tokens, total = [], 0.0
        for token in sorted(column, key=column.get, reverse=True):
            if (total < mass and len(tokens) < width) or token in eos:
                tokens.append(token)
            total += column[token]
        kept.append({token: column[token] for token in tokens})
    return kept


def complete(columns, eos):
    """All paths that end with an end token or behind the last column."""
    found = [()]
    for column in columns:
        found = [
            longer
            for path in found
            for longer in (
                [path] if path and path[-1] in eos else [(*path, token) for token in column]
            )
        ]
    return found


@given(
    lattices(),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.4, 0.8, 1.0]),
    st.integers(1, 4),
)
def test_a_wide_beam_finds_the_best_path(lattice, seed, lam, mass, width):
    """Raw sums: an early end token competes with its score as it stands."""
    columns = pruned(columns_of(lattice), mass, width, lattice.eos)
    search = Cps(beam=10**4, mass=mass, width=width, lam=lam)
    tree = search.grow(ROOT, lattice, memory_of(seed=seed), 9, None)
    found = tuple(tree.tokens[1:])
    assert tree.parents == [-1, *range(tree.drafts)]
    all_paths = complete(columns, lattice.eos)
    assert found in all_paths
    scores = {path: score(path, columns, table(seed), lam) for path in all_paths}
    assert scores[found] >= max(scores.values()) - 1e-9
    given = [columns[i][token] for i, token in enumerate(found)]
    np.testing.assert_allclose(tree.weights[1:], np.cumprod(given))


def literal_beam(columns, eos, proxy, lam, beam):
    kept = [()]
    for column in columns:
        grown = []
        for path in kept:
            grown += [path] if path and path[-1] in eos else [(*path, token) for token in column]
        kept = sorted(grown, key=lambda path: -score(path, columns, proxy, lam))[:beam]
    return kept[0]


@given(lattices(), st.integers(0, 99), st.integers(1, 3))
def test_the_beam(lattice, seed, beam):
    columns = pruned(columns_of(lattice), 0.8, 15, lattice.eos)
    tree = Cps(beam=beam).grow(ROOT, lattice, memory_of(seed=seed), 9, None)
    best = literal_beam(columns, lattice.eos, table(seed), 0.5, beam)
    found = tuple(tree.tokens[1:])
    assert score(found, columns, table(seed), 0.5) == pytest.approx(
        score(best, columns, table(seed), 0.5)
    )


def test_cps_has_the_published_defaults():
    assert Cps() == Cps(beam=3, mass=0.8, width=15, lam=0.5)


def test_cps_prefers_an_early_end():
    """As published: nothing makes up for the length, so two good tokens lose to one poor end."""
    lattice = lattice_of([{1: 0.6, 0: 0.3}, {2: 0.5, 4: 0.5}, {2: 0.5, 4: 0.5}], eos=[0])
    assert Cps().grow(ROOT, lattice, memory_of(), 9, None).tokens == [ROOT, 0]


@given(SEARCHES, lattices(), branch_lists(), st.integers(0, 12), st.integers(0, 99))
def test_a_cut_is_the_tree_of_the_smaller_budget(search, lattice, branches, drafts, seed):
    """Where the budget cuts neither the lattice nor the branches in depth."""
    small, large = (
        search.grow(ROOT, lattice, memory_of(branches, seed), n, None) for n in (max(drafts, 6), 40)
    )
    assert large.cut(max(drafts, 6)) == small
    assert search.grow(ROOT, lattice, memory_of(branches, seed), drafts, None).drafts <= drafts


@given(SEARCHES, branch_lists(), st.integers(0, 12))
def test_branches_alone_are_enough(search, branches, drafts):
    tree = search.grow(ROOT, Lattice.empty([1]), memory_of(branches), drafts, None)
    check_tree(tree, [1])
    nodes = all_nodes(fused(lambda path: {}, branches), 6, [1])
    check_heaviest(tree, nodes, drafts)


@given(SEARCHES, branch_lists(), branch_lists(), st.integers(0, 12))
def test_branches_of_the_lattice_count_as_those_of_the_memory(search, some, more, drafts):
    columns = lattice_of([{1: 0.5, 2: 0.2}, {3: 0.9}])
    lattice = dataclasses.replace(columns, branches=tuple(more))
    trees = [
        search.grow(ROOT, lattice, memory_of(some), drafts, None),
        search.grow(ROOT, columns, memory_of([*some, *more]), drafts, None),
    ]
    assert trees[0] == trees[1]


@given(SEARCHES, st.integers(0, 9))
def test_a_lattice_ends_where_a_column_is_empty(search, drafts):
    whole = lattice_of([{1: 0.5, 2: 0.2}, {3: 0.9}])
    broken = lattice_of([{1: 0.5, 2: 0.2}, {3: 0.9}, {}, {4: 1.0}])
    for seed in (None, 5):
        assert search.grow(ROOT, broken, memory_of(seed=seed), drafts, None) == search.grow(
            ROOT, whole, memory_of(seed=seed), drafts, None
        )


@given(SEARCHES)
def test_a_deterministic_search_may_be_cut(search):
    assert not search.samples
    assert search.accepts == ("match",)


def test_a_search_leaves_the_lattice_as_it_is():
    lattice = lattice_of([{1: 0.5, 0: 0.2}, {3: 0.9}], eos=[0])
    for search in (Argmax(), Cps(), Product(2.0), Coupled(gamma=2.0, order=3)):
        tokens, logp = lattice.tokens.copy(), lattice.logp.copy()
        search.grow(ROOT, lattice, memory_of(seed=1), 9, None)
        assert (lattice.tokens == tokens).all()
        assert (lattice.logp == logp).all()


@pytest.mark.parametrize(
    ("part", "knobs", "message"),
    [
        (Cps, {"beam": 0}, "beam=0: expected a whole number of at least 1"),
        (Cps, {"width": 0}, "width=0: expected a whole number of at least 1"),
        (Cps, {"mass": 0.0}, "mass=0.0: expected a number above 0"),
        (Cps, {"lam": -0.1}, "lam=-0.1: expected a number from 0 to 1"),
        (Product, {"gamma": 0.0}, "gamma=0.0: expected a number above 0"),
        (Coupled, {"gamma": float("nan")}, "gamma=nan: expected a number above 0"),
        (Coupled, {"width": 0}, "width=0: expected a whole number of at least 1"),
        (Coupled, {"sweeps": 0}, "sweeps=0: expected a whole number of at least 1"),
        (Coupled, {"order": 4}, "order=4: expected 2 or 3"),
        (Coupled, {"smooth": 0.0}, "smooth=0.0: expected a number above 0 and at most 1"),
    ],
)
def test_a_knob_out_of_range(part, knobs, message):
    with pytest.raises(ValueError, match=message):
        part(**knobs)
