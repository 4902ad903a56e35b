"""LocalLeap against samplers.md, section 4: anchors, their reach, and its edges."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.samplers.fastdllm import ThresholdRule
from dllm.samplers.localleap import LocalLeap
from tests.samplers.views import Row, committed, hand_made, ranked, rows_of, views


def by_hand(row: list[Row], kappa: float, tau: float, width: int) -> list[int]:
    anchors = [c.pos for c in row if c.conf >= np.float32(kappa)]
    near = {p for a in anchors for p in range(a - width, a + width + 1)}
    kept = [c.pos for c in row if c.conf >= np.float32(tau if c.pos in near else kappa)]
    return kept or [ranked(row)[0].pos]


@settings(max_examples=250)
@given(
    views(most=14),
    st.sampled_from([(0.9, 0.75), (0.95, 0.5), (0.8, 0.8), (1.0, 0.0), (0.99, 0.4)]),
    st.integers(0, 6),
)
def test_it_is_the_literal_rule(view, bounds, radius):
    rule = LocalLeap(*bounds, radius)
    assert committed(rule, view) == [by_hand(r, *bounds, radius) for r in rows_of(view)]


def test_the_defaults_are_the_papers_for_llada():
    assert LocalLeap() == LocalLeap(threshold=0.9, relaxed=0.75, radius=4)


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_the_reach_is_counted_in_positions_both_ways_and_holds_its_ends(radius):
    at = 20  # the anchor; everything else could be relaxed
    where = [at - radius - 1, at - radius, at, at + radius, at + radius + 1]
    where = sorted(set(where))
    conf = [0.95 if p == at else 0.8 for p in where]
    expected = [p for p in where if abs(p - at) <= radius]
    assert committed(LocalLeap(radius=radius), hand_made(conf, where)) == [expected]


def test_decoded_positions_in_between_count_for_the_distance():
    assert committed(LocalLeap(), hand_made([0.95, 0.8], [0, 5])) == [[0]]
    assert committed(LocalLeap(), hand_made([0.95, 0.8], [0, 4])) == [[0, 4]]


def test_what_the_relaxed_test_admits_is_no_anchor():
    assert committed(LocalLeap(radius=1), hand_made([0.95, 0.8, 0.8, 0.8])) == [[0, 1]]


def test_without_an_anchor_it_commits_the_best_alone():
    assert committed(LocalLeap(), hand_made([0.8, 0.85, 0.89, 0.85])) == [[2]]


def test_both_tests_keep_equality():
    below = [float(np.nextafter(np.float32(c), np.float32(0))) for c in (0.9, 0.75)]
    assert committed(LocalLeap(), hand_made([0.9, 0.75])) == [[0, 1]]
    assert committed(LocalLeap(), hand_made([0.9, below[1]])) == [[0]]
    assert committed(LocalLeap(), hand_made([below[0], 0.75])) == [[0]]
    assert committed(LocalLeap(), hand_made([0.75, below[0]])) == [[1]]


def test_padding_is_no_anchor():
    view = hand_made([0.8, 0.99, 0.76, 0.85])
    view = replace(view, valid=torch.tensor([[True, False, True, True]]))
    assert committed(LocalLeap(), view) == [[3]]


@given(views(), st.sampled_from([0.9, 0.8, 0.5]))
def test_with_nothing_relaxed_it_is_the_threshold_rule(view, kappa):
    assert committed(LocalLeap(kappa, kappa), view) == committed(ThresholdRule(kappa), view)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5: expected"),
        ({"threshold": float("nan")}, "threshold=nan: expected"),
        ({"relaxed": 0.95}, "relaxed=0.95: expected a probability up to threshold=0.9"),
        ({"relaxed": -0.1}, "relaxed=-0.1: expected"),
        ({"relaxed": float("nan")}, "relaxed=nan: expected"),
        ({"radius": -1}, "radius=-1: expected"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LocalLeap(**options)
