"""Guarantees of every planner, and the fixed blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas, Windows
from dllm.engine import Engine
from dllm.samplers.adablock import AdaBlock
from dllm.samplers.multi import MultiBlock
from dllm.samplers.planner import FixedBlocks
from dllm.samplers.protocols import PlannerBase
from dllm.samplers.slowfast import SlowFast
from tests.fakes import EOS, FakeModel, hashed, leaning
from tests.samplers.canvases import committed_at, decode, plan, random_outlook, started
from tests.samplers.views import hand_made

SIZES = st.sampled_from([None, 1, 2, 3, 5, 30])
PLANNERS = st.one_of(
    st.builds(FixedBlocks, SIZES),
    st.builds(
        AdaBlock, SIZES, share=st.sampled_from([0.1, 0.25, 1.0]), delimiter_ids=st.just((6,))
    ),
    st.builds(
        SlowFast, SIZES, explore=st.integers(1, 6), reach=st.sampled_from([0.0, 0.3, 0.8, 1])
    ),
    st.builds(MultiBlock, SIZES, st.sampled_from([0.0, 0.1, 0.5, 1.0]), most=st.integers(1, 4)),
)


@settings(max_examples=30)
@given(PLANNERS, st.integers(0, 2**32), st.integers(1, 4), st.floats(0, 1))
def test_every_step_has_a_window_with_a_mask_and_all_are_filled(planner, seed, rows, share):
    """Windows are disjoint, inside the answer, and narrowed to parts of themselves."""
    outlook = random_outlook(seed, rows)
    for canvas, windows, narrow in decode(planner, outlook, share):
        for w in (windows, narrow):
            each = w.each(canvas.pos)
            assert int(each.sum(1).max()) <= 1
            assert (each.any(1) & canvas.masked).any(1).all()
            assert ((w.start >= canvas.prompt[:, None]) & (w.end <= canvas.length[:, None])).all()
        assert not (narrow.contains(canvas.pos) & ~windows.contains(canvas.pos)).any()


@settings(max_examples=30)
@given(PLANNERS, st.integers(0, 2**32), st.integers(2, 4), st.floats(0, 1))
def test_a_row_is_planned_as_if_it_were_alone(planner, seed, rows, share):
    outlook = random_outlook(seed, rows)
    together = decode(planner, outlook, share)
    for b in range(rows):
        apart = decode(planner, outlook.only(b), share)
        mine = [
            sorted(spans(narrow, i))
            for c, _, narrow in together
            for i in range(len(c.row))
            if int(c.row[i]) == b
        ]
        assert mine == [sorted(spans(narrow, 0)) for _, _, narrow in apart]


def spans(windows: Windows, row: int) -> list[tuple[int, int]]:
    pairs = zip(windows.start[row].tolist(), windows.end[row].tolist(), strict=True)
    return [(start, end) for start, end in pairs if start < end]


@given(PLANNERS, st.integers(0, 2**32))
def test_state_is_replaced_and_never_changed_in_place(planner, seed):
    outlook = random_outlook(seed, 3)
    state = started(planner, outlook.canvas)
    for _ in range(4):
        kept = dict(state.values)
        before = {key: value.copy() for key, value in kept.items()}
        plan(planner, outlook, state)
        assert all(np.array_equal(kept[key], before[key]) for key in kept)


@settings(max_examples=30)
@given(PLANNERS, st.integers(0, 2**32), st.floats(0, 1))
def test_asking_for_windows_twice_changes_nothing(planner, seed, share):
    outlook = random_outlook(seed, 3)
    once, twice = decode(planner, outlook, share), decode(planner, outlook, share, asks=2)
    for (_, _, a), (_, _, b) in zip(once, twice, strict=True):
        assert np.array_equal(a.start, b.start)
        assert np.array_equal(a.end, b.end)


def test_fixed_blocks_go_from_left_to_right_and_the_last_is_short():
    canvas = Canvas.from_prompts([[3, 3], [3]], 5, mask_id=5)
    windows = FixedBlocks(2).windows(canvas, {})
    assert (windows.start.tolist(), windows.end.tolist()) == ([[2], [1]], [[4], [3]])
    canvas = committed_at(canvas, 0, range(2, 6))
    canvas = committed_at(canvas, 1, range(1, 3))
    windows = FixedBlocks(2).windows(canvas, {})
    assert (windows.start.tolist(), windows.end.tolist()) == ([[6], [3]], [[7], [5]])


def test_fixed_without_a_length_is_one_block():
    windows = FixedBlocks().windows(Canvas.from_prompts([[3, 3], []], 5, mask_id=5), {})
    assert (windows.start.tolist(), windows.end.tolist()) == ([[2], [0]], [[7], [5]])


def test_a_planner_that_says_nothing_keeps_its_windows():
    view, planner = hand_made([0.5]), PlannerBase()
    start, end = planner.narrow(view, {})
    assert (start is view.start, end is view.end) == (True, True)
    assert not planner.narrows
    assert (planner.needs, planner.fields) == (frozenset(), {})


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("planner", [FixedBlocks, AdaBlock, SlowFast, MultiBlock])
def test_a_block_holds_at_least_one_token(planner, size):
    with pytest.raises(ValueError, match=f"block_length={size}: expected a whole number"):
        planner(block_length=size)


@settings(max_examples=20)
@given(
    PLANNERS,
    st.sampled_from(["threshold:threshold=0.5", "quota:steps=5", "factor", "dream:steps=6"]),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from([-30.0, 0.0]),
)
def test_decoding_ends_with_all_committed_and_as_alone(planner, sampler, seed, sizes, ends):
    model = FakeModel(leaning(EOS, ends, hashed(seed)))
    config = DecodeConfig(11, sampler=sampler, planner=planner, history=True)
    prompts = [[3] * size for size in sizes]
    outputs = Engine(model).generate(prompts, config)
    assert model.calls == max(output.nfe for output in outputs) <= 11
    for row, output in enumerate(outputs):
        assert output.slots == 11 or output.finish_reason == "eos"
        (alone,) = Engine(model).generate([prompts[row]], config, row_ids=[row])
        assert output.token_ids == alone.token_ids
        assert [c.positions for c in output.history] == [c.positions for c in alone.history]
