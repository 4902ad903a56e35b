"""What holds for every cache policy, over random prompts, samplers and models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache import POLICIES
from dllm.config import DecodeConfig
from dllm.engine import Engine
from tests.cache.models import PLAIN, Watched, decoder, run, steps

# Each policy with options that compute everything in every step, and with some that do not.
EXACT: dict[str, list[str]] = {
    "none": ["none"],
    "prefix": ["prefix:refresh=1"],
    "dual": ["dual:refresh=1"],
    "interval": ["interval:prompt=1,answer=1", "interval:prompt=1,share=1.0"],
    "sparse": ["sparse:refresh=1", "sparse:refresh=1,keep=0.0", "sparse:refresh=1,width=1"],
}
LAZY: dict[str, list[str]] = {
    "none": ["none"],
    "prefix": ["prefix", "prefix:refresh=3"],
    "dual": ["dual", "dual:refresh=2"],
    "interval": ["interval", "interval:prompt=3,answer=2,share=0.0", "interval:prompt=5,answer=3"],
    "sparse": ["sparse", "sparse:keep=0.2,width=1", "sparse:refresh=3"],
}

prompts = st.lists(st.lists(st.sampled_from(PLAIN), max_size=9), min_size=1, max_size=3)
shifts = st.sampled_from([0, 1])
models = st.builds(decoder, shifts, st.none(), st.integers(0, 3))
options = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 14),
        "block_length": st.sampled_from([None, 1, 4, 5]),
        "sampler": st.sampled_from(["quota", "threshold:threshold=0.6", "quota:steps=4", "saber"]),
        "buckets": st.booleans(),
    }
)


def any_of(table: dict[str, list[str]]) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(table)).flatmap(lambda name: st.sampled_from(table[name]))


@pytest.fixture(autouse=True)
def checking(monkeypatch):
    """Every read of every test is compared with what was written."""
    monkeypatch.setenv("DLLM_CHECK_CACHE", "1")


def test_every_policy_takes_part():
    assert set(EXACT) == set(LAZY) == set(POLICIES)


@settings(max_examples=150)
@given(prompts, models, options, any_of(EXACT), st.sampled_from([0.0, 0.0, 0.7]))
def test_refreshed_at_every_step_it_is_uncached(batch, model, chosen, policy, guidance):
    chosen = chosen | {"cfg_scale": guidance}
    exact, cached = Watched(model), Watched(model)
    plain = run(exact, batch, **chosen)
    same = run(cached, batch, **chosen, cache=policy)
    for a, b in zip(plain, same, strict=True):
        assert steps(a) == steps(b)
        assert (a.token_ids, a.nfe) == (b.token_ids, b.nfe)
        for one, two in zip(a.history, b.history, strict=True):
            torch.testing.assert_close(one.confidences, two.confidences, rtol=0, atol=1e-9)


@settings(max_examples=60)
@given(prompts, models, options, any_of(EXACT), any_of(LAZY))
def test_what_a_stop_rule_cuts_off_is_not_read_again(batch, model, chosen, exact, lazy):
    chosen = chosen | {"stop_rule": "eotp:threshold=0.1"}
    plain = run(model, batch, **chosen)
    same = run(model, batch, **chosen, cache=exact)
    assert [steps(o) for o in plain] == [steps(o) for o in same]
    together = run(model, batch, **chosen, cache=lazy)
    alone = [run(model, [prompt], **chosen, cache=lazy)[0] for prompt in batch]
    assert [steps(o) for o in together] == [steps(o) for o in alone]


@settings(max_examples=150)
@given(prompts, models, options, any_of(LAZY))
def test_rows_do_not_see_each_other(batch, model, chosen, policy):
    together = run(model, batch, **chosen, cache=policy)
    for row, (prompt, output) in enumerate(zip(batch, together, strict=True)):
        watched = Watched(model)
        (alone,) = Engine(watched).generate([prompt], history=True, **chosen, cache=policy)
        assert steps(output) == steps(alone), f"row {row}"
        assert output.nfe == alone.nfe == len(watched.plans)
        assert output.nfe <= chosen["max_new_tokens"]


@settings(max_examples=60)
@given(prompts, models, options, any_of(LAZY), st.integers(0, 5))
def test_requests_are_independent_and_can_be_cut(batch, model, chosen, policy, after):
    first = run(model, batch, **chosen, cache=policy)
    engine = Engine(model)
    stream = engine.stream_steps(batch, DecodeConfig(**chosen, cache=policy))
    for _ in zip(range(after), stream, strict=False):
        pass
    stream.close()
    again = engine.generate(batch, history=True, **chosen, cache=policy)
    assert [steps(o) for o in first] == [steps(o) for o in again]
