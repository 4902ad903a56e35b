"""The extremely greedy oracle: everything that is right, and always some progress."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.samplers.egp import ExtremelyGreedy
from dllm.samplers.rule import commits
from tests.samplers.views import VOCAB, alone, hand_made, ranked, rows_of, views


def references(rows: int, length: int, seed: int) -> tuple[tuple[int, ...], ...]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (rows, length), generator=draw)
    return tuple(map(tuple, ids.tolist()))


@given(views(), st.integers(0, 2**31))
def test_a_batch_decides_as_the_text_says_row_by_row(view, seed):
    answers = references(len(view.row) + 2, 40, seed)
    rule = ExtremelyGreedy(answers)
    selection = rule.select(view)
    chosen = commits(view, selection)
    assert (chosen == selection.commit).all()
    for b, row in enumerate(rows_of(view)):
        reference = answers[int(view.row[b])]
        right = {c.pos: reference[c.pos - int(view.prompt[b])] for c in row}
        expected = [c.pos for c in row if c.token == right[c.pos]] or [ranked(row)[0].pos]
        assert view.pos[b, chosen[b]].tolist() == expected
        assert selection.token[b, chosen[b]].tolist() == [right[pos] for pos in expected]
        single = alone(view, b)
        assert single.pos[rule.select(single).commit].tolist() == expected


def test_what_is_right_is_committed_and_nothing_else():
    view = hand_made([0.9, 0.1, 0.5], token=torch.tensor([[4, 3, 6]]))
    selection = ExtremelyGreedy(((5, 3, 6),)).select(view)
    assert selection.commit.tolist() == [[False, True, True]]


def test_without_a_match_the_most_confident_takes_the_references_token():
    view = hand_made([0.2, 0.9, 0.5], token=torch.tensor([[4, 4, 4]]))
    selection = ExtremelyGreedy(((5, 6, 7),)).select(view)
    assert selection.commit.tolist() == [[False, True, False]]
    assert selection.token[0, 1] == 6


def test_positions_count_from_the_end_of_the_prompt():
    view = hand_made([0.2, 0.9], [5, 6], token=torch.tensor([[1, 2]]), prompt=torch.tensor([4]))
    selection = ExtremelyGreedy(((0, 1, 3),)).select(view)
    assert selection.commit.tolist() == [[True, False]]


@given(views())
def test_the_references_own_tokens_are_all_committed(view):
    answers = [[0] * 40 for _ in range(len(view.row) + 2)]
    for b, row in enumerate(rows_of(view)):
        for c in row:
            answers[int(view.row[b])][c.pos - int(view.prompt[b])] = c.token
    selection = ExtremelyGreedy(tuple(map(tuple, answers))).select(view)
    assert torch.equal(selection.commit, view.valid)


def test_a_row_or_position_without_a_reference_is_named():
    view = hand_made([0.2, 0.9, 0.5])
    with pytest.raises(ValueError, match="row 0 holds 2 tokens, expected one at position 2"):
        ExtremelyGreedy(((5, 6),)).select(view)
    with pytest.raises(ValueError, match="row 0 holds 2 tokens, expected one at position 2"):
        ExtremelyGreedy(((5, 6), (1, 2, 3, 4))).select(view)
    with pytest.raises(ValueError, match="hold 1 rows, expected one for row 1"):
        ExtremelyGreedy(((5, 6, 7),)).select(replace(view, row=torch.tensor([1])))
    with pytest.raises(ValueError, match=r"references=\(\)"):
        ExtremelyGreedy(())
    with pytest.raises(ValueError, match=r"references=\(\(\),\)"):
        ExtremelyGreedy(((),))
