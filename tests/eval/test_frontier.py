"""Numbers of a whole curve: published values, and properties against second definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.frontier import (
    aup,
    best_at,
    centre_of_mass,
    log_area,
    parallelism_at,
    pareto,
    points_more,
    times_faster,
)

# LLaDA-1.5 with the threshold rule, rounded (ParallelBench)
PUBLISHED = [(1.33, 86.4), (3.42, 83.8), (4.53, 77.5), (5.62, 68.3), (6.55, 57.9), (8.27, 47.2)]

# few different values, so that ties happen
rates = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.5, 8.0, 20.0])
scores = st.sampled_from([0.0, 10.0, 50.0, 80.0, 81.5, 99.0, 100.0])
curves = st.lists(st.tuples(rates, scores), min_size=1, max_size=7)
reaches = st.sampled_from([1.5, 2.0, 5.0, 8.0, 32.0])


def dominates(q, p):
    return q != p and q[0] >= p[0] and q[1] >= p[1]


@given(curves)
def test_pareto_is_its_definition(pairs):
    front = pareto(pairs)
    assert front == sorted(p for p in set(pairs) if not any(dominates(q, p) for q in pairs))


@given(st.data(), curves, reaches, scores)
def test_a_dominated_pair_changes_nothing(data, pairs, reach, percent):
    x, y = data.draw(st.sampled_from(pairs))
    worse = (x * data.draw(st.floats(0.1, 1)), y * data.draw(st.floats(0, 1)))
    more = [*pairs, worse]
    assert log_area(more, reach) == log_area(pairs, reach)
    for interpolate in (False, True):
        assert parallelism_at(more, percent, interpolate=interpolate) == parallelism_at(
            pairs, percent, interpolate=interpolate
        )
    assert best_at(more, x) == best_at(pairs, x)
    assert times_faster(more, pairs) == 1
    assert points_more(more, pairs) == 0


class TestLogArea:
    @given(scores, reaches, st.lists(st.floats(0.5, 40), max_size=4))
    def test_a_flat_curve_has_its_score(self, score, reach, between):
        pairs = [(x, score) for x in (*between, reach)]
        assert log_area(pairs, reach) == pytest.approx(score)

    @given(curves, reaches)
    def test_is_the_mean_of_the_envelope_over_log_parallelism(self, pairs, reach):
        at = 2 ** (np.log2(reach) * (np.arange(20_000) + 0.5) / 20_000)
        envelope = sum(max((y for x, y in pairs if x >= p), default=0.0) for p in at[::10])
        assert log_area(pairs, reach) == pytest.approx(envelope / 2000, abs=0.5)

    def test_by_hand(self):
        # 90 up to 2, then 60 up to 8, of log2 16
        assert log_area([(2, 90), (8, 60), (4, 50)], 16) == pytest.approx((90 + 2 * 60) / 4)

    def test_a_curve_that_stops_early_loses_the_rest(self):
        assert log_area([(4, 100)], 32) == pytest.approx(40)

    def test_what_lies_outside_counts_inside(self):
        assert log_area([(0.5, 100), (64, 30)], 32) == pytest.approx(30)

    def test_answers_of_one_token_have_none(self):
        assert log_area([(1, 100)], 1) is None


class TestParallelismAt:
    @pytest.mark.parametrize(("percent", "x"), [(80, 4.0895), (75, 4.8262), (70, 5.4186)])
    def test_published(self, percent, x):
        found = parallelism_at(PUBLISHED, percent, interpolate=True)
        assert found == pytest.approx(x, abs=5e-5)

    @pytest.mark.parametrize(("percent", "x"), [(90, None), (86.4, 1.33), (80, 3.42), (0, 8.27)])
    def test_measured(self, percent, x):
        assert parallelism_at(PUBLISHED, percent) == x

    def test_never_reached(self):
        assert parallelism_at(PUBLISHED, 86.41, interpolate=True) is None

    @given(curves, scores, scores, st.booleans())
    def test_falls_as_the_score_rises(self, pairs, one, other, interpolate):
        low, high = sorted((one, other))
        at_low, at_high = (parallelism_at(pairs, s, interpolate=interpolate) for s in (low, high))
        if at_high is not None:
            assert at_low is not None
            assert at_low >= at_high

    @given(curves, scores)
    def test_interpolated_lies_between_measured_neighbours(self, pairs, percent):
        measured = parallelism_at(pairs, percent)
        found = parallelism_at(pairs, percent, interpolate=True)
        if measured is None:
            assert found is None
            return
        later = [x for x, _ in pareto(pairs) if x > measured]
        assert measured <= found <= min(later, default=measured)
        if later:
            assert np.interp(found, *zip(*pareto(pairs))) == pytest.approx(percent)


class TestBestAt:
    def test_by_hand(self):
        pairs = [(1, 90), (4, 70), (2, 50)]
        assert [best_at(pairs, x) for x in (1, 1.5, 4, 4.1)] == [90, 70, 70, None]


class TestAup:
    def test_published(self):
        assert aup([(1, 90), (2, 89), (4, 87)], 90) == pytest.approx(342.84, abs=0.005)

    def test_a_single_pair_is_a_rectangle(self):
        assert aup([(3, 80)], 90) == 240

    def test_what_lost_more_than_five_points_is_left_out(self):
        kept = [(1, 90), (2, 85)]
        assert aup([*kept, (3, 84.9)], 90) == aup(kept, 90)
        assert aup([*kept, (3, 85)], 90) > aup(kept, 90)

    def test_the_better_of_two_that_are_least_parallel_is_the_first(self):
        assert aup([(1, 50), (1, 90), (2, 86)], 90) == aup([(1, 90), (2, 86)], 90)

    def test_nothing_right(self):
        assert aup([(1, 0), (2, 0)], 0) == 0

    @given(curves, st.randoms(use_true_random=False))
    def test_the_order_of_the_pairs_does_not_matter(self, pairs, rng):
        shuffled = list(pairs)
        rng.shuffle(shuffled)
        assert aup(shuffled, 100) == aup(pairs, 100)

    @given(curves, st.floats(0.1, 10))
    def test_grows_with_the_unit_of_parallelism(self, pairs, factor):
        scaled = [(factor * x, y) for x, y in pairs]
        assert aup(scaled, 100) == pytest.approx(factor * aup(pairs, 100))

    @given(curves)
    def test_better_competitors_only_lower_it(self, pairs):
        best = max(max(y for _, y in pairs), 1.0)
        assert aup(pairs, best + 5) <= aup(pairs, best)

    def test_a_score_above_y_max_weighs_one(self):
        assert aup([(1, 90), (2, 90)], 80) == pytest.approx(180)


class TestCentreOfMass:
    def test_by_hand(self):
        assert centre_of_mass([(1, 100), (2, 50), (4, 0)]) == pytest.approx(200 / 150)

    def test_nothing_right(self):
        assert centre_of_mass([(1, 0)]) is None


class TestGaps:
    @given(curves, st.floats(0.25, 4))
    def test_a_curve_moved_sideways(self, pairs, factor):
        moved = [(factor * x, y) for x, y in pairs]
        assert times_faster(moved, pairs) == pytest.approx(factor)

    @given(curves, st.floats(0, 30))
    def test_a_curve_moved_up(self, pairs, points):
        moved = [(x, y + points) for x, y in pairs]
        assert points_more(moved, pairs) == pytest.approx(points)

    @given(curves, curves)
    def test_the_other_way_round(self, one, other):
        assert times_faster(one, other) == pytest.approx(1 / times_faster(other, one))
        assert points_more(one, other) == pytest.approx(-points_more(other, one))

    @given(curves, curves)
    def test_against_a_fine_grid(self, one, other):
        fronts = [pareto(one), pareto(other)]
        high = min(front[-1][0] for front in fronts)
        low = min(max(front[0][0] for front in fronts), high)
        grid = np.linspace(math.log2(low), math.log2(high), 4001)
        new, old = (np.interp(grid, np.log2([x for x, _ in f]), [y for _, y in f]) for f in fronts)
        assert points_more(one, other) == pytest.approx(float((new - old).mean()), abs=0.1)

    def test_by_hand(self):
        old = [(1, 100), (4, 60)]
        new = [(2, 100), (4, 80)]
        # both span 2..4; there the old one falls from 80 to 60, the new one from 100 to 80
        assert points_more(new, old) == pytest.approx(20)
        # both span 80..100; there log2 of the old one runs from 1 to 0, of the new one from 2 to 1
        assert times_faster(new, old) == pytest.approx(2)

    def test_fronts_that_share_no_score_meet_at_the_lower_best(self):
        fast, good = [(8, 70), (16, 60)], [(1, 100), (2, 90)]
        assert times_faster(good, fast) == pytest.approx(2 / 8)
        assert points_more(good, fast) == pytest.approx(90 - 70)


def test_all_numbers_of_all_small_curves_are_finite():
    grid = list(itertools.product((1.0, 2.0, 8.0), (0.0, 50.0, 100.0)))
    for pairs in itertools.combinations(grid, 2):
        for other in itertools.combinations(grid, 2):
            assert math.isfinite(times_faster(pairs, other))
            assert math.isfinite(points_more(pairs, other))
