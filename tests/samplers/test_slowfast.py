"""SlowFast: cycles of one-token steps and of parallel ones."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas
from dllm.engine import Engine
from dllm.samplers.slowfast import SlowFast
from tests.fakes import FakeModel, scripted
from tests.samplers.canvases import (
    MASK,
    Outlook,
    committed_at,
    decode,
    plan,
    random_outlook,
    started,
)


def outlook_of(conf: list[float], prompt: int = 0) -> Outlook:
    canvas = Canvas.from_prompts([[3] * prompt], len(conf), MASK)
    values = torch.tensor([[1.0] * prompt + conf])
    return Outlook(canvas, torch.full_like(values, 3, dtype=torch.long), values)


def windows_of(planner: SlowFast, outlook: Outlook, threshold: float = 1.0):
    return [(n.start.item(), n.end.item()) for _, _, n in decode(planner, outlook, threshold)]


def literal(planner: SlowFast, outlook: Outlook, threshold: float) -> list[tuple[int, int]]:
    """Section 11a for one row, in plain Python, on predictions that never change."""
    canvas, found = outlook.canvas, []
    prompt, length = canvas.prompt.item(), canvas.length.item()
    masked = canvas.masked[0].nonzero()[0].tolist()
    conf = outlook.conf[0].tolist()
    reach = float(torch.tensor(planner.reach))

    def best(candidates):
        return max(candidates, key=lambda i: (conf[i], -i))

    while masked:
        start = masked[0]
        limit = length
        if planner.block_length is not None:
            number = (start - prompt) // planner.block_length
            limit = min(prompt + (number + 1) * planner.block_length, length)
        lengths: list[int] = []
        while any(i < limit for i in masked):
            scope = [i for i in masked if i < limit]
            lengths.append(max([i + 1 - start for i in scope if conf[i] >= reach], default=0))
            found.append((best(scope), best(scope) + 1))
            masked.remove(best(scope))
            stable = len(lengths) > 1 and statistics.pstdev(lengths[-2:]) < 1
            if stable or len(lengths) == planner.explore:
                break
        end = start + lengths[-1]
        if all(i >= limit for i in masked):
            continue  # the slow phase has filled its scope
        first = masked[0]
        while span := [i for i in masked if i < end]:
            found.append((first, end))
            for i in {best(span), *[i for i in span if conf[i] >= threshold]}:
                masked.remove(i)
    return found


@settings(max_examples=60)
@given(
    st.builds(
        SlowFast,
        st.sampled_from([None, 1, 3, 7, 40]),
        explore=st.integers(1, 6),
        reach=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    ),
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.sampled_from([0.5, 0.75, 1.0]),
)
def test_windows_are_those_of_the_text(planner, seed, rows, threshold):
    outlook = random_outlook(seed, rows)
    together = decode(planner, outlook, threshold)
    for b in range(rows):
        mine = [
            (n.start[i].item(), n.end[i].item())
            for c, _, n in together
            for i in range(len(c.row))
            if int(c.row[i]) == b
        ]
        assert mine == literal(planner, outlook.only(b), threshold)


def test_slow_steps_take_the_best_candidate_of_the_row_and_the_fast_phase_its_span():
    conf = [0.5, 0.4, 0.2, 0.9, 0.6, 0.1, 0.1, 0.1]
    # Spans end behind 4 twice, so two slow steps are enough.
    assert windows_of(SlowFast(), outlook_of(conf, 2))[:4] == [(5, 6), (6, 7), (2, 7), (2, 7)]


def test_a_confidence_of_exactly_the_reach_belongs_to_the_span():
    for far, end in ((0.3, 8), (0.2999, 3)):
        conf = [0.5, 0.4, 0.35, 0.9, 0.1, 0.1, 0.1, far]
        assert windows_of(SlowFast(), outlook_of(conf))[:3] == [(3, 4), (0, 1), (1, end)]


def test_lengths_one_apart_are_stable_and_two_apart_are_not():
    """The standard deviation and the variance of 2 lengths are below 1 in the same cases."""
    for a in range(6):
        for b in range(6):
            small = {
                measure([a, b]) < 1
                for measure in (
                    statistics.pstdev,
                    statistics.stdev,
                    statistics.pvariance,
                    statistics.variance,
                )
            }
            assert small == {abs(a - b) <= 1}
    far = [0.35, 0.4, 0.5, 0.9]  # the best is always the last: spans 4, 3
    assert windows_of(SlowFast(), outlook_of(far)) == [(3, 4), (2, 3), (0, 3), (0, 3)]
    gap = [0.35, 0.4, 0.1, 0.9]  # spans 4, 2, 1
    assert windows_of(SlowFast(), outlook_of(gap))[:3] == [(3, 4), (1, 2), (0, 1)]


def test_the_fast_window_starts_where_no_slow_one_did():
    """So that its steps and masked positions are counted anew."""
    found = windows_of(SlowFast(), outlook_of([0.9, 0.4, 0.5, 0.35]))
    assert found == [(0, 1), (2, 3), (1, 4), (1, 4)]


def test_one_span_alone_is_not_stable():
    """Nothing is confident at first, then all is: the second of two slow steps sees it."""
    planner, first = SlowFast(explore=2), outlook_of([0.2, 0.1, 0.1, 0.1, 0.1])
    state = started(planner, first.canvas)
    plan(planner, first, state)
    later = outlook_of([0.2, 0.9, 0.8, 0.8, 0.8])
    later = replace(later, canvas=committed_at(later.canvas, 0, [0]))
    _, narrow = plan(planner, later, state)
    assert (narrow.start.tolist(), narrow.end.tolist()) == ([[1]], [[2]])
    later = replace(later, canvas=committed_at(later.canvas, 0, [1]))
    _, narrow = plan(planner, later, state)
    assert (narrow.start.tolist(), narrow.end.tolist()) == ([[2]], [[5]])


def test_a_step_without_a_confident_candidate_has_a_span_of_length_zero():
    """Lengths 1 and 0 end a cycle, so that the third slow step is the first of the next one."""
    planner = SlowFast(explore=3)
    state = started(planner, outlook_of([0.5] * 5, prompt=3).canvas)
    for known, conf in enumerate([[0.5, 0.1, 0.1, 0.1, 0.1], [0.2] * 5, [0.9] * 5]):
        outlook = outlook_of(conf, prompt=3)
        canvas = committed_at(outlook.canvas, 0, range(3, 3 + known))
        plan(planner, replace(outlook, canvas=canvas), state)
    assert state.values["slow"].tolist() == [True]


def test_at_most_six_slow_steps_are_taken():
    """Spans shrink by two a step, so they never become stable."""
    conf = [0.0] * 20
    for i in range(10):
        conf[2 * i + 1] = 0.5 + i / 100
    found = windows_of(SlowFast(), outlook_of(conf), 0.0)
    assert found[:7] == [(i, i + 1) for i in (19, 17, 15, 13, 11, 9)] + [(0, 10)]
    assert windows_of(SlowFast(explore=2), outlook_of(conf), 0.0)[2] == (0, 18)


def test_without_a_confident_candidate_there_is_no_fast_phase():
    found = windows_of(SlowFast(), outlook_of([0.1, 0.2, 0.25, 0.15]), 0.0)
    assert found == [(2, 3), (1, 2), (3, 4), (0, 1)]


def test_a_cycle_does_not_leave_its_block():
    found = windows_of(SlowFast(3), outlook_of([0.5, 0.4, 0.35, 0.99, 0.99, 0.99, 0.9]))
    assert found[:3] == [(0, 1), (1, 2), (2, 3)]
    assert found[3:] == [(3, 4), (4, 5), (5, 6), (6, 7)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"explore": 0}, "explore=0"),
        ({"reach": 1.5}, "reach=1.5"),
        ({"reach": float("nan")}, "reach=nan"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        SlowFast(**options)


def test_the_engine_walks_slowly_and_then_fast():
    """Sure tokens everywhere: two slow steps find a stable span, one fast step fills it."""
    model = FakeModel(scripted(dict.fromkeys(range(12), 3)))
    config = DecodeConfig(12, planner="slowfast:block_length=none", history=True)
    (output,) = Engine(model).generate([[]], config)
    assert [c.positions for c in output.history] == [[0], [1], list(range(2, 12))]
    assert output.nfe == model.calls == 3
