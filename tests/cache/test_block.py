"""The exact cache of block-causal models: equal to computing everything, and what it computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import ConfigError
from tests.cache.literal import Row, agree, cases, whole
from tests.cache.models import MASK, PLAIN, Watched, decoder, run, steps

prompts = st.lists(st.lists(st.sampled_from(PLAIN), max_size=9), min_size=1, max_size=3)
SAMPLERS = ["quota", "quota:steps=4", "threshold:threshold=0.6", "saber", "dream:steps=5"]
options = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 14),
        "block_length": st.sampled_from([None, 1, 2, 4, 5]),
        "planner": st.sampled_from(["fixed", "fixed:aligned=true", "multi:add=0", "slowfast"]),
        "sampler": st.sampled_from(SAMPLERS),
        "stop_rule": st.sampled_from([None, "prophet:at=2,length=3,early=1,middle=1,late=1"]),
        "cfg_scale": st.sampled_from([0.0, 0.0, 0.5]),
        "buckets": st.booleans(),
    }
)


@pytest.fixture(autouse=True)
def checking(monkeypatch):
    monkeypatch.setenv("DLLM_CHECK_CACHE", "1")


@settings(max_examples=40)
@given(prompts, st.sampled_from([0, 1]), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3), options)
def test_it_equals_computing_everything(batch, shift, block, seed, chosen):
    model = decoder(shift, block, seed)
    plain = run(model, batch, **chosen)
    cached = run(model, batch, **chosen, cache="block")
    for a, b in zip(plain, cached, strict=True):
        assert steps(a) == steps(b)
        assert (a.token_ids, a.nfe) == (b.token_ids, b.nfe)
        for one, two in zip(a.history, b.history, strict=True):
            torch.testing.assert_close(one.confidences, two.confidences, rtol=0, atol=1e-9)


@settings(max_examples=40)
@given(cases, st.sampled_from([1, 2, 4, 8]))
def test_it_is_prefill_open_block_and_commit(case, block):
    """Open blocks are computed in every forward, finished ones in one forward more."""
    stored: set[int] = set()

    def method(row: Row) -> set[int]:
        blocks = range((row.e - 1) // block + 1)
        span = {k: range(k * block, min((k + 1) * block, row.end)) for k in blocks}
        computed = {p for k in blocks if k not in stored for p in span[k]}
        for k in blocks:
            if not row.known.issuperset(span[k]):
                break
            stored.add(k)
        return computed

    agree(case, whole(method), "block", block)


def test_a_finished_block_is_stored_by_the_next_blocks_first_forward():
    watched = Watched(decoder(0, 4))
    prompt = [5, 6, 7, 8, 9, 10]  # one whole block, and two tokens of the next
    (output,) = run(watched, [prompt], max_new_tokens=8, block_length=4, cache="block")
    open_at = [min(4 * (min(c.positions) // 4), 12) for c in output.history]
    expected = []
    for i, start in enumerate(open_at):
        before = open_at[i - 1] if i else None
        first = 0 if before is None else (before if before < start else start)
        expected.append(set(range(first, min(start + 4, 14))))
    assert watched.queries == expected
    assert len(watched.plans) == output.nfe == len(output.history)
    assert [plan.extent for plan in watched.plans] == [max(q) + 1 for q in watched.queries]


def test_slots_are_read_as_blocks_open_and_none_is_touched_before():
    seen = []

    class Noting(Watched):
        def __call__(self, ids, plan, kv=None):
            logits = super().__call__(ids, plan, kv)
            touched = kv.k[:, 0, :, : kv.slots].any(-1).any(1).any(0).nonzero()[:, 0].tolist()
            seen.append((plan.extent, touched))
            return logits

    run(Noting(decoder(0, 4)), [[5, 6]], max_new_tokens=14, block_length=4, cache="block")
    extents = [extent for extent, _ in seen]
    assert extents == sorted(extents)
    assert all(extent % 4 == 0 and touched == list(range(extent)) for extent, touched in seen)
    assert extents[0] == 4
    assert extents[-1] == 16


def test_the_sub_block_cache_computes_the_window_alone_in_between():
    watched = Watched(decoder(0, 8))
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    (output,) = run(watched, [prompt], max_new_tokens=8, block_length=4, cache="block:exact=false")
    known = set(range(8))
    entered: set[int] = set()
    for commit, queried in zip(output.history, watched.queries, strict=True):
        start = 8 if not set(range(8, 12)) <= known else 12
        window = set(range(start, start + 4))
        whole = set(range(8, 16)) if entered else set(range(16))
        expected = whole if start not in entered or start not in known else window
        assert queried == expected
        entered.add(start)
        known |= set(commit.positions)


def test_it_needs_a_block_causal_model():
    with pytest.raises(ConfigError, match="cache 'block': expected a block-causal model"):
        run(decoder(), [[5]], cache="block")
    with pytest.raises(ConfigError, match="block_length=3: the model's is 4"):
        run(decoder(0, 4), [[5]], cache="block:block_length=3")


def test_a_mask_token_in_the_prompt_is_no_masked_position():
    model = decoder(0, 4)
    batch = [[5, MASK, 6, 7, MASK, 8]]
    (plain,), (cached,) = (
        run(model, batch, max_new_tokens=6, block_length=4, cache=c) for c in ("none", "block")
    )
    assert steps(plain) == steps(cached)
