"""The canvas: what is a masked position, what a step changes, rows that are taken and joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.decoding.canvas import Canvas, Windows, first_of, positions, widened
from dllm.samplers.planner import FixedBlocks

MASK = 5
prompts = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=4)


def lists(canvas: Canvas) -> dict[str, list]:
    names = ("ids", "generated", "known", "prompt", "length", "row")
    return {name: getattr(canvas, name).tolist() for name in names}


def committed(canvas: Canvas, chosen: np.ndarray) -> Canvas:
    """`canvas` with token 7 at the chosen [B, size] answer positions."""
    ids, known = canvas.ids.copy(), canvas.known.copy()
    row, k = chosen.nonzero()
    ids[row, canvas.prompt[row] + k], known[row, canvas.prompt[row] + k] = 7, True
    return canvas.stepped(ids, known)


@given(prompts, st.data())
def test_a_new_canvas_is_the_prompt_and_masked_positions_behind_it(batch, data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(batch), max_size=len(batch)))
    canvas = Canvas.from_prompts(batch, sizes, MASK)
    ends = [len(prompt) + size for prompt, size in zip(batch, sizes, strict=True)]
    assert canvas.ids.shape == (len(batch), max(ends))
    assert canvas.pos.tolist() == list(range(max(ends)))
    for row, (prompt, end) in enumerate(zip(batch, ends, strict=True)):
        assert canvas.ids[row].tolist() == prompt + [MASK] * (max(ends) - len(prompt))
        assert canvas.masked[row].nonzero()[0].tolist() == list(range(len(prompt), end))
        assert canvas.known[row].tolist() == [not each for each in canvas.masked[row]]
        assert canvas.inside[row].sum() == end
        assert canvas.answer[row].nonzero()[0].tolist() == list(range(len(prompt), end))
    assert canvas.first_masked().tolist() == canvas.prompt.tolist() == [len(p) for p in batch]
    assert canvas.length.tolist() == ends
    assert canvas.row.tolist() == list(range(len(batch)))
    assert Canvas.from_prompts(batch, sizes, MASK, row_ids=[9] * len(batch)).row.max() == 9


@given(prompts, st.integers(1, 5), st.data())
def test_a_step_changes_what_it_says_and_nothing_of_the_canvas_before(batch, size, data):
    canvas = Canvas.from_prompts(batch, size, MASK)
    before, masked = lists(canvas), canvas.masked.copy()
    flags = st.lists(st.booleans(), min_size=size, max_size=size)
    chosen = np.array([data.draw(flags) for _ in batch])
    after = committed(canvas, chosen)
    for row, prompt in enumerate(batch):
        left = [k for k in range(size) if not chosen[row, k]]
        assert after.first_masked()[row] == len(prompt) + min(left, default=size)
    assert (after.masked == (masked & (after.ids == MASK))).all()
    assert lists(canvas) == before
    same = ("generated", "prompt", "length", "row")
    assert all(lists(after)[name] == before[name] for name in same)
    assert (after.inside == canvas.inside).all()
    assert (after.answer == canvas.answer).all()


@given(prompts, st.integers(1, 5), st.data())
def test_a_row_that_is_shortened_holds_nothing_behind_its_end(batch, size, data):
    canvas = Canvas.from_prompts(batch, size, MASK)
    canvas.inside, canvas.answer  # noqa: B018 - worked out before, so that they could be stale
    cut = np.array([data.draw(st.integers(len(p), len(p) + size + 2)) for p in batch])
    after = canvas.stepped(canvas.ids, canvas.known, cut)
    assert after.length.tolist() == np.minimum(cut, canvas.length).tolist()
    behind = after.pos >= after.length[:, None]
    assert not (after.generated & behind).any()
    assert (after.known | ~behind).all()
    assert (after.inside == ~behind).all()
    assert not (after.answer & behind).any()


@given(prompts, st.integers(1, 5), st.data())
def test_rows_that_are_taken_are_as_wide_as_the_longest(batch, size, data):
    rows = data.draw(st.lists(st.sampled_from(range(len(batch)))))
    taken = Canvas.from_prompts(batch, size, MASK).take(rows)
    if rows:
        fresh = Canvas.from_prompts([batch[row] for row in rows], size, MASK)
        assert lists(taken) == lists(fresh) | {"row": rows}
    else:
        assert taken.ids.shape == (0, 0)


@given(prompts, prompts, st.integers(1, 5), st.integers(1, 5))
def test_joined_rows_are_what_they_were(one, two, size, other):
    first, second = Canvas.from_prompts(one, size, MASK), Canvas.from_prompts(two, other, MASK)
    both = first.joined(second, MASK)
    sizes = [size] * len(one) + [other] * len(two)
    fresh = Canvas.from_prompts([*one, *two], sizes, MASK)
    assert lists(both) == lists(fresh) | {"row": [*range(len(one)), *range(len(two))]}
    assert lists(Canvas.from_prompts([], 0, MASK).joined(second, MASK)) == lists(second)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=4))
def test_positions_are_the_ascending_ones_and_the_fill_behind(rows):
    mask = np.array(rows, dtype=np.bool_).reshape(len(rows), 4)
    pos, real = positions(mask)
    for row, where in enumerate(mask):
        own = where.nonzero()[0].tolist()
        assert pos[row, real[row]].tolist() == own
        assert pos[row].tolist() == own + [4] * (pos.shape[1] - len(own))
    assert (positions(mask, fill=0)[0] == np.where(real, pos, 0)).all()
    first = first_of(mask, np.full(len(rows), 9))
    assert first.tolist() == [next((i for i in range(4) if row[i]), 9) for row in rows]


def test_what_is_widened_keeps_what_it_holds():
    a = np.arange(6).reshape(2, 3)
    assert widened(a, 4, -1).tolist() == [[0, 1, 2, -1], [3, 4, 5, -1]]
    assert widened(a, 2, -1) is a


def test_windows_are_half_open():
    windows = Windows(np.array([1, 0]), np.array([3, 0]))
    assert windows.contains(np.arange(4)).tolist() == [[False, True, True, False], [False] * 4]
    assert windows.first().tolist() == [1, 2**63 - 1]
    assert windows.last().tolist() == [3, 0]


@pytest.mark.parametrize("forced", [None, [[True, False]]])
def test_windows_of_some_rows_take_the_place_of_others(forced):
    one = Windows(
        np.array([[1, 5]]), np.array([[3, 6]]), None if forced is None else np.array(forced)
    )
    two = Windows(np.array([2]), np.array([4]))
    for which, start in ((True, [1, 5]), (False, [2, 0])):
        both = one.where(np.array([which]), two)
        assert both.start.tolist() == [start]
        expected = forced if which else [[True, True]]
        assert forced is None or both.forced.tolist()[0][0] == expected[0][0]


@given(prompts, st.integers(1, 9), st.none() | st.integers(1, 12), st.data())
def test_fixed_blocks_follow_the_first_masked_position(batch, size, block, data):
    """Blocks are counted from the prompt's end, the last may be short, the window has a masked
    position.
    """
    flags = st.lists(st.booleans(), min_size=size, max_size=size).filter(lambda f: not all(f))
    chosen = np.array([data.draw(flags) for _ in batch])
    canvas = committed(Canvas.from_prompts(batch, size, MASK), chosen)
    windows = FixedBlocks(block).windows(canvas, {})
    first = (canvas.first_masked() - canvas.prompt).tolist()
    b = block or size
    start = [len(p) + at // b * b for p, at in zip(batch, first)]
    assert windows.start[:, 0].tolist() == start
    assert windows.end[:, 0].tolist() == [min(s + b, len(p) + size) for s, p in zip(start, batch)]
    assert (canvas.masked & windows.contains(canvas.pos)).any(1).all()
