"""The cache with gaps against lists of what each row should hold."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.verify.target.cache import SMALLEST, Slots, capacity

SIZES = [(2, 3), (1, 5)]  # heads and width of the two layers


class Shadow:
    """A `Slots` beside one list per row of (position, keys and values of all layers)."""

    def __init__(self, rows, horizon=None, share=0.5):
        self.slots = Slots(rows, torch.device("cpu"), horizon, share)
        self.rows = [[] for _ in range(rows)]
        self.generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def push(self, keep):
        """A pass of random keys and values; its kept slots are the rows' next tokens."""
        keep = np.asarray(keep, bool)
        rows, width = keep.shape
        self.slots.reserve(width)
        start = self.slots.used
        pos = torch.full((rows, width), -7)
        states = [self._states(rows, width, *size) for size in SIZES]
        for index, (keys, values) in enumerate(states):
            seen = self.slots.update(keys, values, index)
            for found, written in zip(seen, (keys, values)):
                assert found.shape[2] == start + width
                assert torch.equal(found[:, :, start:], written)
        for row in range(rows):
            for column in np.flatnonzero(keep[row]):
                pos[row, column] = len(self.rows[row])
                token = [s[row, :, column] for pair in states for s in pair]
                self.rows[row].append((len(self.rows[row]), token))
        self.slots.commit(pos, keep)

    def _states(self, rows, width, heads, size):
        shape = (rows, heads, width, size)
        return [torch.randn(shape, generator=self.generator) for _ in range(2)]

    def select(self, rows):
        self.slots.select(rows)
        self.rows = [self.rows[row] for row in rows]

    def visible(self, row):
        """(position, keys and values of all layers) of a row's valid slots, in slot order."""
        used = self.slots.used
        slots = torch.nonzero(self.slots.valid[row, :used])[:, 0].tolist()
        states = [s for layer in self.slots.layers for s in (layer.keys, layer.values)]
        return [
            (int(self.slots.pos[row, i]), [s[row, :, i].clone() for s in states]) for i in slots
        ]

    def check(self):
        slots = self.slots
        assert slots.lengths.tolist() == [len(row) for row in self.rows]
        assert slots.used == max(slots.ends, default=0)
        assert slots.used <= slots.valid.shape[1] == slots.pos.shape[1]
        for row, tokens in enumerate(self.rows):
            found = self.visible(row)
            first = len(tokens) - len(found)
            if slots.horizon is None:
                assert first == 0
            assert first <= max(0, len(tokens) - slots.horizon + 1 if slots.horizon else 0)
            for (place, states), (expected, token) in zip(found, tokens[first:], strict=True):
                assert place == expected
                assert all(torch.equal(a, b) for a, b in zip(states, token))
            if found:
                last = torch.nonzero(slots.valid[row, : slots.used])[-1]
                assert slots.ends[row] == last + 1


def keeps(rows):
    """Passes of 1 to 9 queries; kept columns are arbitrary, also none."""
    return st.integers(1, 9).flatmap(
        lambda width: st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows
        )
    )


@settings(max_examples=40)
@given(data=st.data(), horizon=st.sampled_from([None, 2, 5, 20]))
def test_each_row_holds_its_tokens_in_order_whatever_happens(data, horizon):
    shadow = Shadow(3, horizon, data.draw(st.sampled_from([0.0, 0.5, 1.0])))
    for _ in range(data.draw(st.integers(1, 12))):
        rows = len(shadow.rows)
        step = data.draw(st.sampled_from(["push", "push", "push", "compact", "select"]))
        if step == "push":
            shadow.push(data.draw(keeps(rows)))
            gaps = shadow.slots.used - shadow.slots.longest
            assert gaps <= shadow.slots.share * shadow.slots.used
        elif step == "compact":
            shadow.slots.compact()
            assert shadow.slots.used == shadow.slots.longest
        elif rows > 1:
            shadow.select(data.draw(st.permutations(range(rows)))[: data.draw(st.integers(1, 3))])
        shadow.check()


def test_a_chain_leaves_no_holes():
    shadow = Shadow(1)
    for kept in (1, 4, 2, 5):
        shadow.push([[True] * kept + [False] * (5 - kept)])
        assert shadow.slots.whole
    assert shadow.slots.used == 12


