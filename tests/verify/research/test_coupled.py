import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.markov import sharpened
from dllm.verify.draft.search import Product
from dllm.verify.research.coupled import Coupled, couple, smoothed
from dllm.verify.sources.memory import Memory
from tests.verify.drafts import (
    ROOT,
    Say,
    branch_lists,
    check_search,
    columns_of,
    lattice_of,
    lattices,
    memory_of,
    paths,
    table,
)

SIZES = st.integers(1, 5)


@st.composite
def problems(draw, columns=2, zeros=True):
    """proxy [K, M, M] > 0, left and right [K, M] distributions, perhaps with zeros."""
    size = draw(SIZES)
    proxy = draw(arrays(float, (columns, size, size), elements=st.floats(0.05, 1)))
    distributions = draw(
        arrays(int, (2, columns, size), elements=st.integers(0 if zeros else 1, 9))
    )
    distributions[..., draw(st.integers(0, size - 1))] += 1
    left, right = distributions / distributions.sum(-1, keepdims=True)
    return proxy, left, right


@given(problems())
def test_rows_are_distributions_and_columns_have_the_marginals(problem):
    proxy, left, right = problem
    behind = couple(proxy, left, right, 100)
    np.testing.assert_allclose(behind.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.einsum("ku,kuv->kv", left, behind), right, atol=1e-6)


@given(problems(zeros=False), st.integers(0, 10**6))
def test_the_coupling_does_not_see_how_common_a_token_is(problem, seed):
    """Factors of u and of v cancel; what is left is the one solution a(u) g(v|u) b(v)."""
    proxy, left, right = problem
    rng = np.random.default_rng(seed)
    scaled = (
        proxy
        * rng.uniform(0.2, 5, left.shape)[..., None]
        * rng.uniform(0.2, 5, right.shape)[:, None]
    )
    behind = couple(proxy, left, right, 100)
    np.testing.assert_allclose(couple(scaled, left, right, 100), behind, atol=1e-6)
    log = np.log(behind / proxy)  # = ln a(u) + ln b(v): no interaction is left
    left_over = log - log.mean(-1, keepdims=True)
    np.testing.assert_allclose(left_over, np.broadcast_to(left_over[:, :1], log.shape), atol=1e-9)


@given(st.integers(0, 10**6), SIZES, st.integers(1, 20))
def test_an_exact_proxy_and_exact_marginals_give_the_chain_itself(seed, size, sweeps):
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.ones(size), size)
    true[rng.random(true.shape) < 0.3] = 0
    true[:, 0] += 0.1
    true /= true.sum(-1, keepdims=True)
    left = rng.dirichlet(np.ones(size))
    behind = couple(true[None], left[None], (left @ true)[None], sweeps)
    np.testing.assert_allclose(behind[0], true, rtol=1e-9, atol=1e-12)


@given(problems(), st.integers(1, 3))
def test_a_proxy_that_says_nothing_gives_the_product(problem, sweeps):
    proxy, left, right = problem
    blank = np.full_like(proxy, 0.37)
    behind = couple(blank, left, right, sweeps)
    np.testing.assert_allclose(behind, np.broadcast_to(right[:, None], proxy.shape), rtol=1e-9)


@given(problems(), st.integers(0, 10**6))
def test_what_cannot_be_stays_so(problem, seed):
    """Zeros of the proxy and of the marginals; nothing becomes nan, whatever does not fit."""
    proxy, left, right = problem
    proxy = proxy * (np.random.default_rng(seed).random(proxy.shape) < 0.6)
    behind = couple(proxy, left, right, 15)
    assert np.isfinite(behind).all()
    assert (behind[proxy == 0] == 0).all()
    assert (behind[np.broadcast_to(right[:, None] == 0, proxy.shape)] == 0).all()
    sums = behind.sum(-1)
    assert ((np.abs(sums - 1) < 1e-9) | (sums == 0)).all()


@given(problems(), st.integers(1, 4))
def test_absent_candidates_do_not_count(problem, sweeps):
    """However few the sweeps: as if the candidates of probability 0 were not there."""
    proxy, left, right = problem
    for g, rows, columns in zip(proxy, left, right):
        there = np.ix_(rows > 0, columns > 0)
        alone = couple(g[there], rows[rows > 0], columns[columns > 0], sweeps)
        np.testing.assert_allclose(couple(g, rows, columns, sweeps)[there], alone, rtol=1e-9)


def test_each_pair_of_columns_is_coupled_by_itself():
    rng = np.random.default_rng(0)
    proxy, distributions = rng.uniform(0.1, 1, (3, 4, 4)), rng.dirichlet(np.ones(4), (2, 3))
    whole = couple(proxy, *distributions, 15)
    for k in range(3):
        np.testing.assert_allclose(
            whole[k], couple(proxy[k], distributions[0, k], distributions[1, k], 15)
        )


def test_more_sweeps_come_nearer():
    rng = np.random.default_rng(1)
    proxy, (left, right) = rng.uniform(0.01, 1, (8, 8)) ** 3, rng.dirichlet(np.ones(8) / 2, 2)
    gaps = [np.abs(left @ couple(proxy, left, right, n) - right).sum() for n in (1, 5, 20, 100)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[2] < 0.02


@given(problems(), st.floats(0.01, 1))
def test_smoothing_mixes_the_rows_with_the_uniform_distribution(problem, share):
    proxy, *_ = problem
    size = proxy.shape[-1]
    proxy[:, 0] = 0  # a row that knows nothing
    mixed = smoothed(proxy, share)
    assert (mixed >= share / size).all()
    np.testing.assert_allclose(mixed[:, 0], share / size)
    rows = proxy[:, 1:] / proxy[:, 1:].sum(-1, keepdims=True)
    np.testing.assert_allclose(mixed[:, 1:], (1 - share) * rows + share / size)


@given(problems(), st.floats(0.1, 6), st.floats(0.1, 1))
def test_sharpening_keeps_mass_order_and_support(problem, gamma, mass):
    _, probs, _ = problem
    sharp = sharpened(probs, gamma, np.full((len(probs), 1), mass))
    np.testing.assert_allclose(sharp.sum(-1), mass)
    for before, after in zip(probs, sharp):
        assert (after[np.argsort(before)] == np.sort(after)).all()
        known = before > 0
        np.testing.assert_allclose(
            np.log(after[known] / after.max()),
            gamma * np.log(before[known] / before.max()),
            atol=1e-9,
        )
        assert (after[~known] == 0).all()


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
    """A proxy that knows the distribution [V, V, V] behind two tokens."""

    def __init__(self, distribution, pair):
        super().__init__((), pair)
        self.distribution = distribution

    def logp(self, context, candidates):
        return np.log(self.distribution[(*self.came, *context)[-2:]][candidates])


@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0]))
def test_a_chain_of_order_two_is_found_by_the_longer_context(seed, gamma):
    """Exact marginals, exact pairs of the joint distribution and g(v|t,u): the weights are the true
    distribution.
    """
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
