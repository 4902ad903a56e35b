"""Intervals of counts: limits of what is known, and how often they hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.intervals import weighted, wilson

counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("ok", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (485, 500, 0.9511, 0.9817)],
)
def test_published_values_of_the_wilson_interval(ok, count, low, high):
    assert wilson(ok, count) == pytest.approx((low, high), abs=2e-4)


@given(counts)
def test_one_part_is_wilson(part):
    assert weighted([(1.0, *part)]) == pytest.approx(wilson(*part))


@given(st.integers(200, 800), st.integers(2, 6))
def test_alike_parts_are_one_sample(right, parts):
    found = weighted([(1 / parts, right, 1000)] * parts)
    assert found == pytest.approx(wilson(parts * right, parts * 1000), abs=2e-4)


@given(counts, counts)
def test_a_difference_turns_round(one, other):
    low, high = weighted([(1.0, *one), (-1.0, *other)])
    assert weighted([(1.0, *other), (-1.0, *one)]) == pytest.approx((-high, -low))
    assert -1 <= low <= one[0] / one[1] - other[0] / other[1] <= high <= 1


@given(st.lists(counts, min_size=1, max_size=8))
def test_a_mean_stays_a_share_and_the_interval_holds_it(parts):
    low, high = weighted([(1 / len(parts), *part) for part in parts])
    mean = sum(right / count for right, count in parts) / len(parts)
    assert -1e-12 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1 + 1e-12


SHARES = {
    "alike": ([0.5] * 6, [100] * 6),
    "high": ([0.98] * 10, [100] * 10),
    "higher": ([0.99] * 20, [100] * 20),
    "most of them sure": ([1.0] * 8 + [0.95, 0.5], [100] * 10),
    "uneven": ([0.99, 0.99, 0.9], [500, 30, 10]),
    "mixed": ([0.02, 0.3, 0.5, 0.9, 0.99], [100, 50, 200, 100, 30]),
    "few answers": ([0.2, 0.6, 0.85], [20, 20, 20]),
    "one sure task": ([1.0, 0.7], [100, 100]),
}


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("kind", ["mean", "difference"])
def test_holds_the_truth_as_often_as_it_says(name, kind):
    shares, sizes = SHARES[name]
    rng = np.random.default_rng(0)
    weights = [1 / len(shares)] * len(shares)
    if kind == "difference":
        shares, sizes = [*shares, *shares[::-1]], [*sizes, *sizes[::-1]]
        weights = [*weights, *(-w for w in weights)]
    truth = sum(w * p for w, p in zip(weights, shares, strict=True))
    drawn = rng.binomial(sizes, shares, size=(2000, len(shares)))
    found = [weighted(list(zip(weights, row, sizes, strict=True))) for row in drawn]
    held = np.mean([low <= truth <= high for low, high in found])
    # 0.95 less four standard errors of 2000 draws; near shares of 1 it is wider than it must be
    assert held >= 0.93
    if not name.startswith("high"):
        assert held <= 0.99
