"""MultiBlock: which blocks are open, and which of them must move on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas
from dllm.engine import Engine
from dllm.samplers.multi import MultiBlock
from tests.fakes import FakeModel, scripted
from tests.samplers.canvases import EOS, canvas_of, committed_at

PROMPT = [3, 3]
SIZES = st.sampled_from([None, 1, 2, 3, 5, 40])
MULTI = st.builds(
    MultiBlock,
    SIZES,
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    st.integers(1, 4),
    st.just((EOS,)),
)
Block = tuple[int, int, bool]  # start, end, forced


def open_blocks(planner: MultiBlock, canvas: Canvas, row: int = 0) -> list[Block]:
    windows = planner.windows(canvas, {})
    assert windows.forced is not None
    columns = (windows.start[row], windows.end[row], windows.forced[row])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    assert not any(forced for start, end, forced in zip(*columns) if start == end)
    return [(start, end, forced) for start, end, forced in rows if start < end]


def literal(planner: MultiBlock, canvas: Canvas, row: int) -> list[Block]:
    """D2F's pipeline for one row, in plain Python."""
    prompt, length = int(canvas.prompt[row]), int(canvas.length[row])
    size = planner.block_length or length - prompt
    masked, ids = canvas.masked[row].tolist(), canvas.ids[row].tolist()
    mine = canvas.generated[row].tolist()
    found: list[Block] = []
    previous = None  # decoded share of the block before
    for start in range(prompt, length, size):
        end = min(start + size, length)
        share = 1 - sum(masked[start:end]) / (end - start)
        ended = any(ids[i] == EOS and mine[i] and not masked[i] for i in range(prompt, start))
        if previous is not None and found and (previous < planner.add or ended):
            break
        if any(masked[start:end]):
            if len(found) == planner.most:
                break
            found.append((start, end, not found or previous >= planner.full))
        previous = share
    return found


@given(MULTI, st.integers(0, 2**32), st.integers(1, 4))
def test_blocks_are_those_of_the_text(planner, seed, rows):
    """Any canvas whose first end of text has a masked position before it, as all that are being
    decoded.
    """
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(rows):
        odds = rng.dirichlet([2, 2, 0.3, 0.3])
        text = rng.choice(list(".xEg"), int(rng.integers(1, 20)), p=odds)
        text[int(rng.integers(0, max(1, "".join(text).find("E") + 1)))] = "."
        texts.append("".join(text))
    canvas = canvas_of(PROMPT, *texts)
    for b in range(rows):
        assert open_blocks(planner, canvas, b) == literal(planner, canvas, b)


def test_the_next_block_opens_at_the_share_of_the_last_open_one():
    planner = MultiBlock(4, add=0.5, full=1.0)
    assert open_blocks(planner, canvas_of(PROMPT, "x...........")) == [(2, 6, True)]
    assert open_blocks(planner, canvas_of(PROMPT, "x.x.........")) == [(2, 6, True), (6, 10, False)]
    assert len(open_blocks(planner, canvas_of(PROMPT, "x.x.x.x....."))) == 3
    assert len(open_blocks(planner, canvas_of(PROMPT, "x.x.x......."))) == 2


def test_a_block_is_forced_where_its_predecessor_is_nearly_full():
    planner = MultiBlock(4, add=0.25, full=0.75)
    assert open_blocks(planner, canvas_of(PROMPT, "xx.x........"))[1] == (6, 10, True)
    assert open_blocks(planner, canvas_of(PROMPT, "xx.........."))[1] == (6, 10, False)


def test_the_first_block_with_a_masked_position_is_forced_and_full_blocks_are_empty_spans():
    windows = MultiBlock(4).windows(canvas_of(PROMPT, "xxxx........"), {})
    assert windows.start.tolist() == [[2, 6, 10]]
    assert windows.end.tolist() == [[2, 10, 10]]
    assert windows.forced is not None
    assert windows.forced.tolist() == [[False, True, False]]