def test_rows_of_equal_length_are_whole_only_without_holes():
    shadow = Shadow(2, share=1.0)
    shadow.push([[True, True], [True, True]])
    assert shadow.slots.whole
    shadow.push([[True, False, True], [False, True, True]])
    assert not shadow.slots.whole


def test_a_row_that_lost_what_no_window_sees_is_not_whole():
    shadow = Shadow(1, horizon=4, share=1.0)
    shadow.push([[True] * 3])
    assert shadow.slots.whole
    shadow.push([[True] * 2])
    shadow.slots.compact()
    shadow.push([[True, False, False, True]])
    assert shadow.slots.used == shadow.slots.lengths[0] == 7
    assert not shadow.slots.whole
    shadow.check()


def test_compacting_keeps_every_bit_and_twice_is_once():
    shadow = Shadow(2, share=1.0)
    generator = np.random.default_rng(0)
    for _ in range(6):
        shadow.push(generator.random((2, 7)) < 0.4)
    before = [shadow.visible(row) for row in range(2)]
    used = shadow.slots.used
    shadow.slots.compact()
    assert shadow.slots.used == max(len(row) for row in shadow.rows) < used
    shadow.check()
    shadow.slots.compact()
    shadow.check()
    for row in range(2):
        for (place, states), (then, old) in zip(shadow.visible(row), before[row], strict=True):
            assert place == then
            assert all(torch.equal(a, b) for a, b in zip(states, old))


def test_memory_doubles_and_keeps_its_content():
    shadow, capacities = Shadow(2), set()
    for _ in range(3 * SMALLEST // 5 + 1):
        shadow.push([[True] * 5, [True] * 5])
        shadow.check()
        budget = shadow.slots.valid.shape[1]
        assert {s.shape[2] for layer in shadow.slots.layers for s in (layer.keys,)} == {budget}
        capacities.add(budget)
    assert capacities == {SMALLEST, 2 * SMALLEST, 4 * SMALLEST}


def test_a_step_within_the_memory_moves_nothing():
    shadow = Shadow(1)
    shadow.push([[True]])
    places = [layer.keys.data_ptr() for layer in shadow.slots.layers]
    for _ in range(SMALLEST - 1):
        shadow.push([[True]])
    assert places == [layer.keys.data_ptr() for layer in shadow.slots.layers]


def test_full_memory_is_compacted_before_it_grows():
    shadow = Shadow(1, share=1.0)
    shadow.push([[True, False] * (SMALLEST // 2 - 1) + [True]])
    assert shadow.slots.used == SMALLEST - 1
    shadow.push([[True] * 4])
    assert shadow.slots.valid.shape[1] == SMALLEST
    assert shadow.slots.used == SMALLEST // 2 + 4
    shadow.check()


def test_few_holes_do_not_make_every_step_compact():
    shadow = Shadow(1, share=1.0)
    shadow.push([[True, False] * 4 + [True] * (SMALLEST - 8)])
    shadow.push([[True] * 4])
    assert shadow.slots.used == SMALLEST + 4
    assert shadow.slots.valid.shape[1] == 2 * SMALLEST


def test_what_no_window_sees_is_dropped():
    shadow = Shadow(1, horizon=8)
    for _ in range(200):
        shadow.push([[True]])
        shadow.check()
    assert len(shadow.visible(0)) < 16
    assert shadow.slots.valid.shape[1] == SMALLEST


def test_slots_behind_the_rows_that_stay_are_free_again():
    shadow = Shadow(2, share=1.0)
    shadow.push([[True, True, False, False], [True] * 4])
    shadow.select([0])
    assert shadow.slots.used == 2
    assert shadow.slots.whole
    shadow.push([[True]])
    shadow.check()


def test_no_row_is_left():
    shadow = Shadow(2)
    shadow.push([[True, False], [True, True]])
    shadow.select([])
    assert shadow.slots.used == 0
    shadow.check()


def test_the_memory_is_freed_with_the_last_reference():
    gc.disable()
    try:
        shadow = Shadow(1)
        shadow.push([[True]])
        layer = weakref.ref(shadow.slots.layers[0])
        del shadow
        assert layer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("slots", "expected"), [(0, SMALLEST), (64, 64), (65, 128), (128, 128), (129, 256)]
)
def test_capacity_is_a_power_of_two(slots, expected):
    assert capacity(slots) == expected
