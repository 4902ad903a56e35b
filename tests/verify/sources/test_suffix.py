import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.sources.suffix import DECAY, LENGTHS, Automaton, Suffix

TEXTS = st.lists(st.integers(0, 2), max_size=40)


def opened(text, pieces=1, **options):
    source = Suffix(**options).open()
    size = max(1, len(text) // pieces)
    for start in range(0, len(text), size):
        source.extend(text[start : start + size])
    return source


def matched(text):
    """Length of the longest suffix that also ends earlier, by trying all."""
    return max(
        (
            n
            for n in range(len(text))
            for end in range(len(text) - 1)
            if n <= end + 1 and text[end + 1 - n : end + 1] == text[len(text) - n :]
        ),
        default=0,
    )


def behind(text, length):
    """Tokens behind earlier occurrences of the last `length`, the latest first: (token, place)."""
    found = {}
    for end in range(len(text) - 2, length - 2, -1):
        if text[end + 1 - length : end + 1] == text[len(text) - length :]:
            found.setdefault(text[end + 1], end + 1)
    return list(found.items())


@given(TEXTS, st.integers(1, 3), st.integers(1, 4), st.integers(0, 6), st.integers(1, 5))
def test_branches_continue_the_longest_match(text, least, paths, depth, pieces):
    source = opened(text, pieces, least=least, paths=paths)
    length = matched(text)
    branches = source.branches(depth)
    if length < least or not depth:
        assert branches == []
        return
    places = behind(text, length)
    firsts = [branch.tokens[0] for branch in branches]
    assert len(set(firsts)) == len(firsts) == min(paths, len(places))
    for branch in branches:
        assert branch.source == "suffix"
        assert len(branch.weights) == len(branch.tokens) == depth
        assert all(0 < weight < 1 for weight in branch.weights)
        grown = [*text, *branch.tokens]  # what is copied may reach into what was copied
        assert any(
            all(grown[place + i] == token for i, token in enumerate(branch.tokens))
            for place in range(length, len(text))
            if text[place - length : place] == text[len(text) - length :]
        )


@given(TEXTS, st.integers(0, 6))
def test_the_latest_comes_first(text, depth):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Automaton, "fresh", 10**9)
        branches = opened(text, least=1, paths=9).branches(depth)
    length = matched(text)
    if not length or not depth:
        assert branches == []
        return
    expected = []
    for _, place in behind(text, length):
        grown = list(text)
        for i in range(depth):
            grown.append(grown[place + i])
        expected.append(tuple(grown[len(text) :]))
    assert [branch.tokens for branch in branches] == expected


@given(TEXTS, st.integers(1, 2), st.integers(1, 2))
def test_weights_are_what_the_text_itself_says(text, least, paths):
    """How often matches of that length went on as their n-th latest did, by scanning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Automaton, "fresh", 10**9)
        branches = opened(text, least=least, paths=paths).branches(3)
    hits, seen = {}, {}
    for i, token in enumerate(text):
        length = matched(text[:i])
        if length < least:
            continue
        for rank, (said, _) in enumerate(behind(text[:i], length)[:paths]):
            key = rank, length
            hits[key] = DECAY * hits.get(key, 0) + (said == token)
            seen[key] = DECAY * seen.get(key, 0) + 1
    for rank, branch in enumerate(branches):
        for i, weight in enumerate(branch.weights):
            key = (0 if i else rank), matched(text) + i
            prior = key[1] / (key[1] + 1) / 2 ** key[0]
            assert weight == pytest.approx((hits.get(key, 0) + prior) / (seen.get(key, 0) + 1))


def test_a_copied_prompt_is_copied_on():
    source = opened([5, 6, 7, 8, 9, 1, 5, 6])
    (branch,) = source.branches(3)
    assert branch.tokens == (7, 8, 9)
    source.extend([7, 8])
    assert source.branches(2)[0].tokens == (9, 1)


def test_a_loop_goes_on():
    assert opened([1, 2, 3, 1, 2, 3]).branches(7)[0].tokens == (1, 2, 3, 1, 2, 3, 1)


def test_very_long_matches_count_as_equally_good():
    rate = opened([]).rate
    assert rate(0, LENGTHS - 1) is not rate(0, LENGTHS)
    assert rate(0, LENGTHS) is rate(0, LENGTHS + 1)
    source = opened([1] * 300)
    assert source.branches(2)[0].weights[0] > 0.95
    assert opened([*range(200), *range(100)]).branches(1)[0].weights[0] > 0.95


@pytest.mark.parametrize(
    "text",
    [
        [1] * 4000,
        [*([1, 2, 3] * 1300)],
        list(range(4000)),
        [token for i in range(2000) for token in (1, i + 9)],
    ],
)
def test_reading_takes_time_in_proportion_to_the_text(text):
    def spent(n):
        source = Suffix(least=1).open()
        start = time.process_time()
        source.extend(text[:n])
        source.branches(16)
        return time.process_time() - start

    assert min(spent(4000) for _ in range(3)) < 12 * min(spent(1000) for _ in range(3))


@pytest.mark.parametrize("option", ["least", "paths"])
def test_an_option_out_of_range(option):
    with pytest.raises(ValueError, match=f"{option}=0: expected a whole number of at least 1"):
        Suffix(**{option: 0})
