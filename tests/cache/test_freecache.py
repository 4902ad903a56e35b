"""FreeCache: what is left of the window is frozen, and frozen as tokens, not as masks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from dllm.config import DecodeConfig
from dllm.registry import SpecError
from tests.cache.literal import Row, agree, cases, every, nth, spec, whole


@settings(max_examples=40)
@given(cases, every(None, None, 2, 3))
def test_it_is_the_described_one(case, refresh):
    def method(row: Row) -> set[int]:
        if row.step == 0 or nth(row.step, refresh):
            return row.every
        return set(range(row.s, row.end)) | row.last

    row = agree(case, whole(method), spec("freeze", refresh=refresh))
    for step, known in enumerate(row.before):  # what is read as known was computed as known
        for p in known - set(range(len(case.prompt))):
            since = min(n for n, m in enumerate(row.before) if p in m)
            assert any(p in query for query in row.queries[since : step + 1])


@settings(max_examples=30)
@given(cases)
def test_the_prompt_is_computed_once(case):
    def method(row: Row) -> set[int]:
        return set(range(row.s, row.end)) | row.last if row.step else row.every

    row = agree(case, whole(method), "freeze")
    inside = set(range(len(case.prompt) - case.shift))  # a shift predicts from its last row
    assert all(not query & inside for query in row.queries[1:])


def test_bad_options_are_named():
    with pytest.raises(SpecError, match="refresh=0: expected a whole number of at least 1"):
        DecodeConfig(cache="freeze:refresh=0").make("cache")