def test_no_more_blocks_than_the_most_are_open_at_once():
    canvas = canvas_of(PROMPT, "x." * 8)
    for most in range(1, 5):
        planner = MultiBlock(2, add=0.5, most=most)
        assert [start for start, _, _ in open_blocks(planner, canvas)] == [2, 4, 6, 8][:most]
    full = canvas_of(PROMPT, "xxx.xxx.")  # full blocks do not count
    assert [s for s, _, _ in open_blocks(MultiBlock(2, most=2), full)] == [4, 8]


def test_no_block_is_open_behind_a_committed_end_of_text():
    planner = MultiBlock(2, add=0.0, most=4, stop_ids=(EOS,))
    assert [s for s, _, _ in open_blocks(planner, canvas_of(PROMPT, "...E...."))] == [2, 4]
    assert len(open_blocks(planner, canvas_of(PROMPT, "...g...."))) == 4
    given_end = canvas_of(PROMPT, "...g....")
    given_end = committed_at(given_end, 0, [5], EOS)  # put there by the user: no end
    assert not given_end.generated[0, 5]
    assert len(open_blocks(planner, given_end)) == 4


def test_a_row_whose_text_has_ended_before_its_masked_positions_still_has_a_window():
    """Speculators guess such canvases."""
    planner = MultiBlock(2, add=0.0, stop_ids=(EOS,))
    assert open_blocks(planner, canvas_of(PROMPT, "xE......")) == [(4, 6, True)]


def test_an_end_of_text_in_the_prompt_closes_nothing():
    canvas = canvas_of([EOS, 3], "....")
    assert len(open_blocks(MultiBlock(2, add=0.0, stop_ids=(EOS,)), canvas)) == 2


def test_slots_keep_their_block_beside_longer_rows():
    windows = MultiBlock(2, add=0.0).windows(canvas_of(PROMPT, "....", "..."), {})
    assert windows.start.tolist() == [[2, 4], [2, 4]]
    assert windows.end.tolist() == [[4, 6], [4, 5]]
    shorter = MultiBlock(2, add=0.0).windows(canvas_of(PROMPT, "......", ".."), {})
    assert (shorter.start[1].tolist(), shorter.end[1].tolist()) == ([2, 4, 4], [4, 4, 4])


def test_bind_learns_the_stop_ids():
    vocabulary = SimpleNamespace(stop_ids=(1, 2))
    assert MultiBlock().bind(vocabulary).stop_ids == (1, 2)
    assert MultiBlock(stop_ids=(7,)).bind(vocabulary).stop_ids == (7,)


@settings(max_examples=30)
@given(MULTI, st.integers(0, 2**32))
def test_a_block_with_a_masked_position_closes_only_behind_an_end_of_text(planner, seed):
    rng = np.random.default_rng(seed)
    canvas, before = canvas_of(PROMPT, "." * int(rng.integers(1, 24))), set()
    while canvas.masked.any():
        now = open_blocks(planner, canvas)
        still = {(s, e) for s, e in before if canvas.masked[0, s:e].any()}
        assert still <= {(s, e) for s, e, _ in now}
        before = {(s, e) for s, e, _ in now}
        inside = planner.windows(canvas, {}).contains(canvas.pos) & canvas.masked
        canvas = committed_at(canvas, 0, [int(rng.choice(inside[0].nonzero()[0]))])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"add": -0.1}, "add=-0.1"),
        ({"add": float("nan")}, "add=nan"),
        ({"full": 1.1}, "full=1.1"),
        ({"most": 0}, "most=0"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        MultiBlock(**options)


def test_the_engine_works_on_several_blocks_in_one_forward():
    """Position 1 of every block is sure; its other one comes where the block must move on."""
    heights = {i: 8.0 if i % 2 else 1.0 for i in range(8)}
    model = FakeModel(scripted(dict.fromkeys(range(8), 3), heights))
    config = DecodeConfig(8, 2, planner="multi:add=0.5,most=2", history=True)
    (output,) = Engine(model).generate([[]], config)
    assert [c.positions for c in output.history] == [[1], [0, 3], [2, 5], [4, 7], [6]]
    fixed = Engine(FakeModel(model.out)).generate([[]], config, planner="fixed")[0]
    assert (output.nfe, fixed.nfe) == (5, 8)
