"""dInfer's vicinity refresh against its description, and what its margins are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.fastdllm import Dual
from dllm.cache.vicinity import Vicinity
from dllm.config import DecodeConfig
from dllm.registry import SpecError
from tests.cache.literal import Row, agree, cases, every, nth, spec, whole


@settings(max_examples=40)
@given(cases, st.integers(0, 3), st.integers(0, 3), st.integers(0, 5), every(None, None, 2, 3))
def test_it_is_the_described_one(case, before, after, warmup, refresh):
    def method(row: Row) -> set[int]:
        if row.step < warmup or row.i == 0 or nth(row.i, refresh):
            return row.every
        return set(range(row.s - before, row.e + after)) & row.every

    options = {"before": before, "after": after, "warmup": warmup, "refresh": refresh}
    agree(case, whole(method), spec("vicinity", **options))


@settings(max_examples=20)
@given(cases)
def test_without_margin_and_warmup_it_is_dual(case):
    def method(row: Row) -> set[int]:
        return set(range(row.s, row.e)) if row.i else row.every

    for cache in (Vicinity(before=0, after=0, warmup=0), Dual()):
        agree(case, whole(method), cache)


def test_defaults_are_the_published_example():
    assert Vicinity() == Vicinity(before=16, after=16, warmup=4, refresh=None)


@pytest.mark.parametrize("option", ["before=-1", "after=-2", "warmup=-1", "refresh=0"])
def test_bad_options_are_named(option):
    with pytest.raises(SpecError, match=rf"{option}: expected a whole number of at least"):
        DecodeConfig(cache=f"vicinity:{option}").make("cache")
