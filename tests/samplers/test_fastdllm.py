"""Threshold and factor rules against samplers.md, section 3, and what their boundaries mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.samplers.fastdllm import Factor, ThresholdRule
from tests.samplers.views import Row, committed, hand_made, random_view, ranked, rows_of, views

# Random confidences never come this close to a bound; exact ones are meant to be equal to it.
NEAR = 1e-6


def threshold_by_hand(row: list[Row], tau: float) -> list[int]:
    kept = [c.pos for c in row if c.conf >= np.float32(tau)]
    return kept or [ranked(row)[0].pos]


def factor_by_hand(row: list[Row], f: float) -> list[int]:
    order = ranked(row)
    passing = [n for n, c in enumerate(order, 1) if (n + 1) * c.rest < f - NEAR]
    return sorted(c.pos for c in order[: max([1, *passing])])


def factor_as_released(row: list[Row], f: float) -> list[int]:
    """The scan that cannot tell "all passed" from "the last one failed"."""
    order = ranked(row)
    at = 0
    for at, c in enumerate(order):
        if at > 0 and (at + 2) * c.rest >= f - NEAR:
            break
    if at in (0, len(order) - 1):
        at += 1
    return sorted(c.pos for c in order[:at])


@settings(max_examples=150)
@given(views(), st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.99, 1.0]))
def test_threshold_is_the_literal_rule(view, tau):
    assert committed(ThresholdRule(tau), view) == [threshold_by_hand(r, tau) for r in rows_of(view)]


@settings(max_examples=200)
@given(views(most=12), st.sampled_from([0.1, 0.5, 0.75, 1.0, 1.5, 3.0, 20.0]))
def test_factor_is_the_literal_rule(view, f):
    assert committed(Factor(f), view) == [factor_by_hand(r, f) for r in rows_of(view)]


@settings(max_examples=200)
@given(views(most=12), st.sampled_from([0.1, 0.5, 0.75, 1.0, 1.5, 3.0, 20.0]))
def test_factor_with_compat_is_the_released_scan(view, f):
    expected = [factor_as_released(r, f) for r in rows_of(view)]
    assert committed(Factor(f, compat=True), view) == expected


@pytest.mark.parametrize("tau", [0.9, 0.7, 0.3])
def test_threshold_keeps_equality(tau):
    below = float(np.nextafter(np.float32(tau), np.float32(0)))
    assert committed(ThresholdRule(tau), hand_made([below, tau, below])) == [[1]]
    assert committed(ThresholdRule(tau), hand_made([tau, 0.999, below])) == [[0, 1]]


def test_the_best_is_committed_where_nothing_passes():
    for rule in (ThresholdRule(0.9), Factor(0.5), Factor(0.5, compat=True)):
        assert committed(rule, hand_made([0.2, 0.4, 0.4, 0.3])) == [[1]]


def test_saturated_confidences_are_told_apart_by_what_is_left():
    view = hand_made([1.0, 1.0, 1.0], log1m=torch.tensor([[-20.0, -30.0, -25.0]]))
    assert committed(Factor(1e-12), view) == [[1]]  # 2 exp(-30) passes, 3 exp(-25) does not


@pytest.mark.parametrize(
    ("confidences", "count"),
    [
        ([0.75, 0.75, 0.75], 2),  # 3 * 0.25 < 1, but 4 * 0.25 is not
        ([0.99, 2 / 3, 0.5], 1),  # 3 * 1/3 is not, however fp32 rounds 1/3
        ([0.99, 0.99, 0.8, 0.8], 3),  # 4 * 0.2 < 1, but 5 * 0.2 is not
        ([1.0, 1.0, 1.0, 1.0], 4),
    ],
)
def test_factor_is_strict_and_fp32_noise_is_not_a_pass(confidences, count):
    c = torch.tensor([confidences], dtype=torch.float64)
    for direction in (-torch.inf, torch.inf):  # log1m rounded either way
        log1m = torch.log1p(-c).float()
        log1m = log1m.nextafter(torch.full_like(log1m, direction))
        view = hand_made(confidences, log1m=log1m)
        assert committed(Factor(1.0), view) == [list(range(count))]


def test_factor_commits_a_prefix_of_the_ranking_and_not_of_the_row():
    assert committed(Factor(1.0), hand_made([0.3, 0.9, 0.6, 0.95])) == [[1, 3]]


@pytest.mark.parametrize("confidences", [[0.3, 0.2], [0.9, 0.1], [0.95, 0.95]])
def test_compat_commits_two_candidates_left_always_together(confidences):
    assert committed(Factor(0.5, compat=True), hand_made(confidences)) == [[0, 1]]


def test_compat_commits_the_last_ranked_only_where_it_alone_fails():
    alone_fails, two_fail = hand_made([0.95, 0.2, 0.9]), hand_made([0.95, 0.2, 0.3])
    assert committed(Factor(1.0), alone_fails) == [[0, 2]]
    assert committed(Factor(1.0, compat=True), alone_fails) == [[0, 1, 2]]
    assert committed(Factor(1.0, compat=True), two_fail) == [[0]]


def test_compat_differs_in_about_a_fifth_of_random_vectors():
    rng, differ, total = np.random.default_rng(0), 0, 0
    for length in range(1, 9):
        view = random_view(rng, 250, length, valid=torch.ones(250, length, dtype=torch.bool))
        conf = torch.from_numpy(rng.uniform(0.5, 1.0, (250, length)))
        pos = torch.arange(length).expand(250, length)
        view = replace(view, pos=pos, conf=conf.float(), log1m=torch.log1p(-conf).float())
        plain, compat = (committed(Factor(1.0, c), view) for c in (False, True))
        differ += sum(a != b for a, b in zip(plain, compat))
        total += len(plain)
    assert 0.15 < differ / total < 0.3


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_bad_threshold_is_named(bad):
    with pytest.raises(ValueError, match=f"threshold={bad}: expected"):
        ThresholdRule(bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_bad_factor_is_named(bad):
    with pytest.raises(ValueError, match=f"factor={bad}: expected"):
        Factor(bad)
