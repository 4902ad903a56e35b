"""The cost-aware control in worlds with known costs: it finds what pays and stops what does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest

from dllm.verify.control.controllers import ControlSession, Observed, Spent
from dllm.verify.control.goodput import FIRST, LONGEST, CostController, CostSession
from tests.verify.clockwork import CURVES, World, bf16, chance, fp32, gpu, tiles


def rates(world: World, right: float, draft: float) -> dict[int, float]:
    """Speed of every width of a chain whose tokens are right with probability `right`."""
    plain = world.verify(1, 1) + world.host
    return {
        width: (1 + sum(right**i for i in range(1, width)))
        / (draft + world.verify(1, width) + world.search)
        * plain
        for width in (1, 2, 4, 8, 16, 32)
    }


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("right", [0.5, 0.7, 0.9])
def test_what_pays_is_done_nearly_as_well_as_by_who_knows(name, right):
    world = World(CURVES[name], draft=lambda depth: 0.1, drafter=chance(right))
    world.play(CostController().open(1), 400)
    assert world.slowdown() < 1.25 / max(1, *rates(world, right, 0.1).values())


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("draft", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("branches", [None, 0.0])
def test_bad_drafts_are_given_up_at_once_and_cost_next_to_nothing(name, draft, branches):
    world = World(
        CURVES[name],
        draft=lambda depth: draft,
        drafter=chance(0.0),
        branches=None if branches is None else chance(branches),
        claim=0.95,
    )
    control = CostController().open(1)
    world.play(control, 24)
    assert all((depth, width) == (0, 1) for depth, width, _ in world.log[15:])
    world.play(control, 300)
    assert world.slowdown() <= 1.06
    world.play(control, 700)
    assert world.slowdown() <= 1.03


@pytest.mark.parametrize("seed", range(3))
def test_bad_drafts_that_are_lucky_at_times_cost_little(seed):
    world = World(bf16, drafter=chance(0.1), branches=chance(0.05), seed=seed)
    world.play(CostController().open(1), 600)
    assert world.slowdown() <= 1.05


def test_a_very_slow_drafter_is_given_up_after_two_passes_and_seldom_asked_again():
    world = World(bf16, draft=lambda depth: 10.0, drafter=chance(0.02))
    world.play(CostController().open(1), 1000)
    asked = [now for now, (depth, _, _) in enumerate(world.log) if depth]
    assert asked[1] < 12
    assert len(asked) <= 4
    assert world.slowdown() < 1.05


def test_trials_of_what_does_not_pay_come_ever_more_rarely():
    world = World(bf16, drafter=chance(0.02))
    world.play(CostController(waste=1.0).open(1), 3000)
    asked = [now for now, (depth, _, _) in enumerate(world.log) if depth]
    starts = [now for before, now in zip([-9, *asked], asked) if now > before + 1]
    gaps = np.diff(starts)
    assert len(gaps) >= 5
    assert (gaps[1:4] > 1.5 * gaps[:3]).all()
    assert gaps.max() < 1024 + 20


def test_drafts_that_become_good_are_found_again():
    world = World(bf16, drafter=lambda now: 0.02 if now < 300 else 0.9)
    control = CostController(waste=0.02).open(1)
    world.play(control, 300)
    bad = len(world.log)
    world.play(control, 600)
    good = [now for now, (_, _, accepted) in enumerate(world.log) if accepted > 2]
    assert good[0] - bad < 400
    assert np.mean([depth > 0 for depth, _, _ in world.log[-200:]]) > 0.9


def test_drafts_that_become_bad_are_given_up():
    world = World(bf16, drafter=lambda now: 0.9 if now < 200 else 0.02)
    control = CostController().open(1)
    world.play(control, 200)
    assert np.mean([depth > 0 for depth, _, _ in world.log[50:]]) > 0.9
    seconds, tokens = world.seconds, world.tokens
    world.play(control, 300)
    assert np.mean([depth > 0 for depth, _, _ in world.log[230:]]) < 0.1
    assert world.seconds - seconds < 1.1 * (world.tokens - tokens) * 1.01


def test_a_drafter_that_becomes_slow_is_given_up_and_used_again_when_it_is_fast():
    world = World(bf16, drafter=chance(0.8))
    control = CostController(memory=64, waste=0.2).open(1)
    world.play(control, 100)
    world.draft = lambda depth: 20.0
    world.play(control, 40)
    assert sum(depth > 0 for depth, _, _ in world.log[-30:]) < 5
    world.draft = lambda depth: 0.2
    world.play(control, 600)
    assert np.mean([depth > 0 for depth, _, _ in world.log[-100:]]) > 0.9


def test_branches_are_used_alone_where_the_drafter_is_not_worth_its_pass():
    world = World(bf16, draft=lambda depth: 2.0, drafter=chance(0.7), branches=chance(0.7))
    world.play(CostController().open(1), 600)
    late = world.log[-200:]
    assert np.mean([depth == 0 and width > 1 for depth, width, _ in late]) > 0.9
    assert world.slowdown() < 0.5


def test_the_drafter_is_used_where_branches_are_worse():
    world = World(bf16, draft=lambda depth: 0.1, drafter=chance(0.9), branches=chance(0.3))
    world.play(CostController().open(1), 600)
    assert np.mean([depth > 0 for depth, _, _ in world.log[-200:]]) > 0.9


@pytest.mark.parametrize("claim", [0.3, 0.6, 0.99])
def test_weights_that_claim_too_much_or_too_little_are_corrected(claim):
    """With tiles of 8 tokens a wide pass pays for good drafts only, whatever is claimed."""
    for right, widest in ((0.95, True), (0.4, False)):
        world = World(tiles, draft=lambda depth: 0.05, drafter=chance(right), claim=claim)
        world.play(CostController().open(1), 300)
        width = np.median([width for depth, width, _ in world.log[-100:] if depth])
        assert (width > 9) == widest


def warm(
    controller: CostController, curve: Callable[[int, int], float], rows: int, draft: float
) -> CostSession:
    """A control that knows all costs, has fair calibration and found the drafter best."""
    learned = controller.learned
    for width in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(3):
            learned.costs.add(Spent(rows, width, 8, draft, curve(rows, width), 0.02), True, True)
    for _ in range(3):
        learned.costs.add(Spent(rows, 1, 0, 0.0, curve(rows, 1), 0.01), False, True)
    for arm in learned.arms.values():
        arm.due = 10**9
    learned.arms["drafter"].add(5.0, 1.0)
    control = controller.open(rows)
    assert isinstance(control, CostSession)
    assert (control.mode, control.trying) == ("drafter", False)
    return control


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_the_best_of_the_steps_given_the_weights(name, rows, seed):
    rng = np.random.default_rng(seed)
    control = warm(CostController(), CURVES[name], rows, 0.5)
    weights = [np.sort(rng.random(rng.integers(20, 40)) ** 3)[::-1] for _ in range(rows)]
    longest = max(map(len, weights))

    def rate(width: int) -> float:
        tokens = rows + sum(row[: width - 1].sum() for row in weights)
        return float(tokens) / (0.5 + CURVES[name](rows, width) + 0.02)

    best = max([1, 2, 4, 8, 16, 32, longest + 1], key=rate)
    assert control.sizes(weights) == [min(best - 1, len(row)) for row in weights]


def test_nodes_that_nobody_would_accept_are_not_verified_where_they_cost():
    control = warm(CostController(), fp32, 1, 0.5)
    assert control.sizes([np.full(20, 1e-3)]) == [0]
    assert control.sizes([np.zeros(0)]) == [0]
    assert control.sizes([]) == []


def test_a_trial_verifies_something_however_bad_it_looks():
    control = warm(CostController(), fp32, 1, 0.5)
    control.trying = True
    assert control.sizes([np.full(20, 1e-3)])[0] >= 1


def test_after_a_trial_that_paid_the_next_is_soon():
    learned = CostController().learned
    for tokens in (1.0, 3.0):
        for _ in range(3000):
            trial = learned.trial or learned.best()
            learned.add(trial, tokens if trial == "drafter" else 1.0, 1.1, 1.1)
        assert (learned.arms["drafter"].wait == FIRST) == (tokens > 1)


def test_a_trial_takes_weights_as_they_come():
    control, claimed = warm(CostController(), fp32, 1, 0.5), np.full(16, 0.9)
    for _ in range(50):
        control.learned.right["drafter"].add(claimed, np.zeros(16, bool))
    assert control.sizes([claimed]) == [0]
    control.trying = True
    assert control.sizes([claimed]) == [16]


def test_trials_that_cost_next_to_nothing_still_come():
    learned = CostController().learned
    for _ in range(12_000):
        seconds = 1.0 if learned.trial is None else 1.0001
        learned.add(learned.trial or "plain", 1.0, seconds, seconds)
    assert learned.arms["drafter"].wait == LONGEST


@pytest.mark.parametrize(
    ("seconds", "best"), [(0.9, "branches"), (1.02, "branches"), (1.05, "plain")]
)
def test_branches_that_cost_next_to_nothing_are_looked_for(seconds, best):
    learned = CostController().learned
    learned.arms["branches"].add(1.0, seconds)
    assert learned.best() == best
    learned.arms["drafter"].add(1.0, 1.02)  # a drafter has to pay
    assert learned.best() == best


def test_a_drafter_that_costs_more_makes_wider_passes():
    weights = [0.8 ** np.arange(1, 33)]
    cheap, dear = (
        warm(CostController(), fp32, 1, draft).sizes(weights)[0] for draft in (0.0, 10.0)
    )
    assert cheap < dear


def see(
    control: ControlSession, row: int, depth: int, accepted: int, end: int | None = None
) -> int:
    kept = np.arange(depth) < accepted
    weights = np.full(depth, 0.5)
    end = depth if end is None else end
    control.observe(row, Observed(depth, end, depth, accepted, weights, kept))
    return control.depth(row)


def test_depth_doubles_after_a_full_accept_and_is_what_is_left_before_an_end():
    control = warm(CostController(depth=8, least=4, most=32), bf16, 2, 0.1)
    assert control.depth(0) == 8
    assert [see(control, 0, 8, 8), see(control, 0, 16, 16), see(control, 0, 32, 32)] == [16, 32, 32]
    assert see(control, 0, 32, 5, end=5) == 4
    assert see(control, 0, 32, 5, end=20) == 15
    assert control.depth(1) == 8


def test_the_first_draft_of_a_text_asks_for_what_such_drafts_have_needed():
    controller = CostController(depth=8, least=4, most=32)
    for accepted, expected in ((8, 16), (16, 32), (31, 32)):
        control = controller.open(1)
        see(control, 0, control.depth(0), accepted)
        see(control, 0, 4, 0)  # a later round says nothing about first ones
        warm(controller, bf16, 1, 0.1)
        assert round(controller.learned.start) == expected
    for _ in range(60):
        see(controller.open(1), 0, 32, 9)
    assert round(controller.learned.start) == 10


def test_depth_follows_the_positions_that_are_reached_often_enough():
    control = warm(CostController(depth=8, least=2, most=32, threshold=0.25), bf16, 1, 0.1)
    assert see(control, 0, 8, 3) == 4  # all of one round reached 3
    for _ in range(40):
        see(control, 0, 8, 0)
        see(control, 0, 8, 5)
    assert control.depth(0) == 6  # half of the rounds reached 5
    for _ in range(40):
        see(control, 0, 8, 0)
    assert control.depth(0) == 2


def test_the_prompt_pass_says_nothing_about_later_ones():
    controller = CostController()
    for _ in range(20):
        control = controller.open(1)
        control.observe(0, Observed(0, 0, 0, 0, np.zeros(0), np.zeros(0, bool)))
        control.spent(Spent(1, 1, 0, 0.0, 900.0, 0.0))
    world = World(bf16, drafter=chance(0.9))
    world.play(control, 60)
    assert controller.learned.costs.plain(1) == pytest.approx(1.01)


def test_a_drafter_that_catches_up_is_not_taken_for_slow():
    """Its first pass after a pause reads all that was committed meanwhile."""
    world = World(bf16, drafter=chance(0.9))
    paused = [0]

    def draft(depth: int) -> float:
        before = len(world.log) and world.log[-1][0]
        paused[0] += not before
        return 0.3 if before else 30.0

    world.draft = draft
    controller = CostController()
    world.play(controller.open(1), 200)
    assert paused[0]
    assert np.mean([depth > 0 for depth, _, _ in world.log[50:]]) > 0.9
    assert controller.learned.costs.round(1, 1, 8, True) < 1.5


def test_what_was_learned_stays_for_the_next_request():
    controller = CostController()
    bad = World(bf16, drafter=chance(0.02))
    bad.play(controller.open(1), 100)
    again = World(bf16, drafter=chance(0.02))
    for _ in range(10):
        again.play(controller.open(1), 20)
    assert sum(depth > 0 for depth, _, _ in again.log) <= 8
    other = World(bf16, drafter=chance(0.02))
    other.play(CostController().open(1), 20)
    assert any(depth for depth, _, _ in other.log)


def test_a_batch_that_shrinks_is_measured_anew_and_still_pays():
    controller = CostController()
    world = World(gpu, draft=lambda depth: 0.2, drafter=chance(0.8))
    control = controller.open(8)
    world.play(control, 200, rows=8)
    assert np.mean([depth > 0 for depth, _, _ in world.log[50:]]) > 0.8
    world.play(control, 100, rows=2)
    assert np.mean([depth > 0 for depth, _, _ in world.log[-80:]]) > 0.8


def test_costs_by_rows_make_wide_passes_of_big_batches_narrower():
    def crowded(rows: int, width: int) -> float:
        return 1.0 if rows * width <= 64 else rows * width / 64

    widths = {}
    for rows in (1, 16):
        world = World(crowded, draft=lambda depth: 0.2, drafter=chance(0.9))
        world.play(CostController().open(rows), 150, rows=rows)
        widths[rows] = np.median([width for depth, width, _ in world.log[-60:] if depth])
    assert widths[16] <= 8 < widths[1]


def test_a_slow_first_pass_at_a_width_does_not_lock_it_out():
    slow = {4: 1, 8: 1, 16: 1}  # passes at each width that take far longer
    world = World(bf16, draft=lambda depth: 0.1, drafter=chance(0.9))

    def verify(rows: int, width: int) -> float:
        if slow.get(width, 0):
            slow[width] -= 1
            return 40.0
        return bf16(rows, width)

    world.verify = verify
    world.play(CostController().open(1), 400)
    late = world.log[-100:]
    assert np.median([width for _, width, _ in late]) >= 8


def test_clocks_that_stand_still_are_no_error():
    world = World(lambda rows, width: 0.0, draft=lambda depth: 0.0, host=0.0, search=0.0)
    world.play(CostController().open(2), 30, rows=2)
    assert world.tokens >= 60


def test_decisions_do_not_see_tokens():
    """Non-anticipation: no argument of a decision holds a token or what one was drawn from."""
    asked = {
        name: list(inspect.signature(getattr(CostSession, name)).parameters)[1:]
        for name in ("depth", "drafts", "sizes")
    }
    assert asked == {"depth": ["row"], "drafts": ["row"], "sizes": ["weights"]}


def test_the_same_observations_give_the_same_decisions():
    logs = []
    for _ in range(2):
        world = World(bf16, drafter=chance(0.6), branches=chance(0.5), seed=3)
        world.play(CostController().open(2), 300, rows=2)
        logs.append(world.log)
    assert logs[0] == logs[1]
