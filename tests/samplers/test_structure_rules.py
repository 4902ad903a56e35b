"""Rules that look at where candidates stand (samplers.md, section 11a): hierarchical and DUS."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from math import ceil, log2

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.samplers.candidates import Candidates
from dllm.samplers.dus import Dilated
from dllm.samplers.hierarchical import Hierarchical
from tests.samplers.views import Row, committed, hand_made, ranked, rows_of, views


def hierarchical_by_hand(row: list[Row], low: float, high: float) -> list[int]:
    runs: list[list[Row]] = []
    for c in row:
        if not runs or c.pos != runs[-1][-1].pos + 1:
            runs.append([])
        runs[-1].append(c)
    chosen = {c.pos for c in row if c.conf > np.float32(high)}
    chosen |= {b.pos for run in runs if (b := ranked(run)[0]).conf > np.float32(low)}
    return sorted(chosen | {ranked(row)[0].pos})


@settings(max_examples=250)
@given(
    views(most=14),
    st.sampled_from([(0.4, 0.9), (0.0, 1.0), (0.5, 0.75), (0.8, 0.8), (1.0, 1.0)]),
)
def test_hierarchical_is_the_literal_rule(view, bounds):
    rows = rows_of(view)
    assert committed(Hierarchical(*bounds), view) == [
        hierarchical_by_hand(r, *bounds) for r in rows
    ]


def test_hierarchical_defaults_are_the_papers():
    assert Hierarchical() == Hierarchical(low=0.4, high=0.9)


def test_every_run_commits_its_best_and_ties_go_left():
    view = hand_made([0.5, 0.6, 0.5, 0.7, 0.7, 0.45], [0, 1, 2, 4, 5, 8])
    assert committed(Hierarchical(), view) == [[1, 4, 8]]


def test_both_tests_are_strict():
    assert committed(Hierarchical(), hand_made([0.9, 0.95, 0.9])) == [[1]]
    assert committed(Hierarchical(), hand_made([0.5, 0.4, 0.4], [0, 2, 4])) == [[0]]
    above = float(np.nextafter(np.float32(0.4), np.float32(1)))
    assert committed(Hierarchical(), hand_made([0.5, above, 0.4], [0, 2, 4])) == [[0, 2]]


def test_neighbours_go_together_only_above_the_high_bound():
    assert committed(Hierarchical(), hand_made([0.85, 0.89, 0.88, 0.87])) == [[1]]
    assert committed(Hierarchical(), hand_made([0.95, 0.99, 0.88, 0.87])) == [[0, 1]]


def test_where_all_are_unsure_only_the_best_of_the_window_goes():
    assert committed(Hierarchical(), hand_made([0.3, 0.35, 0.2], [0, 2, 4])) == [[2]]


def test_padding_neither_joins_nor_splits_runs():
    view = hand_made([0.5, 0.9, 0.6, 0.7, 0.5], [3, 7, 4, 9, 10])
    view = replace(view, valid=torch.tensor([[True, False, True, False, True]]))
    assert committed(Hierarchical(), view) == [[4, 10]]
    view = hand_made([0.5, 0.9, 0.6], [3, 4, 5])
    view = replace(view, valid=torch.tensor([[True, False, True]]))
    assert committed(Hierarchical(), view) == [[3, 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high": 1.2}, "high=1.2: expected"),
        ({"high": float("nan")}, "high=nan: expected"),
        ({"low": 0.95}, "low=0.95: expected a probability up to high=0.9"),
        ({"low": -0.5}, "low=-0.5: expected"),
        ({"low": float("nan")}, "low=nan: expected"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Hierarchical(**options)


def window(size: int, masked: list[int], step: int, start: int = 3) -> Candidates:
    """The view of a window [start, start + size) with these offsets left, at its forward `step`."""
    at = torch.tensor([start])
    return hand_made(
        [0.5] * len(masked),
        [start + h for h in masked],
        start=at,
        end=at + size,
        length=at + size,
        prompt=at,
        window_step=torch.tensor([step]),
    )


def levels(size: int) -> list[list[int]]:
    """The offsets that each forward of a window of nothing but masked positions commits."""
    masked, out = list(range(size)), []
    while masked:
        (chosen,) = committed(Dilated(), window(size, masked, len(out)))
        out.append([p - 3 for p in chosen])
        masked = [h for h in masked if h not in out[-1]]
    return out


def test_dus_levels_of_eight_and_sixteen():
    assert levels(8) == [[0, 4], [2, 6], [1, 3, 5, 7]]
    assert levels(16) == [[0, 8], [4, 12], [2, 6, 10, 14], [*range(1, 16, 2)]]


@pytest.mark.parametrize("n", range(1, 11))
def test_dus_takes_log2_forwards_for_a_power_of_two(n):
    assert len(levels(2**n)) == n


@pytest.mark.parametrize("size", [1, *range(3, 71)])
def test_dus_fills_any_window_without_two_new_neighbours(size):
    done = levels(size)
    assert sorted(p for level in done for p in level) == list(range(size))
    assert len(done) == max(1, ceil(log2(size)))
    assert all(b - a > 1 for level in done for a, b in pairwise(level))


def test_dus_does_not_look_at_confidences():
    view = window(8, list(range(8)), 0)
    unsure = replace(view, conf=torch.rand(1, 8), log1m=-torch.rand(1, 8))
    assert committed(Dilated(), unsure) == committed(Dilated(), view)


def test_dus_goes_on_where_a_level_is_filled_already():
    """A level without a masked position commits the best candidate, so that no forward is lost."""
    view = window(8, [1, 3, 5], 0)
    view = replace(view, conf=torch.tensor([[0.2, 0.9, 0.3]]))
    assert committed(Dilated(), view) == [[6]]


@pytest.mark.parametrize("step", [4, 61, 62, 63, 10**6])
def test_dus_commits_what_is_left_after_its_last_level(step):
    assert committed(Dilated(), window(8, [1, 2, 7], step)) == [[4, 5, 10]]


@settings(max_examples=150)
@given(views(most=14))
def test_dus_is_the_literal_rule(view):
    expected = []
    for b, row in enumerate(rows_of(view)):
        start, end, step = (int(t[b]) for t in (view.start, view.end, view.window_step))
        stride = ceil((end - start) / 2 ** (step + 1))
        level = [c.pos for c in row if (c.pos - start) % stride == 0]
        expected.append(level or [ranked(row)[0].pos])
    assert committed(Dilated(), view) == expected
