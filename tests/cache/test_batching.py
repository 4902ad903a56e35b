"""From masks of positions to forwards: buckets, rows apart, the shift."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dllm.cache.batching import HostPlan, bucket, opened
from dllm.cache.batching import plans as batched
from dllm.cache.kv import KVCache
from dllm.cache.policy import Query, Step
from dllm.decoding.canvas import Array, Canvas, positions
from tests.cache.steps import step_of


def mask(rows: list[list[int]], width: int) -> Array:
    found = np.zeros((len(rows), width), dtype=np.bool_)
    for row, chosen in enumerate(rows):
        found[row, chosen] = True
    return found


def plans(query: Query, step: Step, *, stored: bool, buckets: bool) -> list[HostPlan]:
    """The forwards that predict all that the step wants."""
    pos, _ = positions(step.want)
    return batched(query, step, step.want, pos, stored=stored, buckets=buckets)


@st.composite
def cases(draw):
    prompts = draw(st.lists(st.lists(st.just(3), max_size=6), min_size=1, max_size=4))
    canvas = Canvas.from_prompts(prompts, draw(st.integers(1, 12)), mask_id=5)
    size = canvas.ids.shape[1]
    lengths = canvas.length.tolist()
    chosen = [
        list(range(n)) if draw(st.booleans()) else draw(st.lists(st.integers(0, n - 1)))
        for n in lengths
    ]
    live = [draw(st.lists(st.integers(0, n - 1))) for n in lengths]
    age = np.array([[draw(st.integers(0, 5)) for _ in range(size)] for _ in lengths])
    step = step_of(canvas, shift=draw(st.sampled_from([0, 1])), live=mask(live, size), age=age)
    return Query(mask(chosen, size), stale=draw(st.booleans())), step, draw(st.booleans())


@given(cases())
def test_every_row_computes_what_was_asked_and_what_predicts(case):
    query, step, buckets = case
    found = plans(query, step, stored=True, buckets=buckets)
    seen = []
    for plan in found:
        rows = range(len(plan.pos)) if plan.rows is None else plan.rows.tolist()
        seen += rows
        for i, row in enumerate(rows):
            real = [True] * plan.pos.shape[1] if plan.valid is None else plan.valid[i].tolist()
            computed = [p for p, r in zip(plan.pos[i].tolist(), real, strict=True) if r]
            assert computed == sorted(set(computed)), "a position twice"
            wanted = step.want[row].nonzero()[0].tolist()
            needed = {max(p - step.shift, 0) for p in wanted}
            asked = set(query.pos[row].nonzero()[0].tolist()) | needed
            inside = set(range(int(step.canvas.length[row])))
            assert asked <= set(computed) <= inside
            if not (buckets and query.stale):
                assert set(computed) == asked
            elif set(computed) != inside:  # filled up to the row's own bucket, stalest first
                more = set(computed) - asked
                live = set(step.live[row].nonzero()[0].tolist())
                assert more <= live
                left = (live & inside) - set(computed)
                assert len(computed) == bucket(len(asked)) or not left
                ages = step.age[row].tolist()
                if more and left:
                    youngest = min((ages[p], -p) for p in more)
                    assert youngest > max((ages[p], -p) for p in left)
            heads = plan.head[i].tolist()[: len(wanted)]
            assert [computed[h] for h in heads] == [max(p - step.shift, 0) for p in wanted]
            assert plan.extent > max(computed)
            assert not step.live[row, plan.extent :].any()
            assert set(plan.written[i].nonzero()[0].tolist()) == set(computed)
            assert not plan.whole or set(computed) == inside
        if buckets and plan.valid is not None and len(found) == 1:
            width = plan.pos.shape[1]
            assert width == bucket(width) or width == step.canvas.ids.shape[1]
    assert sorted(seen) == list(range(len(step.start)))


@given(cases())
def test_rows_that_compute_everything_have_a_forward_of_their_own(case):
    query, step, _ = case
    found = plans(query, step, stored=True, buckets=False)
    needed = np.zeros_like(step.want)
    needed[:, : needed.shape[1] - step.shift] = step.want[:, step.shift :]
    needed[:, 0] |= step.want[:, 0]
    whole = ((query.pos | needed) == step.inside).all(1)
    assert len(found) == len(set(whole.tolist()))
    for plan in found:
        rows = np.arange(len(whole)) if plan.rows is None else plan.rows
        assert set(whole[rows].tolist()) == {plan.whole}


def test_without_a_kv_cache_all_rows_are_one_forward():
    canvas = Canvas.from_prompts([[3], [3, 3, 3]], 2, mask_id=5)
    step = step_of(canvas)
    for buckets in (False, True):
        (plan,) = plans(Query(canvas.masked), step, stored=False, buckets=buckets)
        assert plan.pos.tolist() == [list(range(5))] * 2
        assert plan.valid is not None
        assert plan.valid.sum(1).tolist() == [3, 5]


def test_buckets_are_powers_of_two_from_eight():
    assert [bucket(n) for n in (1, 8, 9, 16, 17, 100, 128)] == [8, 8, 16, 16, 32, 128, 128]


def test_a_policys_masks_follow_the_rows_of_each_forward():
    canvas = Canvas.from_prompts([[3], [3, 3]], 2, mask_id=5)
    step = step_of(canvas, live=canvas.known)
    pos = mask([[0, 1, 2], [2, 3]], 4)
    write, read = mask([[0], [3]], 4), mask([[1], [0, 2]], 4)
    query = Query(pos, write=write, read=read)
    full, part = plans(query, step, stored=True, buckets=False)
    assert full.rows.tolist() == [0]
    assert part.rows.tolist() == [1]
    assert part.pos.tolist() == [[2, 3]]
    assert part.write.tolist() == [[False, True]]
    assert part.written.tolist() == [[False, False, False, True]]
    assert part.read.tolist() == [[True, False, True, False]]


@given(cases(), st.data())
def test_the_access_writes_and_reads_what_the_plan_says(case, data):
    """Against sets: slots that do not write are the spare one, dead ones are not visible."""
    query, step, buckets = case
    rows, size = step.want.shape
    kv = KVCache(1, rows, 1, size, 2)
    live = [set(step.live[row].nonzero()[0].tolist()) for row in range(rows)]
    kv.wrote(None, step.live)

    def some() -> Array | None:
        own = [data.draw(st.lists(st.integers(0, size - 1))) for _ in range(rows)]
        return mask(own, size) if data.draw(st.booleans()) else None

    query = Query(query.pos, write=some(), read=some(), stale=query.stale)
    for plan in plans(query, step, stored=True, buckets=buckets):
        done = opened(plan, [kv])
        of = range(rows) if plan.rows is None else plan.rows.tolist()
        for i, row in enumerate(of):
            slots = (plan.pos if done.slots is None else done.slots)[i].tolist()
            expected = []
            for q, p in enumerate(plan.pos[i].tolist()):
                real = plan.valid is None or plan.valid[i, q]
                writes = real and (query.write is None or query.write[row, p])
                expected.append(p if writes else size)
                live[row] |= {p} if writes else set()
            assert slots == expected
            seen = {p for p in live[row] if query.read is None or query.read[row, p]}
            visible = range(plan.extent)
            if done.visible is not None:
                visible = done.visible[i].nonzero()[0].tolist()
            assert set(visible) == seen
            assert set(kv.live[row].nonzero()[0].tolist()) == live[row]
