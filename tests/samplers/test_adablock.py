"""AdaBlock: where blocks end."""

from __future__ import annotations

from dataclasses import replace
from math import floor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas
from dllm.engine import Engine
from dllm.samplers.adablock import AdaBlock
from tests.fakes import FakeModel, FakeText, scripted
from tests.samplers.canvases import (
    MASK,
    Outlook,
    committed_at,
    decode,
    narrowed,
    plan,
    random_outlook,
    started,
)

LINE = 6  # the delimiter


def outlook_of(tokens: list[int], conf: list[float], prompt: int = 0, length: int = 0) -> Outlook:
    """One row; positions of the prompt predict nothing. `length`: more positions of token 3."""
    more = max(0, length - len(tokens))
    token = [3] * prompt + tokens + [3] * more
    canvas = Canvas.from_prompts([[3] * prompt], len(tokens) + more, MASK)
    values = [1.0] * prompt + conf + [0.5] * more
    return Outlook(canvas, torch.tensor([token]), torch.tensor([values]))


def blocks(planner: AdaBlock, outlook: Outlook) -> list[tuple[int, int]]:
    """The windows of a one-row run, each once."""
    found = [(n.start.item(), n.end.item()) for _, _, n in decode(planner, outlook)]
    return list(dict.fromkeys(found))


def first_block(planner: AdaBlock, outlook: Outlook) -> tuple[int, int]:
    return blocks(planner, outlook)[0]


def ada(block: int | None = 4, **options) -> AdaBlock:
    return AdaBlock(block, delimiter_ids=(LINE,), **options)


def literal(planner: AdaBlock, outlook: Outlook) -> list[tuple[int, int]]:
    """Section 5 for one row, in plain Python, on predictions that never change."""
    canvas, found = outlook.canvas, []
    length, size = canvas.length.item(), (canvas.length - canvas.prompt).item()
    masked = canvas.masked[0].nonzero()[0].tolist()
    while masked:
        s = masked[0]
        rest = length - s
        w = min(floor(planner.share * size), rest)
        delimiters = [i for i in masked if i < s + w and int(outlook.token[0, i]) == LINE]
        q = max(delimiters, key=lambda i: (float(outlook.conf[0, i]), -i), default=None)
        if q is not None and float(outlook.conf[0, q]) >= torch.tensor(planner.threshold):
            end = q + 1
        else:
            end = s + min(planner.block_length or rest, rest)
        found.append((s, end))
        masked = [i for i in masked if i >= end]
    return found


@settings(max_examples=60)
@given(
    st.builds(
        ada,
        st.sampled_from([None, 1, 2, 4, 7, 40]),
        share=st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]),
        threshold=st.sampled_from([0.0, 0.25, 0.3, 0.7, 1.0]),
    ),
    st.integers(0, 2**32),
    st.integers(1, 3),
)
def test_blocks_are_those_of_the_text(planner, seed, rows):
    outlook = random_outlook(seed, rows)
    together = decode(planner, outlook)
    for b in range(rows):
        mine = [
            (n.start[i].item(), n.end[i].item())
            for c, _, n in together
            for i in range(len(c.row))
            if int(c.row[i]) == b
        ]
        assert list(dict.fromkeys(mine)) == literal(planner, outlook.only(b))


def test_a_block_ends_behind_the_most_confident_delimiter():
    outlook = outlook_of([3, 6, 3, 6, 3, 3, 6, 3], [0.9, 0.5, 0.9, 0.6, 0.9, 0.9, 0.55, 0.9], 2, 32)
    assert first_block(ada(), outlook) == (2, 6)


def test_of_equal_delimiters_the_first_counts():
    assert first_block(ada(), outlook_of([3, 6, 3, 6], [0.9] * 4, length=16)) == (0, 2)


def test_a_confidence_of_exactly_the_threshold_is_enough():
    for conf, end in ((0.3, 2), (0.2999, 4)):
        assert first_block(ada(), outlook_of([3, 6], [0.9, conf], length=16)) == (0, end)


def test_a_delimiter_right_at_the_start_makes_a_block_of_one_token():
    assert first_block(ada(), outlook_of([6, 3, 3, 3], [0.9] * 4, length=16)) == (0, 1)


