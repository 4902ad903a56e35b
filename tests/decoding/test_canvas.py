"""The canvas: what is a masked position, what a commit changes, what is left when rows leave."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.decoding.canvas import Canvas, Windows
from dllm.samplers.planner import FixedBlocks

MASK = 5
prompts = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=4)


def tensors(canvas: Canvas) -> dict[str, list]:
    names = ("ids", "generated", "known", "prompt", "length", "row")
    return {name: getattr(canvas, name).tolist() for name in names}


@given(prompts, st.integers(1, 5))
def test_a_new_canvas_is_the_prompt_and_masked_positions_behind_it(batch, size):
    canvas = Canvas.from_prompts(batch, size, MASK)
    width = max(map(len, batch)) + size
    assert canvas.ids.shape == (len(batch), width)
    assert canvas.pos.tolist() == list(range(width))
    for row, prompt in enumerate(batch):
        end = len(prompt) + size
        assert canvas.ids[row].tolist() == prompt + [MASK] * (width - len(prompt))
        assert canvas.masked[row].nonzero()[:, 0].tolist() == list(range(len(prompt), end))
        assert canvas.known[row].tolist() == [not each for each in canvas.masked[row]]
    assert canvas.first_masked().tolist() == canvas.prompt.tolist() == [len(p) for p in batch]
    assert (canvas.length - canvas.prompt).tolist() == [size] * len(batch)
    assert canvas.row.tolist() == list(range(len(batch)))


@given(prompts, st.integers(1, 5), st.data())
def test_commit_changes_the_chosen_positions_only(batch, size, data):
    canvas = Canvas.from_prompts(batch, size, MASK)
    before = tensors(canvas)
    pos = canvas.prompt[:, None] + torch.arange(size)
    flags = st.lists(st.booleans(), min_size=size, max_size=size)
    chosen = torch.tensor([data.draw(flags) for _ in batch])
    canvas.commit(pos, torch.full_like(pos, 7), chosen)
    for row, prompt in enumerate(batch):
        for i in range(canvas.ids.shape[1]):
            k = i - len(prompt)
            hit = 0 <= k < size and bool(chosen[row, k])
            assert canvas.ids[row, i] == (7 if hit else before["ids"][row][i])
            assert canvas.known[row, i] == (hit or before["known"][row][i])
        left = [k for k in range(size) if not chosen[row, k]]
        assert canvas.first_masked()[row] == len(prompt) + min(left, default=size)
    after = tensors(canvas)
    assert all(after[name] == before[name] for name in ("generated", "prompt", "length", "row"))


@given(prompts, st.integers(1, 5), st.data())
def test_keep_is_a_canvas_of_the_rows_that_stay(batch, size, data):
    """Rows, columns and identities; the width is that of the longest row left."""
    rows = data.draw(st.lists(st.sampled_from(range(len(batch))), unique=True))
    canvas = Canvas.from_prompts(batch, size, MASK)
    canvas.keep(torch.tensor(rows, dtype=torch.long))
    if rows:
        fresh = Canvas.from_prompts([batch[row] for row in rows], size, MASK)
        assert tensors(canvas) == tensors(fresh) | {"row": rows}
    else:
        assert canvas.ids.shape == (0, 0)
        assert canvas.row.tolist() == []


def test_windows_are_half_open():
    windows = Windows(torch.tensor([1, 0]), torch.tensor([3, 0]))
    assert windows.contains(torch.arange(4)).tolist() == [[False, True, True, False], [False] * 4]


@given(prompts, st.integers(1, 9), st.none() | st.integers(1, 12), st.data())
def test_fixed_blocks_follow_the_first_masked_position(batch, size, block, data):
    """Blocks are counted from the prompt's end, the last may be short, the window has a masked
    position.
    """
    canvas = Canvas.from_prompts(batch, size, MASK)
    pos = canvas.prompt[:, None] + torch.arange(size)
    flags = st.lists(st.booleans(), min_size=size, max_size=size).filter(lambda f: not all(f))
    canvas.commit(pos, torch.zeros_like(pos), torch.tensor([data.draw(flags) for _ in batch]))
    windows = FixedBlocks(block).windows(canvas, {})
    first = (canvas.first_masked() - canvas.prompt).tolist()
    b = block or size
    start = [len(p) + at // b * b for p, at in zip(batch, first)]
    assert windows.start[:, 0].tolist() == start
    assert windows.end[:, 0].tolist() == [min(s + b, len(p) + size) for s, p in zip(start, batch)]
    assert (canvas.masked & windows.contains(canvas.pos)).any(1).all()
