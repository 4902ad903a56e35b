"""The store: what is kept where, how far it grows, what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.cache.kv import CacheError, KVCache
from dllm.cache.plan import ForwardPlan
from tests.cache.models import decoder, run

LAYERS, BATCH, HEADS, LENGTH, SIZE = 2, 3, 2, 10, 4


def kv(**options: object) -> KVCache:
    return KVCache(LAYERS, BATCH, HEADS, LENGTH, SIZE, **options)  # type: ignore[arg-type]


def plan(pos: list[list[int]], **fields: object) -> ForwardPlan:
    where = torch.tensor(pos)
    return ForwardPlan(where, where, **fields)  # type: ignore[arg-type]


def write(kept: KVCache, where: ForwardPlan, value: float) -> None:
    """One forward whose keys and values are all `value`."""
    access = kept.open(where)
    new = torch.full((len(where.pos), HEADS, where.pos.shape[1], SIZE), float(value))
    for layer in range(LAYERS):
        kept.update(layer, access, new, -new)


@given(st.data())
def test_a_slot_holds_what_was_written_last_and_knows_when(data):
    kept, expected = kv(), torch.zeros(BATCH, LENGTH)
    written, clock = torch.zeros(BATCH, LENGTH), [0] * BATCH
    for value in range(1, 6):
        rows = data.draw(st.lists(st.integers(0, BATCH - 1), min_size=1, unique=True))
        rows = list(range(BATCH)) if data.draw(st.booleans()) else rows
        size = data.draw(st.integers(1, LENGTH))
        pos = [data.draw(st.permutations(range(LENGTH)))[:size] for _ in rows]
        valid = torch.tensor([[data.draw(st.booleans()) for _ in range(size)] for _ in rows])
        chosen = None if len(rows) == BATCH and rows == sorted(rows) else torch.tensor(rows)
        write(kept, plan(pos, valid=valid, rows=chosen), value)
        for i, row in enumerate(rows):
            clock[row] += 1
            for where, real in zip(pos[i], valid[i].tolist(), strict=True):
                if real:
                    expected[row, where], written[row, where] = value, clock[row]
    assert torch.equal(kept.live, written > 0)
    age = torch.tensor(clock)[:, None] - written
    assert torch.equal(kept.age[kept.live], age[kept.live].long())
    keys = kept.k[:, :, :, :LENGTH]
    live = kept.live[None, :, None, :, None].expand_as(keys)
    assert torch.equal(keys[live], expected[None, :, None, :, None].expand_as(keys)[live])
    assert torch.equal(kept.v[:, :, :, :LENGTH][live], -keys[live])


def test_it_grows_in_steps_and_keeps_what_it_has(monkeypatch):
    monkeypatch.setattr("dllm.cache.kv.STEP", 4)
    kept = kv()
    assert kept.slots == 0
    write(kept, plan([[0, 1]] * BATCH, extent=2), 1.0)
    assert kept.slots == 4
    write(kept, plan([[5]] * BATCH, extent=6), 2.0)
    assert kept.slots == 8
    write(kept, plan([[9]] * BATCH), 3.0)
    assert kept.slots == LENGTH
    values = kept.k[0, 0, 0, :LENGTH, 0]
    assert values[[0, 1, 5, 9]].tolist() == [1, 1, 2, 3]


def test_rows_and_slots_are_dropped_together():
    kept = kv()
    write(kept, plan([[0, 1, 8]] * BATCH), 1.0)
    write(kept, plan([[2]], rows=torch.tensor([2])), 2.0)
    kept.keep_extra("hidden", (5,), torch.float32)
    kept.keep(torch.tensor([2]), 6)
    assert kept.live.tolist() == [[True, True, True, False, False, False]]
    assert kept.clock.tolist() == [2]
    assert kept.extra["hidden"].shape == (LAYERS, 1, 6, 5)
    write(kept, plan([[5]]), 3.0)
    assert kept.k[1, 0, 0, [0, 2, 5], 0].tolist() == [1, 2, 3]


def test_nbytes_are_those_of_the_slots_allocated():
    kept = kv(dtype=torch.bfloat16)
    kept.grow(LENGTH)
    assert kept.nbytes == 2 * LAYERS * BATCH * HEADS * (LENGTH + 1) * SIZE * 2
    before = kept.nbytes
    kept.keep_extra("hidden", (5,), torch.float32)
    assert kept.nbytes == before + LAYERS * BATCH * LENGTH * 5 * 4


def test_a_limit_is_checked_before_anything_is_allocated():
    full = 2 * LAYERS * BATCH * HEADS * (LENGTH + 1) * SIZE * 4
    kv(limit=full)
    with pytest.raises(CacheError, match=r"0.0 MiB are allowed: decode fewer rows"):
        kv(limit=full - 1)
    kept = kv(limit=full)
    with pytest.raises(CacheError):
        kept.keep_extra("hidden", (1,), torch.float32)
    assert not kept.extra


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_a_request_that_needs_too_much_is_refused_before_its_first_forward(cfg_scale):
    model = decoder()
    options = {"max_new_tokens": 64, "cache": "dual", "cfg_scale": cfg_scale}
    with pytest.raises(CacheError, match=r"cache takes .* MiB, but at most 0.0 MiB are allowed"):
        run(model, [[5]], **options, cache_mib=0.01)
    assert run(model, [[5]], **options, cache_mib=1)


def test_the_checking_mode_finds_a_read_of_what_was_never_written(monkeypatch):
    monkeypatch.setenv("DLLM_CHECK_CACHE", "1")
    model = decoder()
    kept = model.new_kv(1, 4)
    ids = torch.tensor([[5, 6, 7, 8]])
    model(ids, plan([[0, 1]]), kept)
    kept.live[0, 3] = True  # as a policy's bug would say
    with pytest.raises(CacheError, match="layer 0 reads slot 3 of row 0: it was never written"):
        model(ids, plan([[0]]), kept)
    monkeypatch.setenv("DLLM_CHECK_CACHE", "0")
    lax = model.new_kv(1, 4)
    lax.live[0, 3] = True
    model(ids, plan([[0]]), lax)
