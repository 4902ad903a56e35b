"""KLASS: confident and stable, stability counted over consecutive steps of one window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.samplers.candidates import Candidates
from dllm.samplers.klass import Klass
from dllm.samplers.rule import quota
from tests.samplers.views import (
    Row,
    alone,
    committed,
    fresh,
    hand_made,
    random_view,
    ranked,
    rows_of,
)

INF = float("inf")


def literal(rule: Klass, row: list[Row], runs: dict[int, int], fresh: bool, k: int) -> list[int]:
    """samplers.md, 11a: one row, one step; `runs` maps a position to its calm steps so far."""
    before = {} if fresh else dict(runs)
    runs.clear()
    for c in row:
        calm = c.kl < np.float32(rule.kl_threshold)
        runs[c.pos] = before.get(c.pos, 0) + 1 if calm else 0
    high = np.float32(rule.threshold)
    accepted = [c for c in row if c.conf > high and runs[c.pos] >= rule.history]
    return sorted(c.pos for c in accepted or ranked(row)[:k])


@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.6, 0.9]),
    st.sampled_from([0.001, 0.015, 5.0]),
    st.integers(1, 3),
    st.sampled_from([None, 3]),
)
def test_a_batch_decides_as_the_text_says_row_by_row(seed, rows, high, still, history, steps):
    rng = np.random.default_rng(seed)
    rule = Klass(high, still, history, steps)
    runs: list[dict[int, int]] = [{} for _ in range(rows)]
    state = fresh(rule, rows)
    for _ in range(4):
        view = random_view(rng, rows, 6, state=state)
        singles = [alone(view, b) for b in range(rows)]
        k = quota(view, steps).tolist()
        expected = [
            literal(rule, row, runs[b], int(view.window_step[b]) == 0, k[b])
            for b, row in enumerate(rows_of(view))
        ]
        assert committed(rule, view) == expected
        assert [committed(rule, single)[0] for single in singles] == expected


def steps(rule: Klass, *kl: list[float], conf: float = 0.9, first: int = 0) -> list[list[int]]:
    """What is committed of the same masked positions, step by step, none of them ever filled."""
    state = fresh(rule, 1)
    out = []
    for n, values in enumerate(kl, first):
        # the last masked position is the best, so that a fallback is told from an acceptance
        confs = [conf] * (len(values) - 1) + [0.99]
        view = hand_made(confs, kl=torch.tensor([values]), window_step=torch.tensor([n]))
        view = replace(view, state=state)
        out += committed(rule, view)
    return out


def test_two_calm_steps_in_a_row_are_needed():
    calm, wild = [0.0, 0.0, INF], [0.0, 1.0, INF]
    assert steps(Klass(), calm, calm) == [[2], [0, 1]]
    assert steps(Klass(), calm, wild, calm, calm) == [[2], [0], [0], [0, 1]]


def test_the_first_steps_of_a_window_cannot_be_stable():
    still = [0.0, 0.0, INF]
    for history in (1, 2, 3, 4):
        got = steps(Klass(history=history), *[still] * 4)
        assert got == [[2]] * (history - 1) + [[0, 1]] * (5 - history)


def test_a_new_window_forgets():
    rule, still = Klass(), torch.tensor([[0.0, 0.0, INF]])
    view = hand_made([0.9, 0.9, 0.99], kl=still, state=fresh(rule, 1))
    for step, expected in [(0, [2]), (1, [0, 1]), (0, [2])]:
        view = replace(view, window_step=torch.tensor([step]))
        assert committed(rule, view) == [expected]


def test_runs_follow_positions_when_masked_positions_are_filled_and_the_window_grows():
    rule = Klass()
    view = hand_made([0.9, 0.9, 0.99], kl=torch.tensor([[INF, 0.0, INF]]), state=fresh(rule, 1))
    assert committed(rule, view) == [[2]]
    later = hand_made([0.9, 0.7, 0.95], [1, 7, 9], kl=torch.tensor([[0.0, 0.0, INF]]))
    later = replace(later, state=view.state, window_step=torch.tensor([1]))
    assert committed(rule, later) == [[1]]


def test_both_bounds_are_strict():
    still = [0.0, INF]
    assert steps(Klass(threshold=0.5), still, still, conf=0.5)[1] == [1]
    assert steps(Klass(threshold=0.5), still, still, conf=0.5000001)[1] == [0]
    edge = [0.25, INF]
    assert steps(Klass(kl_threshold=0.25), edge, edge)[1] == [1]
    assert steps(Klass(kl_threshold=0.2500001), edge, edge)[1] == [0]


def test_only_the_row_without_a_stable_candidate_falls_back():
    view = random_view(np.random.default_rng(1), 2, 1)
    view = replace(
        view,
        state=fresh(Klass(), 2),
        pos=torch.tensor([[0, 1], [0, 1]]),
        valid=torch.ones(2, 2, dtype=torch.bool),
        conf=torch.tensor([[0.7, 0.9], [0.7, 0.9]]),
        log1m=torch.tensor([[0.3, 0.1], [0.3, 0.1]]).log(),
        kl=torch.tensor([[0.0, INF], [INF, INF]]),
        start=torch.tensor([0, 0]),
        end=torch.tensor([2, 2]),
        window_step=torch.tensor([0, 0]),
    )
    assert committed(Klass(history=1), view) == [[0], [1]]


def test_the_fallback_fills_the_quota():
    def fallback(steps: int | None) -> list[int]:
        rule, kl = Klass(steps=steps), torch.full((1, 4), INF)
        view: Candidates = hand_made([0.3, 0.5, 0.4, 0.2], kl=kl, state=fresh(rule, 1))
        return committed(rule, view)[0]

    assert fallback(None) == [1]
    assert fallback(2) == [1, 2]
    assert fallback(1) == [0, 1, 2, 3]


def test_the_defaults_are_those_of_the_paper():
    rule = Klass()
    assert (rule.threshold, rule.kl_threshold, rule.history) == (0.6, 0.015, 2)
    assert rule.needs == {"kl"}


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"kl_threshold": 0.0},
        {"kl_threshold": float("nan")},
        {"history": 0},
        {"steps": 0},
    ],
)
def test_bad_options_name_their_value(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Klass(**options)
