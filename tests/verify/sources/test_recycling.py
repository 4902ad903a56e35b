import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.sources.recycling import DECAY, Recycling
from tests.verify.drafts import all_nodes

SEEN = st.lists(  # (token, the target's best behind it)
    st.tuples(st.integers(0, 4), st.permutations(range(5)).map(lambda p: p[:3])), max_size=12
)


def opened(seen, last=None, **options):
    source = Recycling(**options).open()
    half = len(seen) // 2
    for part in (seen[:half], seen[half:]):
        if part:
            source.learn([token for token, _ in part], np.array([top for _, top in part]))
    if last is not None:
        source.extend([4, last])
    return source


def known(seen, top):
    """The last list behind each token, and the estimate for each rank."""
    lists, hits, total = {}, [0.0] * top, [0.0] * top
    for token, best in seen:
        for rank, before in enumerate(lists.get(token, [])):
            hits[rank] = DECAY * hits[rank] + (before == best[0])
            total[rank] = DECAY * total[rank] + 1
        lists[token] = list(best[:top])
    rates = [(h + 4 * 0.5 ** (r + 1)) / (t + 4) for r, (h, t) in enumerate(zip(hits, total))]
    return lists, rates


@given(SEEN, st.integers(0, 4), st.integers(1, 4), st.integers(0, 8), st.integers(0, 3))
def test_branches_are_the_likeliest_nodes(seen, last, top, nodes, depth):
    lists, rates = known(seen, top)

    def conditional(path):
        before = path[-1] if path else last
        return list(zip(rates, lists.get(before, [])))

    branches = opened(seen, last, top=top, nodes=nodes).branches(depth)
    found, every = {}, all_nodes(conditional, depth)
    for branch in branches:
        assert branch.source == "recycling"
        for i in range(len(branch.tokens)):
            given = {t: w for w, t in conditional(branch.tokens[:i])}
            assert branch.weights[i] == pytest.approx(given[branch.tokens[i]])
            found[branch.tokens[: i + 1]] = math.prod(branch.weights[: i + 1])
    heaviest = sorted(every.values(), reverse=True)[:nodes]
    np.testing.assert_allclose(sorted(found.values(), reverse=True), heaviest, rtol=1e-9)
    assert not any(  # a branch is no prefix of another
        a is not b and b.tokens[: len(a.tokens)] == a.tokens for a in branches for b in branches
    )


@given(SEEN, st.integers(0, 4), st.integers(1, 4), st.lists(st.integers(0, 5), max_size=2))
def test_the_proxy_is_what_was_last_seen(seen, last, top, context):
    lists, rates = known(seen, top)

    def expected(before, token):
        listed = dict(zip(lists.get(before, []), rates))
        rest = max(1 - sum(listed.values()), 0.01) / (len(lists) + 1)
        return listed.get(token, rest)

    source = opened(seen, last, top=top)
    candidates = np.array([3, 0, 5, -1])
    before = [last, *context][-1]
    np.testing.assert_allclose(
        np.exp(source.logp(context, candidates)), [expected(before, t) for t in candidates]
    )
    left, right = np.array([[0, 1], [2, -1], [4, 5]]), np.array([[1, 2], [0, -1], [3, 4]])
    pairs = source.pairs(left, right)
    assert pairs.shape == (3, 2, 2)
    for k, i, j in np.ndindex(3, 2, 2):
        assert pairs[k, i, j] == pytest.approx(expected(left[k, i], right[k, j]))


def test_it_asks_for_as_many_as_it_keeps():
    source = opened([(1, [2, 3, 4])], 1, top=2)
    assert source.top == 2
    assert {branch.tokens[0] for branch in source.branches(1)} == {2, 3}
    assert source.pairs(np.zeros((0, 2), int), np.zeros((0, 2), int)).shape == (0, 2, 2)


def test_a_row_that_has_read_nothing_says_nothing():
    source = opened([(1, [2, 3])])
    assert source.branches(4) == []
    assert np.isfinite(source.logp([], np.array([2, 3]))).all()
    source.extend([])
    assert source.branches(4) == []


def test_ranks_learn_which_of_them_come():
    """Where the second of the last list is now always the best, it becomes the likeliest."""
    seen = [(1, [2, 3]) if i % 2 else (1, [3, 2]) for i in range(60)]
    first, second = opened(seen, 1, top=2).branches(1)
    assert (first.tokens, second.tokens) == ((3,), (2,))  # the last list is [2, 3]
    assert first.weights[0] > 0.9
    assert second.weights[0] < 0.1


@pytest.mark.parametrize(("option", "value", "low"), [("top", 0, 1), ("nodes", -1, 0)])
def test_an_option_out_of_range(option, value, low):
    with pytest.raises(
        ValueError, match=f"{option}={value}: expected a whole number of at least {low}"
    ):
        Recycling(**{option: value})