def test_delimiters_count_only_inside_the_share_of_the_answer():
    for at, end in ((3, 4), (4, 8)):  # 16 / 4: positions 0 to 3 are looked at
        tokens = [3] * 16
        tokens[at] = LINE
        assert first_block(ada(8), outlook_of(tokens, [0.9] * 16)) == (0, end)


def test_a_block_may_be_longer_than_the_default():
    tokens = [3] * 32
    tokens[7] = LINE
    assert blocks(ada(2), outlook_of(tokens, [0.9] * 32))[:2] == [(0, 8), (8, 10)]


def test_the_search_shrinks_at_the_end_of_the_row_and_the_last_block_is_short():
    outlook = outlook_of([3, 3, 3, 6, 3, 3, 6], [0.9] * 7)
    assert blocks(ada(5, share=0.6), outlook) == [(0, 4), (4, 7)]
    assert blocks(ada(5, share=0.01), outlook) == [(0, 5), (5, 7)]


def test_without_a_default_length_a_block_without_a_delimiter_is_the_rest():
    assert blocks(ada(None), outlook_of([3, 3, 3], [0.9] * 3)) == [(0, 3)]


def test_end_of_text_is_no_delimiter():
    assert first_block(ada(), outlook_of([1, 2, 3, 3], [0.9] * 4, length=16)) == (0, 4)


def test_the_most_likely_token_counts_and_not_the_drawn_one():
    outlook = outlook_of([3, 3, 3, 3], [0.9] * 4, length=16)
    planner = ada()
    state = started(planner, outlook.canvas)
    windows = planner.windows(outlook.canvas, state.values)
    view = outlook.view(outlook.canvas, windows)
    best = view.token.clone()
    best[0, 1] = LINE
    view = replace(view, best=best, conf=torch.zeros_like(view.conf))
    assert narrowed(planner, view, windows, state).end.tolist() == [[2]]
    view = replace(view, best=view.token, token=best)
    assert narrowed(planner, view, windows, state).end.tolist() == [[4]]


def test_an_open_block_stays_as_it_is_whatever_the_predictions():
    planner, outlook = ada(), outlook_of([3, 3, 3, 3], [0.9] * 4, length=16)
    state = started(planner, outlook.canvas)
    plan(planner, outlook, state)
    later = outlook_of([6, 6, 6, 6], [0.9] * 4, length=16)
    later = replace(later, canvas=committed_at(later.canvas, 0, [0]))
    windows, narrow = plan(planner, later, state)
    assert (windows.start.tolist(), windows.end.tolist()) == ([[0]], [[4]])
    assert narrow.end.tolist() == [[4]]


def vocabulary(size: int = 13) -> SimpleNamespace:
    return SimpleNamespace(pieces=FakeText.pieces[:size])


def test_bind_finds_every_token_that_holds_the_delimiter():
    assert AdaBlock().bind(vocabulary()).delimiter_ids == (10, 11)  # "\n" and "x\ny"
    assert AdaBlock(exact=True).bind(vocabulary()).delimiter_ids == (10,)
    assert AdaBlock(delimiter="a").bind(vocabulary()).delimiter_ids == (3, 8)
    assert AdaBlock(delimiter_ids=(7,)).bind(vocabulary()).delimiter_ids == (7,)


def test_bind_refuses_a_delimiter_that_no_token_holds():
    with pytest.raises(ValueError, match=r"delimiter='\\n'"):
        AdaBlock().bind(vocabulary(10))


def test_a_planner_that_was_not_bound_says_so():
    outlook = outlook_of([3], [0.5])
    with pytest.raises(ValueError, match="bound"):
        decode(AdaBlock(), outlook)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"share": 1.1}, "share=1.1"),
        ({"share": float("nan")}, "share=nan"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"delimiter": ""}, "delimiter=''"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        AdaBlock(**options)


def test_the_forward_that_plans_is_the_first_step_of_its_block():
    """Sure tokens: every block takes one forward, and there is none besides."""
    lines = {3: 10, 9: 10}
    model = FakeModel(scripted({i: lines.get(i, 3) for i in range(16)}))
    config = DecodeConfig(16, 4, planner="adablock", history=True)
    (output,) = Engine(model, FakeText()).generate([[]], config, chat=False)
    spans = [(c.positions[0], c.positions[-1] + 1) for c in output.history]
    assert spans == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 16)]
    assert output.nfe == model.calls == 5
