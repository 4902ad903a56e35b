import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dllm.errors import DllmError
from dllm.verify.sources.datastore import FORMAT, REACH, Datastore, sorted_places

STORES = st.lists(st.lists(st.integers(0, 2), max_size=20), min_size=1, max_size=4).filter(any)


def opened(texts, context, **options):
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "store.safetensors")
        Datastore.build(texts, path)
        source = Datastore(path, **options).open()
    source.extend(context[:3])
    source.extend(context[3:])
    return source


def continuations(texts, context, least, depth):
    """What comes behind every occurrence of the longest end of the context, by scanning."""
    for n in range(min(len(context), REACH), least - 1, -1):
        end = context[len(context) - n :]
        found = [
            tuple(text[i + n : i + n + depth])
            for text in texts
            for i in range(len(text) - n + 1)
            if text[i : i + n] == end
        ]
        if found:
            return found
    return []


@given(STORES, st.lists(st.integers(0, 3), max_size=20), st.integers(1, 3), st.integers(0, 5))
def test_branches_are_all_that_came_behind_the_longest_match(texts, context, least, depth):
    branches = opened(texts, context, least=least, samples=10**6).branches(depth)
    found = continuations(texts, context, least, depth)
    assert {branch.tokens for branch in branches} == {words for words in found if words}
    assert len({branch.tokens for branch in branches}) == len(branches)
    for branch in branches:
        assert branch.source == "datastore"
        assert len(branch.weights) == len(branch.tokens)
        for i, weight in enumerate(branch.weights):
            same = sum(words[:i] == branch.tokens[:i] for words in found)
            more = sum(words[: i + 1] == branch.tokens[: i + 1] for words in found)
            assert weight == pytest.approx(more / (same + 1))


@given(STORES, st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 4))
def test_samples_are_spread_over_the_occurrences(texts, context, samples):
    branches = opened(texts, context, least=1, samples=samples).branches(4)
    found = sorted(continuations(texts, context, 1, 4))
    picked = [
        found[i * len(found) // min(samples, len(found))] for i in range(min(samples, len(found)))
    ]
    assert [branch.tokens for branch in branches] == list(dict.fromkeys(filter(None, picked)))


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=60))
def test_places_are_sorted_as_far_as_a_match_reaches(tokens):
    tokens = [*tokens, -1]
    order = sorted_places(np.array(tokens, np.int32))
    assert order.dtype == np.int32
    assert order.tolist() == sorted(range(len(tokens)), key=lambda i: (tokens[i : i + REACH], i))


def test_a_text_of_one_token():
    (branch,) = opened([[7, 8]], [7], least=1).branches(3)
    assert branch.tokens == (8,)
    assert opened([[7, 8]], [8], least=1).branches(3) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "expected texts of at least one token, found none"),
        ([[]], "expected texts of at least one token, found none"),
        ([[1, -1]], "token -1: expected a number from 0 to 2147483647"),
        ([[1], [2**31]], "token 2147483648: expected a number from 0 to 2147483647"),
    ],
)
def test_what_cannot_be_stored(texts, message, tmp_path):
    with pytest.raises(DllmError, match=message):
        Datastore.build(texts, tmp_path / "store.safetensors")


def save(path, tokens, order, format=FORMAT):
    save_file({"tokens": tokens, "order": order}, path, {"format": format})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "expected a safetensors file: "),
        (lambda path: Path(path).write_bytes(b"text"), "expected a safetensors file: "),
        (
            lambda path: save_file({"a": np.zeros(1)}, path),
            "format is None, expected",
        ),
        (
            lambda path: save(path, np.int32([1, -1]), np.int32([1, 0]), "other"),
            "format is 'other', expected 'dllm datastore 1'",
        ),
        (
            lambda path: save_file({"a": np.zeros(1)}, path, {"format": FORMAT}),
            r"holds 'a', expected \['order', 'tokens'\]",
        ),
        (lambda path: save(path, np.int32([1, -1]), np.int32([1, 1])), "expected one place"),
        (lambda path: save(path, np.int32([1, -1]), np.int32([1])), "expected one place"),
        (lambda path: save(path, np.int32([1, 2]), np.int32([1, 0])), "expected one place"),
        (lambda path: save(path, np.int32([]), np.int32([])), "expected one place"),
        (lambda path: save(path, np.int64([1, -1]), np.int32([1, 0])), "expected one place"),
        (lambda path: save(path, np.int32([[1, -1]]), np.int32([1, 0])), "expected one place"),
        (lambda path: save(path, np.int32([1, -1]), np.int32([[1, 0]])), "expected one place"),
    ],
)
def test_a_bad_file(write, message, tmp_path):
    path = str(tmp_path / "store.safetensors")
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        Datastore(path)
    assert f"path={path!r}: " in str(error.value)


@pytest.mark.parametrize(("option", "least"), [("least", 1), ("samples", 0)])
def test_an_option_out_of_range(option, least, tmp_path):
    path = str(tmp_path / "store.safetensors")
    Datastore.build([[1, 2]], path)
    expected = f"{option}={least - 1}: expected a whole number of at least {least}"
    with pytest.raises(ValueError, match=expected):
        Datastore(path, **{option: least - 1})


@given(STORES, st.integers(-1, 4), st.integers(-1, 4))
def test_as_a_proxy_it_says_how_often_a_token_stands_behind_another(texts, before, after):
    source = opened(texts, [0], samples=0)
    pairs = [pair for text in texts for pair in pairwise(text)]
    behind = [pair for pair in pairs if pair[0] == before]
    share = behind.count((before, after)) / len(behind) if behind else 0
    got = source.pairs(np.array([[before, before]]), np.array([[after, -1]]))
    assert got[0, :, 0] == pytest.approx([share, share])
    assert not got[0, :, 1].any()
    assert np.exp(source.logp([1, before], np.array([after, -1]))) == pytest.approx([share, 0])
    assert source.branches(5) == []
