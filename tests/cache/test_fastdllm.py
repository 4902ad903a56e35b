"""Fast-dLLM's caches against the paper's text: all at a window's start, then a part."""

from __future__ import annotations

from hypothesis import given, settings

from tests.cache.literal import Row, agree, cases, every, nth, spec, whole


@settings(max_examples=40)
@given(cases, every(None, None, 2, 3))
def test_prefix_is_the_papers(case, refresh):
    def method(row: Row) -> set[int]:
        if row.i == 0 or nth(row.i, refresh):
            return row.every
        return set(range(row.s, row.end))

    agree(case, whole(method), spec("prefix", refresh=refresh))


@settings(max_examples=40)
@given(cases, every(None, None, 2, 3))
def test_dual_is_the_papers(case, refresh):
    def method(row: Row) -> set[int]:
        if row.i == 0 or nth(row.i, refresh):
            return row.every
        return set(range(row.s, row.e))

    agree(case, whole(method), spec("dual", refresh=refresh))
