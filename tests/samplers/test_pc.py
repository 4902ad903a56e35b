"""PC-Sampler: probability, surprise and position in one score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dllm.samplers.pc import PositionCalibrated
from dllm.samplers.rule import commits, quota
from tests.samplers.views import VOCAB, alone, committed, hand_made, ranked, rows_of, views

FREQUENCY = [0.5, 0.2, 0.1, 0.1, 0.05, 0.04, 0.01, 0.0]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("pc") / "frequency.safetensors"
    save_file({"frequency": torch.tensor(FREQUENCY)}, path)
    return str(path)


@given(
    views(),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from([0.3, 1.0, 10.0]),
    st.sampled_from([None, 2, 5]),
    st.booleans(),
)
def test_a_batch_decides_as_the_text_says_row_by_row(table, view, decay, clip, steps, uses_table):
    rule = PositionCalibrated(decay, clip, steps, table if uses_table else None)
    frequency = np.float32(FREQUENCY).astype(float)
    k = quota(view, steps).tolist()
    for b, row in enumerate(rows_of(view)):
        prompt = int(view.prompt[b])

        def score(c, prompt=prompt):
            f = frequency[c.token] or np.finfo(float).tiny
            value = min(-c.conf * math.log(f), clip) if uses_table else c.conf
            return round(math.exp(-decay * (c.pos - prompt)) * value, 12)

        expected = sorted(c.pos for c in ranked(row, score, lambda c: -c.log1m)[: k[b]])
        assert committed(rule, view)[b] == expected
        assert committed(rule, alone(view, b)) == [expected]


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    path = tmp_path_factory.mktemp("pc") / "even.safetensors"
    save_file({"frequency": torch.full((VOCAB,), 1 / VOCAB, dtype=torch.float64)}, path)
    return str(path)


@given(view=views())
def test_with_one_frequency_for_all_a_table_changes_nothing(even, view):
    plain, same = PositionCalibrated(), PositionCalibrated(table=even)
    assert committed(plain, view) == committed(same, view)


def test_a_later_position_must_be_more_probable_by_the_decay():
    near = hand_made([0.5, 0.6], [10, 11], prompt=torch.tensor([10]))
    assert committed(PositionCalibrated(), near) == [[10]]
    assert committed(PositionCalibrated(decay=0.0), near) == [[11]]
    # e^-d * 0.6 > 0.5 up to d = ln 1.2
    assert committed(PositionCalibrated(decay=0.99 * math.log(1.2)), near) == [[11]]
    assert committed(PositionCalibrated(decay=1.01 * math.log(1.2)), near) == [[10]]


def test_positions_far_behind_the_prompt_keep_their_order():
    """exp(-0.25 * 8000) is 0 in float64; its logarithm is not."""
    view = hand_made([0.1, 0.9, 0.9], [8000, 8001, 9000])
    assert committed(PositionCalibrated(), view) == [[8001]]


def test_a_rare_token_beats_a_frequent_one_up_to_the_clip(table):
    view = hand_made([0.9, 0.6], token=torch.tensor([[0, 6]]))  # surprises ln 2 and ln 100
    assert committed(PositionCalibrated(0.0), view) == [[0]]
    assert committed(PositionCalibrated(0.0, table=table), view) == [[1]]
    # both above the clip: a tie, which the higher probability wins
    assert committed(PositionCalibrated(0.0, 0.5, table=table), view) == [[0]]


def test_a_token_that_never_occurred_is_the_most_surprising(table):
    view = hand_made([0.9, 0.9], token=torch.tensor([[6, 7]]))
    assert committed(PositionCalibrated(0.0, table=table), view) == [[1]]


def test_a_token_without_probability_does_not_win_by_surprise(table):
    view = hand_made([0.0, 0.1], token=torch.tensor([[7, 7]]))  # never occurred: 0 * infinity
    assert committed(PositionCalibrated(0.0, table=table), view) == [[1]]


def test_the_floor_of_one_follows_the_score():
    rule = PositionCalibrated()
    selection = rule.select(hand_made([0.5, 0.6]))
    selection.commit.zero_()
    assert commits(hand_made([0.5, 0.6]), selection).tolist() == [[True, False]]


def test_k_follows_the_steps():
    view = hand_made([0.5] * 6)
    assert [len(committed(PositionCalibrated(steps=s), view)[0]) for s in (None, 6, 3, 1)] == [
        1,
        1,
        2,
        6,
    ]


def test_equal_rules_are_equal_whatever_their_tables_hold(table):
    rule = PositionCalibrated(table=table)
    assert rule == PositionCalibrated(table=table)
    assert hash(rule) == hash(PositionCalibrated(table=table))
    assert "tensor(" not in repr(rule)


def test_a_table_for_fewer_tokens_than_the_vocabulary_is_refused(table):
    class Vocabulary:
        size, mask_id, stop_ids = len(FREQUENCY) + 1, 0, ()

    with pytest.raises(ValueError, match="holds 8 frequencies, expected one for each of 9"):
        PositionCalibrated(table=table).bind(Vocabulary())
    Vocabulary.size -= 1
    assert PositionCalibrated(table=table).bind(Vocabulary()) is not None
    assert PositionCalibrated().bind(Vocabulary()) == PositionCalibrated()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"counts": torch.ones(3)}, r"expected \['frequency'\]"),
        ({"frequency": torch.ones(3, 1)}, r"shape \[3, 1\]"),
        ({"frequency": torch.tensor([0.5, 2.0])}, "frequencies from 0 to 1"),
        ({"frequency": torch.tensor([0.5, float("nan")])}, "frequencies from 0 to 1"),
    ],
)
def test_a_bad_table_is_named(tmp_path, tensors, says):
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=says) as error:
        PositionCalibrated(table=str(path))
    assert "bad.safetensors" in str(error.value)


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        PositionCalibrated(table=str(tmp_path / "nowhere.safetensors"))
    (tmp_path / "text.safetensors").write_text("frequency")
    with pytest.raises(ValueError, match=r"text\.safetensors.*expected a safetensors file"):
        PositionCalibrated(table=str(tmp_path / "text.safetensors"))


@pytest.mark.parametrize("value", [-0.1, float("nan")])
@pytest.mark.parametrize("name", ["decay", "clip"])
def test_bad_numbers_name_their_value(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        PositionCalibrated(**{name: value})


def test_bad_steps_name_their_value():
    with pytest.raises(ValueError, match="steps=0"):
        PositionCalibrated(steps=0)
    with pytest.raises(ValueError, match="clip=0"):
        PositionCalibrated(clip=0)
