import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dllm.verify.draft.couple import couple, sharpened, smoothed

SIZES = st.integers(1, 5)


@st.composite
def problems(draw, columns=2, zeros=True):
    """proxy [K, M, M] > 0, left and right [K, M] laws, perhaps with zeros."""
    size = draw(SIZES)
    proxy = draw(arrays(float, (columns, size, size), elements=st.floats(0.05, 1)))
    distributions = draw(
        arrays(int, (2, columns, size), elements=st.integers(0 if zeros else 1, 9))
    )
    distributions[..., draw(st.integers(0, size - 1))] += 1
    left, right = distributions / distributions.sum(-1, keepdims=True)
    return proxy, left, right


@given(problems())
def test_rows_are_laws_and_columns_have_the_marginals(problem):
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
def test_smoothing_mixes_the_rows_with_the_uniform_law(problem, share):
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
