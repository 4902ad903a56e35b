"""Without a cache a plan is the whole canvas, and says which of it is padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dllm.cache.batching import plans
from dllm.cache.none import NoCache
from dllm.decoding.canvas import Canvas, positions
from tests.cache.steps import step_of


@given(
    st.lists(st.lists(st.just(3), max_size=5), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([0, 1]),
)
def test_the_plan_queries_every_position_once(batch, size, shift):
    canvas = Canvas.from_prompts(batch, size, mask_id=5)
    step = step_of(canvas, shift=shift)
    pos, _ = positions(step.want)
    query = NoCache().query(step, {})
    (plan,) = plans(query, step, step.want, pos, stored=False, buckets=False)
    width = canvas.ids.shape[1]
    assert plan.pos.tolist() == [list(range(width))] * len(batch)
    assert plan.write is plan.read is None
    lengths = [len(prompt) + size for prompt in batch]
    if len(set(lengths)) == 1:
        assert plan.valid is None
    else:
        assert plan.valid.tolist() == [[i < length for i in range(width)] for length in lengths]
    for row, prompt in enumerate(batch):
        for k, head in enumerate(plan.head[row].tolist()):
            # the row that predicts position p is p - shift; nothing comes before position 0
            assert plan.pos[row, head] == max(len(prompt) + k - shift, 0)
