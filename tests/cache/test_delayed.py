"""dKV-Cache-Decode against its description: complements of what was known one step ago."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.delayed import Delayed, settled
from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas
from dllm.registry import SpecError
from tests.cache.literal import Row, agree, cases, every, nth, spec, whole
from tests.cache.models import PLAIN, Watched, decoder, run
from tests.cache.steps import step_of

modes = st.sampled_from(["decode", "decode", "prefill", "pd"])


def cached(row: Row) -> set[int]:
    """Known one step ago; with a shift (`un_right`) also the token that the row predicts."""
    known = row.before[-2]
    if not row.shift:
        return known
    return {p for p in known if p + 1 in known or p + 1 == row.end}


@settings(max_examples=40)
@given(cases, every(None, 2, 3, 4, 5), modes, st.sampled_from([1, 2, 2, 3]))
def test_it_is_the_described_one(case, refresh, mode, first):
    def method(row: Row) -> set[int]:
        if row.step == 0:
            return row.every
        frozen = set() if mode == "decode" else set(range(len(row.prompt) - row.shift))
        if row.i < first or nth(row.i, refresh) or mode == "prefill":
            return row.every - frozen
        return row.every - cached(row) - frozen

    agree(case, whole(method), spec("delayed", refresh=refresh, mode=mode, first=first))


@settings(max_examples=40)
@given(st.lists(st.sampled_from(PLAIN), min_size=1), st.integers(1, 14), st.sampled_from([0, 1]))
def test_a_rule_that_takes_back_is_followed(prompt, size, shift):
    """A masked position is computed as one in every forward, also where a token has been."""
    watched = Watched(decoder(shift))
    (output,) = run(
        watched, [prompt], max_new_tokens=size, block_length=5, sampler="saber", cache="delayed"
    )
    known = set(range(len(prompt)))
    for query, commit in zip(watched.queries, output.history, strict=True):
        assert set(range(len(prompt) + size)) - known <= query
        known = (known | set(commit.positions)) - set(commit.remasked)


def test_both_a_row_and_what_it_predicts_have_to_settle():
    canvas = Canvas.from_prompts([[3, 3]], 6, mask_id=5)
    changed = np.zeros_like(canvas.known)
    for p, now in ((2, False), (3, True), (5, False), (7, False)):  # masked positions are 4 and 6
        canvas.known[0, p], changed[0, p] = True, now
    for shift, expected in ((0, [0, 1, 2, 5, 7]), (1, [0, 1, 7])):
        step = step_of(canvas, changed=changed, shift=shift)
        assert settled(step)[0].nonzero()[0].tolist() == expected


def test_what_a_stop_rule_cut_off_is_settled():
    canvas = Canvas.from_prompts([[3, 3, 3]], 4, mask_id=5)
    short = canvas.stepped(canvas.ids, canvas.known, length=np.array([3]))
    step = step_of(short, changed=short.known ^ canvas.known, shift=1)
    assert settled(step)[0].tolist() == [True] * 3 + [False] * 4


def test_bad_options_are_named():
    with pytest.raises(SpecError, match="refresh=0: expected a whole number of at least 1"):
        DecodeConfig(cache="delayed:refresh=0").make("cache")
    with pytest.raises(SpecError, match="first=0: expected a whole number of at least 1"):
        DecodeConfig(cache="delayed:first=0").make("cache")
    with pytest.raises(SpecError, match=r"mode.*decode.*prefill.*pd"):
        DecodeConfig(cache="delayed:mode=decoded").make("cache")
    with pytest.raises(ValueError, match="mode='x': expected decode, prefill or pd"):
        Delayed(mode="x")
