"""dParallel's entropy threshold (samplers.md, section 8) and EB-Sampler (section 11a)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.samplers.candidates import Candidates
from dllm.samplers.dparallel import Entropy
from dllm.samplers.eb import EntropyBound
from tests.samplers.views import Row, committed, hand_made, ranked, rows_of, views

ERRORS = ("entropy", "confidence", "margin")
PROXY: dict[str, Callable[[Row], float]] = {
    "entropy": lambda c: -c.entropy,
    "confidence": lambda c: c.conf,
    "margin": lambda c: c.margin,
}


def entropies(*values: float, **overrides: list[float]) -> Candidates:
    """One row whose candidates have these entropies and all the same confidence."""
    extra = {name: torch.tensor([value]) for name, value in overrides.items()}
    return replace(hand_made([0.5] * len(values)), entropy=torch.tensor([values]), **extra)


def entropy_by_hand(row: list[Row], tau: float) -> list[int]:
    surest = ranked(row, PROXY["entropy"], lambda c: -c.log1m)[0]
    return [c.pos for c in row if c.entropy <= np.float32(tau) or c is surest]


def eb_by_hand(row: list[Row], gamma: float, error: str) -> list[int]:
    order = ranked(row, PROXY[error], lambda c: -c.log1m)
    best = 1
    for n in range(1, len(order) + 1):
        h = [Fraction(c.entropy) for c in order[:n]]  # 1e-20 + 1 - 1 is not 0
        if sum(h) - max(h) <= gamma * (1 + 1e-7):
            best = n
    return sorted(c.pos for c in order[:best])


@settings(max_examples=150)
@given(views(), st.sampled_from([0.0, 0.1, 0.45, 0.5, 1.0, 1.5, 3.0]))
def test_the_entropy_rule_is_the_literal_one(view, tau):
    assert committed(Entropy(tau), view) == [entropy_by_hand(r, tau) for r in rows_of(view)]


@settings(max_examples=250)
@given(views(most=12), st.sampled_from([0.0, 0.01, 0.1, 0.5, 2.0, 10.0]), st.sampled_from(ERRORS))
def test_the_entropy_bound_is_the_literal_rule(view, gamma, error):
    expected = [eb_by_hand(r, gamma, error) for r in rows_of(view)]
    assert committed(EntropyBound(gamma, error), view) == expected


def test_the_defaults_are_the_papers():
    assert Entropy() == Entropy(threshold=0.5)
    assert EntropyBound() == EntropyBound(bound=0.1, error="entropy")


def test_the_entropy_rule_keeps_equality():
    for tau in (0.5, 0.45, 0.1):  # the last two are no fp32 numbers
        above = float(np.nextafter(np.float32(tau), np.float32(9)))
        assert committed(Entropy(tau), entropies(tau, above, tau)) == [[0, 2]]


def test_the_entropy_rule_falls_back_on_the_least_entropy_and_not_on_confidence():
    view = entropies(1.2, 0.9, 0.7, 0.8, conf=[0.9, 0.5, 0.5, 0.5], log1m=[-2.3, -0.7, -0.7, -0.7])
    assert committed(Entropy(), view) == [[2]]


def test_the_entropy_bound_sorts_and_does_not_scan_from_left_to_right():
    assert committed(EntropyBound(0.1), entropies(2.0, 0.04, 0.03)) == [[0, 1, 2]]
    assert committed(EntropyBound(0.1), entropies(2.0, 0.3, 0.04, 0.03)) == [[1, 2, 3]]


def test_the_largest_entropy_is_free_wherever_it_stands_in_the_order():
    # by confidence: sums less the largest so far are 0, .04, .04 + .05, .04 + .05 + .2
    view = entropies(0.04, 0.3, 0.05, 0.2, conf=[0.9, 0.8, 0.7, 0.6])
    assert committed(EntropyBound(0.1, "confidence"), view) == [[0, 1, 2]]


def test_the_bound_keeps_equality():
    assert committed(EntropyBound(0.1), entropies(0.1, 0.1, 0.1)) == [[0, 1]]
    assert committed(EntropyBound(0.1), entropies(0.05, 0.05, 0.05, 0.05)) == [[0, 1, 2]]
    assert committed(EntropyBound(0.0), entropies(0.0, 0.0, 0.3, 0.4)) == [[0, 1, 2]]


def test_entropies_rounded_below_zero_give_no_credit():
    assert committed(EntropyBound(0.1), entropies(-0.2, 0.15, 0.16)) == [[0, 1]]


@pytest.mark.parametrize(("error", "first"), [("entropy", 2), ("confidence", 0), ("margin", 1)])
def test_each_error_proxy_picks_its_own_first_token(error, first):
    view = entropies(
        0.8, 0.7, 0.6, conf=[0.7, 0.5, 0.6], log1m=[-1.2, -0.69, -0.9], margin=[0.1, 0.4, 0.2]
    )
    rule = EntropyBound(0.1, error)
    assert committed(rule, view) == [[first]]
    # and that is the floor's measure too: a rule's score ranks it first
    assert view.rank(*(rule.select(view).score or ()))[0, first] == 0


@pytest.mark.parametrize("error", ERRORS)
def test_it_asks_only_for_what_it_reads(error):
    needs = {"entropy", "margin"} if error == "margin" else {"entropy"}
    assert EntropyBound(error=error).needs == needs
    assert Entropy().needs == {"entropy"}


@pytest.mark.parametrize("bad", [-0.1, float("nan")])
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=f"threshold={bad}: expected"):
        Entropy(bad)
    with pytest.raises(ValueError, match=f"bound={bad}: expected"):
        EntropyBound(bad)
