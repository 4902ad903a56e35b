"""KV cache: fixed places and slots, rows that join, move and leave, and what it refuses."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm.cache.kv import CacheError, KVCache
from dllm.cache.plan import Access, ForwardPlan
from tests.cache.models import Watched, decoder, run

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
    live = torch.from_numpy(kept.live)
    assert torch.equal(live, written > 0)
    assert kept.clock.tolist() == clock
    age = torch.tensor(clock)[:, None] - written
    assert torch.equal(torch.from_numpy(kept.age)[live], age[live].long())
    keys = kept.k[:, :, :, :LENGTH]
    live = live[None, :, None, :, None].expand_as(keys)
    assert torch.equal(keys[live], expected[None, :, None, :, None].expand_as(keys)[live])
    assert torch.equal(kept.v[:, :, :, :LENGTH][live], -keys[live])


def test_rows_that_join_and_leave_never_move_the_memory():
    model, seen = decoder(), []

    class Noting(Watched):
        def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
            assert kv is not None
            seen.append((kv.k.data_ptr(), kv.v.data_ptr(), kv.k.shape, kv.batch, kv.length))
            return super().__call__(ids, plan, kv)

    prompts = [[5, 6, 7, 8], [9], [3, 4]]
    run(Noting(model), prompts, max_new_tokens=12, cache="dual", sampler="threshold:threshold=0.3")
    assert len({where[:3] for where in seen}) == 1
    assert len({where[3] for where in seen}) > 1, "no row has left before the others"
    kept = kv()
    before = kept.k.data_ptr(), kept.v.data_ptr()
    kept.keep_extra("hidden", (5,), torch.float32)
    before += (kept.extra["hidden"].data_ptr(),)
    for change in (
        lambda: write(kept, plan([[0, 9]] * BATCH), 1.0),
        lambda: kept.move(2, 0),
        lambda: kept.use(1, 6),
        lambda: kept.keep_extra("hidden", (5,), torch.float32),
        lambda: kept.begin(1),
        lambda: kept.use(BATCH, LENGTH),
        lambda: kept.drop(np.array([3, 0, LENGTH])),
    ):
        change()
        after = kept.k.data_ptr(), kept.v.data_ptr(), kept.extra["hidden"].data_ptr()
        assert after == before


def test_what_a_row_that_begins_finds_is_not_readable(monkeypatch):
    monkeypatch.setenv("DLLM_CHECK_CACHE", "1")
    kept = kv()
    write(kept, plan([[0, 1, 8]] * BATCH), 1.0)
    kept.begin(1)
    assert kept.live.any(1).tolist() == [True, False, True]
    assert kept.clock.tolist() == [1, 0, 1]
    assert not kept.written[1].any()
    access = kept.open(plan([[3]], rows=torch.tensor([1])))
    assert access.visible.nonzero().tolist() == [[0, 3]]
    for row, shown in ((0, 8), (1, 8)):
        hand = Access(torch.tensor([[3]]), torch.tensor([row]), LENGTH)
        mask = (torch.arange(LENGTH) == shown)[None, None, None]
        if row == 0:
            kept.check_read(1, hand, mask)
        else:
            with pytest.raises(CacheError, match="reads slot 8 of row 0: it was never written"):
                kept.check_read(1, hand, mask)


@pytest.mark.parametrize("block", [None, 4])
def test_a_place_that_held_nan_is_as_good_as_a_new_one(block):
    """A hidden slot weighs 0, and 0 times NaN is NaN."""
    model, size = decoder(block=block), 8
    ids = torch.tensor([[3, 4, 6, 7, 8, 9, 10, 11], [4, 4, 7, 8, 8, 3, 10, 5]])
    used, fresh = model.new_kv(2, size), model.new_kv(2, size)
    both = ForwardPlan.full(size, 2)
    with torch.no_grad():
        model(ids, both, used)
    broken = used.keep_extra("hidden", (5,), torch.float64)
    for tensor in (used.k, used.v, used.extra["hidden"]):
        tensor[:, 0] = torch.nan
    one = torch.tensor([1])
    with torch.no_grad():
        model(ids[1:], ForwardPlan(both.pos[1:], both.head[1:], rows=one), fresh)
    other = used.k[:, 1].clone()
    used.begin(0)
    assert not broken[:, 0].any()
    assert torch.equal(used.k[:, 1], other)
    with torch.no_grad():
        for where in ([[1, 4], [2, 5]], [[0, 2], [6, 7]]):
            few = ForwardPlan(torch.tensor(where), torch.tensor([[0, 1]] * 2))
            same, expected = (model(ids, few, kept) for kept in (used, fresh))
            torch.testing.assert_close(same, expected, rtol=0, atol=1e-12)


def test_a_place_that_no_row_has_used_is_not_written_to():
    """Zeroing it would make its memory real."""
    kept = kv()
    kept.k[:, 1] = 7.0
    kept.begin(1)
    assert kept.k[:, 1].eq(7).all()


def test_a_row_that_moves_takes_all_it_has_and_nothing_else():
    kept = kv(check=True)
    for row in range(BATCH):
        for value in range(row + 1):
            write(kept, plan([[row, row + value]], rows=torch.tensor([row])), 10.0 * row + value)
    hidden = kept.keep_extra("hidden", (5,), torch.float32)
    hidden.copy_(torch.arange(hidden.numel()).view_as(hidden))
    tensors = (kept.k, kept.v, kept.seen, kept.extra["hidden"])
    before = [t.clone() for t in tensors]
    host = [a.copy() for a in (kept.live, kept.written, kept.clock)]
    kept.move(2, 0)
    for now, was in zip(tensors, before, strict=True):
        moved = was[:, [2, 1, 2]]
        slots = 3 if now.ndim == 5 else 2  # but for the spare one, which nobody reads
        real = now.narrow(slots, 0, LENGTH), moved.narrow(slots, 0, LENGTH)
        assert torch.equal(*real)
    for array, old in zip((kept.live, kept.written, kept.clock), host, strict=True):
        assert array.tolist() == old[[2, 1, 2]].tolist()
    assert kept.clock.tolist() == [3, 2, 3]


def test_slots_behind_a_rows_end_are_dropped():
    kept = kv()
    write(kept, plan([[0, 1, 8]] * BATCH), 1.0)
    write(kept, plan([[2]], rows=torch.tensor([2])), 2.0)
    kept.use(BATCH, 9)
    kept.drop(np.array([LENGTH, 1, 3]))
    assert [row.nonzero()[0].tolist() for row in kept.live] == [[0, 1, 8], [0], [0, 1, 2]]
    assert kept.clock.tolist() == [1, 1, 2]


def test_fewer_rows_and_slots_are_the_first_ones():
    kept = kv()
    write(kept, plan([[0, 5]] * BATCH), 1.0)
    kept.use(2, 6)
    assert kept.live.shape == kept.written.shape == kept.age.shape == (2, 6)
    assert kept.clock.shape == (2,)
    assert kept.keep_extra("hidden", (5,), torch.float32).shape == (LAYERS, 2, 7, 5)
    write(kept, plan([[4], [4]], valid=torch.tensor([[True], [False]])), 3.0)
    assert kept.k[1, :2, 0, [0, 4, 5], 0].tolist() == [[1, 3, 1], [1, 0, 1]]
    keys, values = kept.read(1, kept.open(plan([[1], [1]])))
    assert keys.shape == values.shape == (2, HEADS, 6, SIZE)
    kept.use(BATCH, LENGTH)
    assert not kept.k[:, 2, :, 4].any()


def test_nbytes_are_those_of_all_slots():
    kept = kv(dtype=torch.bfloat16)
    assert kept.nbytes == 2 * LAYERS * BATCH * HEADS * (LENGTH + 1) * SIZE * 2
    before = kept.nbytes
    kept.keep_extra("hidden", (5,), torch.float32)
    assert kept.nbytes == before + LAYERS * BATCH * (LENGTH + 1) * 5 * 4 == kept.reserved


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_becomes_real_only_where_something_is_written():
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()

    places, length, size = 16, 4096, 64
    before = resident()
    kept = KVCache(LAYERS, places, HEADS, length, size)
    hidden = kept.keep_extra("hidden", (size,), torch.float32)
    row = kept.nbytes // places
    assert kept.nbytes > 2**27
    for place in range(places):
        kept.begin(place)
    assert resident() - before < row
    kept.k[:, 3], kept.v[:, 3], hidden[:, 3] = 1.0, 1.0, 1.0
    # a page may be a large one, so that more than the row becomes real
    assert 0.9 * row < resident() - before < kept.nbytes / 4
    assert not kept.k[:, 2, :, 1000].any()


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
