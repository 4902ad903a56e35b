"""What holds for every cache policy, over random prompts, samplers and models."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache import POLICIES
from dllm.config import ConfigError, DecodeConfig
from dllm.engine import Engine
from dllm.models.decoder import Decoder
from tests.cache.models import MASK, PLAIN, Watched, decoder, run, steps
from tests.decoding.test_guarantees import any_of, rules
from tests.specs import BLOCKS, CHANGES, EXACT, LAZY, STOPS, WHERE

BUSY = {  # options of the parts that see or choose more than a rule does
    "planner": any_of(WHERE),
    "transform": st.none() | any_of(CHANGES),
    "stop_rule": st.none() | any_of(STOPS),
}
prompts = st.lists(st.lists(st.sampled_from(PLAIN), max_size=9), min_size=1, max_size=3)
shifts = st.sampled_from([0, 1])
options = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 14),
        "block_length": st.sampled_from([None, 1, 4, 5]),
        "sampler": st.sampled_from(["quota", "threshold:threshold=0.6", "quota:steps=4", "saber"]),
        "buckets": st.booleans(),
        "stop_rule": st.sampled_from([None, None, "eotp:threshold=0.1"]),
    }
)


@st.composite
def cached(draw: st.DrawFn, table: dict[str, list[str]]) -> tuple[Decoder, str]:
    """A model, and a policy of `table` that takes it."""
    policy = draw(any_of(table))
    block = draw(st.sampled_from(BLOCKS.get(policy.partition(":")[0], [None, 4])))
    return decoder(draw(shifts), block, draw(st.integers(0, 3))), policy


@pytest.fixture(autouse=True)
def checking(monkeypatch):
    """Every read of every test is compared with what was written."""
    monkeypatch.setenv("DLLM_CHECK_CACHE", "1")


def test_every_policy_takes_part():
    assert set(EXACT) == set(LAZY) == set(POLICIES)


@settings(max_examples=32)
@given(prompts, options, cached(EXACT), st.sampled_from([0.0, 0.0, 0.7]))
def test_refreshed_at_every_step_it_is_uncached(batch, chosen, case, guidance):
    model, policy = case
    chosen = chosen | {"cfg_scale": guidance}
    plain = run(model, batch, **chosen)
    same = run(model, batch, **chosen, cache=policy)
    for a, b in zip(plain, same, strict=True):
        assert steps(a) == steps(b)
        assert (a.token_ids, a.nfe) == (b.token_ids, b.nfe)
        for one, two in zip(a.history, b.history, strict=True):
            torch.testing.assert_close(one.confidences, two.confidences, rtol=0, atol=1e-9)


@settings(max_examples=32)
@given(prompts, options, cached(LAZY))
def test_rows_do_not_see_each_other(batch, chosen, case):
    model, policy = case
    together = run(model, batch, **chosen, cache=policy)
    for row, (prompt, output) in enumerate(zip(batch, together, strict=True)):
        watched = Watched(model)
        (alone,) = Engine(watched).generate([prompt], history=True, **chosen, cache=policy)
        assert steps(output) == steps(alone), f"row {row}"
        assert output.nfe == alone.nfe == len(watched.plans)
        assert output.nfe <= chosen["max_new_tokens"]


@settings(max_examples=32)
@given(prompts, options, cached(LAZY), st.integers(0, 5))
def test_requests_are_independent_and_can_be_cut(batch, chosen, case, after):
    model, policy = case
    first = run(model, batch, **chosen, cache=policy)
    engine = Engine(model)
    stream = engine.stream_steps(batch, DecodeConfig(**chosen, cache=policy))
    for _ in zip(range(after), stream, strict=False):
        pass
    stream.close()
    again = engine.generate(batch, history=True, **chosen, cache=policy)
    assert [steps(o) for o in first] == [steps(o) for o in again]


@settings(max_examples=36)
@given(prompts, st.integers(1, 10), rules, st.fixed_dictionaries(BUSY), cached(LAZY))
def test_every_part_works_with_it_or_is_refused(batch, size, rule, busy, case):
    model, policy = case
    chosen = {"max_new_tokens": size, "block_length": 4, "sampler": rule, **busy}
    try:
        outputs = run(model, batch, **chosen, cache=policy)
    except ConfigError:
        return
    for prompt, output in zip(batch, outputs, strict=True):
        assert output.nfe <= size
        tokens = {t for commit in output.history for t in commit.token_ids}
        assert MASK not in tokens
        assert all(min(c.positions) >= len(prompt) for c in output.history)
        if "eotp" not in str(busy["stop_rule"]):  # it may have dropped what was known
            assert output.finish_reason == "eos" or len(output.token_ids) == size


@settings(max_examples=36)
@given(prompts, st.integers(1, 10), rules, st.fixed_dictionaries(BUSY), cached(EXACT))
def test_every_part_gets_the_uncached_result_from_fresh_keys(batch, size, rule, busy, case):
    model, policy = case
    chosen = {"max_new_tokens": size, "block_length": 4, "sampler": rule, **busy}
    try:
        cached = run(model, batch, **chosen, cache=policy)
    except ConfigError:
        return
    plain = run(model, batch, **chosen)
    assert [steps(o) for o in plain] == [steps(o) for o in cached]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("policy", [spec for specs in LAZY.values() for spec in specs])
def test_keys_and_values_have_the_models_dtype(policy, dtype):
    block = 4 if policy.startswith("block") else None
    model = Watched(copy.deepcopy(decoder(1, block)).to(dtype))
    batch = [[3, 4], [6, 7, 8, 9]]
    outputs = run(model, batch, max_new_tokens=9, block_length=4, cache=policy)
    assert all(o.finish_reason in ("eos", "length") for o in outputs)
    for kv in model.kvs:
        assert kv.k.dtype == kv.v.dtype == dtype
