import itertools
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.sources.ngram import FAINT, NGram

TEXTS = st.lists(st.integers(0, 4), max_size=30)


def opened(text, order=3, paths=4, pieces=1):
    source = NGram(order=order, paths=paths).open()
    size = max(1, len(text) // pieces)
    for start in range(0, len(text), size):
        source.extend(text[start : start + size])
    return source


def literal(text, context, token):
    """Witten-Bell from the shortest context up, by scanning the text each time."""
    prob = 1 / (len(set(text)) + 1)
    for n in range(len(context) + 1):
        before = list(context[len(context) - n :])
        behind = [text[i + n] for i in range(len(text) - n) if text[i : i + n] == before]
        kinds = len(set(behind))
        if kinds:
            prob = (behind.count(token) + kinds * prob) / (len(behind) + kinds)
    return prob


@given(TEXTS, st.lists(st.integers(0, 5), max_size=4), st.integers(2, 4), st.integers(1, 5))
def test_probabilities_are_those_of_the_whole_text(text, context, order, pieces):
    source = opened(text, order, pieces=pieces)
    before = (text + context)[-(order - 1) :]
    candidates = np.array([*range(7), -1])
    expected = [math.log(literal(text, before, token)) for token in range(7)]
    np.testing.assert_allclose(source.logp(context, candidates)[:7], expected, rtol=1e-12)


@given(TEXTS, st.integers(2, 4))
def test_known_tokens_and_one_unknown_have_all_the_mass(text, order):
    logp = opened(text, order).logp([], np.array([*sorted(set(text)), 99]))
    assert math.isclose(np.exp(logp).sum(), 1)


@given(TEXTS, st.integers(2, 4), st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
def test_pairs_are_bigram_probabilities(text, order, columns, width, seed):
    left, right = np.random.default_rng(seed).integers(-1, 6, (2, columns, width))
    pairs = opened(text, order).pairs(left, right)
    assert pairs.shape == (columns, width, width)
    for k, i, j in np.ndindex(pairs.shape):
        if min(left[k, i], right[k, j]) >= 0:
            expected = literal(text, [left[k, i]], right[k, j])
            assert math.isclose(pairs[k, i, j], expected, rel_tol=1e-12)


@given(TEXTS, st.integers(2, 4), st.integers(0, 4), st.integers(0, 6))
def test_branches_follow_the_commonest(text, order, paths, depth):
    source = opened(text, order, paths)
    branches = source.branches(depth)
    longest = next((n for n in range(order - 1, 0, -1) if occurrences(text, text[-n:])), None)
    if not depth or not paths or not text or longest is None:
        assert branches == []
        return
    behind = occurrences(text, text[-longest:])
    counts = sorted((behind.count(token) for token in set(behind)), reverse=True)
    firsts = [branch.tokens[0] for branch in branches]
    assert len(set(firsts)) == len(firsts)
    assert [behind.count(token) for token in firsts] == counts[:paths]
    for branch in branches:
        check_branch(text, branch, order, depth)


def test_an_unlikely_branch_is_not_followed_further():
    text = np.random.default_rng(0).integers(0, 5, 200).tolist()
    for branch in opened(text).branches(20):
        likely = np.cumprod(branch.weights)
        assert len(likely) < 20
        assert (likely[:-1] >= FAINT).all()
        assert likely[-1] < FAINT


def occurrences(text, context):
    """The tokens that came behind a context."""
    n = len(context)
    return [text[i + n] for i in range(len(text) - n) if text[i : i + n] == list(context)]


def check_branch(text, branch, order, depth):
    assert branch.source == "ngram"
    for i, (token, weight) in enumerate(zip(branch.tokens, branch.weights, strict=True)):
        before = (text + list(branch.tokens[:i]))[-(order - 1) :]
        assert math.isclose(weight, literal(text, before, token))
        if i:
            behind = next(filter(None, (occurrences(text, before[s:]) for s in range(len(before)))))
            assert behind.count(token) == max(behind.count(t) for t in set(behind))
    end = (text + list(branch.tokens))[-(order - 1) :]
    known = any(occurrences(text, end[start:]) for start in range(len(end)))
    likely = list(itertools.accumulate(branch.weights, operator.mul))
    assert all(value >= FAINT for value in likely[:-1])
    assert len(branch.tokens) == depth or not known or likely[-1] < FAINT


def test_the_latest_of_the_commonest_is_the_first():
    source = opened([1, 2, 1, 3, 1])
    assert [branch.tokens[0] for branch in source.branches(1)] == [3, 2]
    source = opened([1, 3, 1, 2, 1])
    assert [branch.tokens[0] for branch in source.branches(1)] == [2, 3]
    assert source.branches(3)[1].tokens == (3, 1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order=1: expected a whole number of at least 2"),
        ({"paths": -1}, "paths=-1: expected a whole number of at least 0"),
    ],
)
def test_an_option_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NGram(**options)
