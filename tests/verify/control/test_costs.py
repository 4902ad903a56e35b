"""What passes cost and what weights are worth, learned from few and noisy measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.control.controllers import Spent
from dllm.verify.control.costs import (
    ENOUGH,
    GROWTH,
    RECENT,
    SLOPE,
    Calibration,
    CostModel,
    PassTimes,
    best_width,
    steps,
)


def curve(points: dict[int, float], repeat: int = ENOUGH) -> PassTimes:
    made = PassTimes()
    for size, seconds in points.items():
        for _ in range(repeat):
            made.add(size, seconds, 0)
    return made


def test_measured_sizes_cost_what_was_measured_and_between_them_it_is_linear():
    costs = curve({1: 1.0, 4: 2.0, 16: 8.0})
    assert [costs(size) for size in (1, 4, 16)] == [1.0, 2.0, 8.0]
    assert costs(8) == pytest.approx(4.0)
    assert costs.widest() == 16
    assert [costs.known(size) for size in (1, 2, 4, 7, 8)] == [True, False, True, True, False]


def test_beyond_the_measured_sizes_the_prior_gives_the_shape():
    costs = curve({4: 2.0, 8: 3.0})
    assert costs(64) == pytest.approx(3.0 * (1 + 64 * SLOPE) / (1 + 8 * SLOPE))
    assert costs(1) == pytest.approx(2.0 * (1 + SLOPE) / (1 + 4 * SLOPE))


def test_an_outlier_neither_enters_the_median_nor_locks_a_size_out():
    costs = curve({1: 1.0})
    costs.add(8, 50.0, 0)  # the first pass of a new shape
    assert costs(8) < 1.2
    for _ in range(2):
        costs.add(8, 2.0, 0)
    assert costs(8) == 2.0


def test_a_cheap_measure_is_believed_at_once():
    costs = curve({1: 1.0, 16: 3.0})
    costs.add(4, 1.1, 0)
    assert costs(4) == 1.1


def test_before_enough_measures_what_there_is_counts():
    assert PassTimes()(5) == 0.0
    costs = PassTimes()
    costs.add(2, 3.0, 0)
    assert costs(2) == 3.0


def test_a_wider_pass_never_looks_cheaper_and_the_newest_measures_are_right():
    costs = PassTimes()
    for now, (size, seconds) in enumerate([(1, 1.0), (2, 5.0), (8, 2.0), (16, 1.5)]):
        for _ in range(ENOUGH):
            costs.add(size, seconds, now)
    assert [costs(size) for size in (1, 2, 8, 16)] == [1.0, 1.5, 1.5, 1.5]
    for _ in range(RECENT):
        costs.add(2, 3.0, 9)
    assert [costs(size) for size in (1, 2, 8, 16)] == [1.0, 3.0, 3.0, 3.0]


def test_measures_are_forgotten():
    costs = curve({1: 1.0})
    for now in (1, 2, 3):
        costs.add(8, 9.0, now)
    costs.forget(0)
    assert costs(8) == 9.0
    costs.forget(3)
    assert not costs.known(8)
    assert not costs.known(1)
    assert costs(8) == 9.0  # nothing else is left
    costs.forget(4)
    assert costs(8) == 0.0
    assert costs.widest() == 0


def test_the_model_forgets_by_rounds_whatever_was_measured_in_them():
    model = CostModel(10)
    for _ in range(ENOUGH):
        model.add(Spent(1, 4, 8, 3.0, 2.0, 0.5), searched=True, drafting=True)
    for _ in range(10):
        assert model.round(1, 1, 8, searched=False) > 3
        model.add(Spent(1, 1, 0, 0.0, 1.0, 0.0), searched=False, drafting=True)
    assert model.round(1, 1, 8, searched=False) == 1.0


def test_only_recent_measures_make_the_median():
    costs = curve({4: 1.0}, repeat=100)
    for _ in range(8):
        costs.add(4, 2.0, 0)
    assert costs(4) == 2.0


@given(
    st.lists(st.tuples(st.integers(1, 200), st.floats(0, 100)), max_size=60),
    st.integers(0, 1),
)
def test_costs_are_finite_never_negative_and_bounded_by_what_was_measured(measures, before):
    costs = PassTimes()
    for size, seconds in measures:
        costs.add(size, seconds, 0)
    costs.forget(before)
    found = [costs(size) for size in (1, 2, 3, 5, 8, 13, 100, 199, 256)]
    top = max((seconds for _, seconds in measures), default=0)
    assert all(0 <= value <= top * (1 + 256 * SLOPE) for value in found)


def test_the_model_keeps_kinds_and_row_counts_apart():
    model = CostModel(1000)
    for _ in range(ENOUGH):
        model.add(Spent(1, 1, 0, 0.0, 1.0, 0.25), searched=False, drafting=True)
        model.add(Spent(1, 4, 8, 3.0, 2.0, 0.5), searched=True, drafting=True)
        model.add(Spent(8, 1, 8, 9.0, 5.0, 0.75), searched=True, drafting=True)
    assert model.plain(1) == 1.25
    assert model.round(1, 4, 8, searched=True) == 5.5
    assert model.round(1, 4, 0, searched=True) == 2.5
    assert model.round(8, 1, 8, searched=True) == 14.75
    assert [model.known(rows) for rows in (1, 2, 8)] == [True, False, False]  # 8: never plain
    assert model.round(5, 1, 8, searched=True) == 14.75  # five to eight rows are one class
    assert [model.widest(rows) for rows in (1, 2)] == [4 * GROWTH, GROWTH]


def test_a_drafter_that_has_much_to_read_is_not_measured():
    model = CostModel(1000)
    model.add(Spent(1, 4, 8, 30.0, 2.0, 0.5), searched=True, drafting=False)
    assert model.round(1, 4, 8, searched=True) == 2.5


def test_steps():
    assert [steps(n) for n in (1, 2, 3, 8, 9)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 9],
    ]


Cost = Callable[[int], float]
COSTS: dict[str, Cost] = {
    "flat": lambda n: 1.0,
    "linear": lambda n: 0.6 + 0.4 * n,
    "convex": lambda n: 1 + 0.002 * n**2,
    "tiles": lambda n: float(-(-n // 8)),
    "gemm": lambda n: 1.0 if n == 1 else 1.8 if n <= 8 else 1.8 + 0.08 * (n - 8),
}

sorted_weights = st.lists(st.floats(0, 1), max_size=40).map(
    lambda row: np.array(sorted(row, reverse=True))
)


@pytest.mark.parametrize("name", COSTS)
@given(weights=sorted_weights, draft=st.sampled_from([0.0, 0.5, 3.0]))
def test_the_width_is_the_best_of_the_steps(name, weights, draft):
    widths = steps(len(weights) + 1)
    seconds = [draft + COSTS[name](width) for width in widths]

    def rate(width: int, time: float) -> float:
        return (1 + sum(weights.tolist()[: width - 1])) / time

    best = max(rate(width, time) for width, time in zip(widths, seconds))
    found = best_width([weights], widths, seconds)
    assert found in widths
    assert rate(found, seconds[widths.index(found)]) == pytest.approx(best, rel=1e-12)


@given(st.lists(sorted_weights, min_size=1, max_size=3), st.sampled_from(sorted(COSTS)))
def test_no_other_allocation_over_rows_has_more_tokens_per_second(rows, name):
    """All allocations of at most 5 nodes to a row; a pass costs what its widest row does."""
    rows = [row[:5] for row in rows]
    cost, longest = COSTS[name], max(len(row) for row in rows)
    widths = list(range(1, longest + 2))
    width = best_width(rows, widths, [cost(width) for width in widths])

    def rate(sizes: Sequence[int]) -> float:
        tokens = sum(1 + row[:size].sum() for row, size in zip(rows, sizes))
        return float(tokens) / cost(1 + max(sizes))

    chosen = rate([min(width - 1, len(row)) for row in rows])
    assert chosen >= max(map(rate, product(*(range(len(r) + 1) for r in rows)))) - 1e-12


@given(sorted_weights, st.floats(0, 3), st.floats(0, 0.5), st.floats(0, 0.05))
def test_with_a_convex_cost_the_first_peak_is_the_best(weights, fixed, slope, bend):
    """The published stop: rates rise to the best width and never rise after it."""
    widths = list(range(1, len(weights) + 2))
    seconds = [1 + fixed + slope * width + bend * width**2 for width in widths]
    tokens = [1 + weights[: width - 1].sum() for width in widths]
    rates = [count / time for count, time in zip(tokens, seconds)]
    first = next((i for i in range(len(rates) - 1) if rates[i + 1] < rates[i]), len(rates) - 1)
    best = best_width([weights], widths, seconds)
    assert rates[widths.index(best)] == pytest.approx(rates[first])


def test_among_equal_widths_the_least():
    assert best_width([np.zeros(7)], [1, 2, 4, 8], [1.0] * 4) == 1
    assert best_width([np.zeros(7)], [1, 2, 4, 8], [0.0] * 4) == 1


@pytest.mark.parametrize("true", [0.05, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("claim", [0.05, 0.3, 0.7, 0.95])
def test_calibration_finds_how_often_a_weight_is_right(true, claim):
    rng, right = np.random.default_rng(0), Calibration(keep=0.99)
    for _ in range(400):
        right.add(np.full(8, claim), rng.random(8) < true)
    assert right(np.array([claim]))[0] == pytest.approx(true, abs=0.06)


def test_calibration_begins_with_the_weights_and_forgets():
    right = Calibration()
    weights = np.array([0.99, 0.5, 0.5, 0.004])
    assert right(weights) == pytest.approx(weights)
    for kept in (False, True):
        for _ in range(200):
            right.add(np.full(4, 0.5), np.full(4, kept))
        low = right(np.array([0.5]))[0]
        assert low > 0.9 if kept else low < 0.02


def test_calibration_speaks_of_weights_that_were_not_seen():
    """Chains whose tokens are right nine times in ten; only the first three are ever verified."""
    rng, right = np.random.default_rng(0), Calibration(keep=0.99)
    claimed = 0.3 ** np.arange(1, 9)
    for _ in range(300):
        right.add(claimed[:3], np.logical_and.accumulate(rng.random(3) < 0.9))
    assert right(claimed) == pytest.approx(0.9 ** np.arange(1, 9), abs=0.1)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=80),
    st.lists(st.floats(0, 1), max_size=30),
)
def test_calibrated_weights_are_probabilities_in_the_same_order(rounds, weights):
    right = Calibration()
    for weight, kept in rounds:
        right.add(np.array([weight]), np.array([kept]))
    given_, found = np.array(weights), right(np.array(weights))
    assert ((found >= 0) & (found <= 1)).all()
    order = np.argsort(-given_, kind="stable")
    assert (np.diff(found[order]) <= 0).all()
