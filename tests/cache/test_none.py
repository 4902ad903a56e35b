"""Without a cache a plan is the whole canvas, and says which of it is padding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.cache.none import NoCache
from dllm.canvas import Canvas


@given(
    st.lists(st.lists(st.just(3), max_size=5), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([0, 1]),
)
def test_the_plan_queries_every_position_once(batch, size, shift):
    canvas = Canvas.from_prompts(batch, size, mask_id=5)
    want = canvas.prompt[:, None] + torch.arange(size)
    plan = NoCache().plan(canvas, want, shift)
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


def test_it_remembers_nothing():
    policy = NoCache()
    canvas = Canvas.from_prompts([[3], [3, 3]], 2, mask_id=5)
    before = policy.plan(canvas, canvas.prompt[:, None], 0)
    policy.after(canvas, torch.ones_like(canvas.known))
    policy.keep(torch.tensor([0]))
    after = policy.plan(canvas, canvas.prompt[:, None], 0)
    assert not policy.uses_store
    assert torch.equal(before.pos, after.pos)
    assert torch.equal(before.head, after.head)
