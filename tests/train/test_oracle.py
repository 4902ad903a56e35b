"""EGP's roll-outs against a slow loop in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.train.data import TrainingPair
from dllm.train.oracle import OracleRollout, Traces
from tests.cache.models import decoder
from tests.fakes import EOS, EOT, MASK, PLAIN, FakeModel, Out, hashed, leaning

PROMPTS = [[3, 4, 6], [7], [8, 9, 10, 11, 12], [6, 6], [4, 7, 3, 9]]


def proposals(out: Out, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token and probability of the best proposal at every position; the mask is banned."""
    logits = out(ids).copy()
    logits[:, MASK] = -np.inf
    distribution = np.exp(logits - logits.max(1, keepdims=True))
    distribution /= distribution.sum(1, keepdims=True)
    return distribution.argmax(1), distribution.max(1)


def window(ids: np.ndarray, start: int, block: int) -> range:
    first = start + (np.flatnonzero(ids[start:] == MASK)[0] // block) * block
    return range(first, min(first + block, len(ids)))


def ended(ids: np.ndarray, start: int) -> bool:
    ends = [i for i in range(start, len(ids)) if ids[i] in (EOS, EOT)]
    masked = [i for i in range(start, len(ids)) if ids[i] == MASK]
    return not masked or (bool(ends) and ends[0] < masked[0])


def one_by_one(out: Out, prompt: list[int], oracle: OracleRollout) -> list[int]:
    ids = np.array(prompt + [MASK] * oracle.max_new_tokens)
    while not ended(ids, len(prompt)):
        token, conf = proposals(out, ids)
        masked = [p for p in window(ids, len(prompt), oracle.block_length) if ids[p] == MASK]
        best = max(masked, key=lambda p: conf[p])
        ids[best] = token[best]
    return [EOS if t == MASK else int(t) for t in ids[len(prompt) :]]


def oracle_steps(
    out: Out, prompt: list[int], oracle: OracleRollout
) -> list[tuple[list[float], list[bool], list[bool]]]:
    """(seen, right, counted) of every step that commits what the reference has."""
    reference = one_by_one(out, prompt, oracle)
    ids, steps = np.array(prompt + [MASK] * oracle.max_new_tokens), []
    while not ended(ids, len(prompt)):
        token, conf = proposals(out, ids)
        here = window(ids, len(prompt), oracle.block_length)
        seen, right, counted = [], [], []
        for offset in range(oracle.block_length):
            inside = offset < len(here)
            pos = here[offset] if inside else -1
            seen.append(conf[pos] if inside else 1.0)
            counted.append(bool(inside and ids[pos] == MASK))
            right.append(bool(counted[-1] and token[pos] == reference[pos - len(prompt)]))
        steps.append((seen, right, counted))
        chosen = [here[k] for k in range(oracle.block_length) if right[k]]
        masked = [p for p in here if ids[p] == MASK]
        for pos in chosen or [max(masked, key=lambda p: conf[p])]:
            ids[pos] = reference[pos - len(prompt)]
    return steps


def traced(out: Out, oracle: OracleRollout, prompts: list[list[int]] = PROMPTS) -> Traces:
    return rolled_out(Engine(FakeModel(out)), oracle, prompts)


def rolled_out(engine: Engine, oracle: OracleRollout, prompts: list[list[int]]) -> Traces:
    return oracle.roll_outs(engine, list(oracle.references(engine, prompts)))


MODELS = {
    "hashed": hashed(1),
    "sure": hashed(2, spread=4.0),
    "ends soon": leaning(EOT, 4.0),
    "agrees": leaning(PLAIN[2]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("block", "masked"), [(4, 10), (5, 5), (3, 12)])
def test_roll_outs_are_those_of_a_slow_loop(name, block, masked):
    out = MODELS[name]
    oracle = OracleRollout(block, masked, 2)
    traces = traced(out, oracle)
    expected = [(i, *s) for i, p in enumerate(PROMPTS) for s in oracle_steps(out, p, oracle)]
    rows, seen, right, counted = zip(*expected, strict=True)
    assert traces.row.tolist() == list(rows)
    assert traces.right.tolist() == list(right)
    assert traces.counted.tolist() == list(counted)
    assert traces.seen.dtype == torch.float32
    np.testing.assert_allclose(traces.seen.numpy(), np.array(seen), rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_references_are_those_of_a_slow_loop_with_end_of_text_in_the_holes(name):
    oracle = OracleRollout(4, 10, 3)
    found = list(oracle.references(Engine(FakeModel(MODELS[name])), PROMPTS))
    assert found == [TrainingPair(p, one_by_one(MODELS[name], p, oracle)) for p in PROMPTS]


def test_the_models_show_what_the_slow_loop_must_decide():
    oracle = OracleRollout(4, 10, 8)
    traces = {name: traced(out, oracle) for name, out in MODELS.items()}
    wrong = {name: (t.counted & ~t.right).any().item() for name, t in traces.items()}
    assert wrong["hashed"]
    assert not wrong["agrees"]
    pairs = oracle.references(Engine(FakeModel(MODELS["ends soon"])), PROMPTS)
    assert any(EOT in pair.answer and pair.answer[-1] == EOS for pair in pairs)


@given(
    st.integers(0, 2**32), st.integers(1, 6), st.permutations(range(5)).map(lambda rows: rows[:3])
)
@settings(max_examples=5, deadline=None)
def test_a_batch_records_what_each_prompt_alone_does(seed, batch_size, order):
    out, oracle = hashed(seed % 1000), OracleRollout(4, 7, 2)
    prompts = [PROMPTS[i] for i in order]
    together = traced(out, replace(oracle, batch_size=batch_size), prompts)
    for row, prompt in enumerate(prompts):
        mine, alone = together.pick(together.row == row), traced(out, oracle, [prompt])
        for name in ("seen", "right", "counted"):
            assert torch.equal(getattr(mine, name), getattr(alone, name))


def test_a_block_causal_model_is_rolled_out_from_its_exact_cache():
    engine, oracle = Engine(decoder(block=4)), OracleRollout(4, 12, 2)
    prompts = [[3, 4, 6, 7], [8] * 8]
    both = [
        rolled_out(engine, replace(oracle, cache=cache), prompts) for cache in ("none", "block")
    ]
    assert len(both[0].row) > len(prompts)
    assert torch.equal(both[0].right, both[1].right)
    torch.testing.assert_close(both[0].seen, both[1].seen, rtol=0, atol=1e-6)


def test_a_cache_that_does_not_fit_the_model_says_so():
    with pytest.raises(DllmError, match="expected a block-causal model"):
        list(OracleRollout(4, 8, 2, cache="block").references(Engine(decoder()), PROMPTS))


class Interrupted(FakeModel):
    """Ctrl-C comes in a forward."""

    def __call__(self, *args):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(*args)


def test_what_was_interrupted_is_no_reference_and_no_roll_out():
    oracle, model = OracleRollout(4, 6, 2), Interrupted(hashed(1))
    model.left = 9  # a batch takes six
    found = oracle.references(Engine(model), PROMPTS)
    assert [next(found).prompt for _ in range(2)] == PROMPTS[:2]
    with pytest.raises(KeyboardInterrupt):
        next(found)
    pairs = list(oracle.references(Engine(FakeModel(hashed(1))), PROMPTS))
    model.left = 3
    with pytest.raises(KeyboardInterrupt):
        oracle.roll_outs(Engine(model), pairs)


def test_roll_outs_are_decoded_few_at_once():
    rows = []

    class Watched(FakeModel):
        def __call__(self, ids, *args):
            rows.append(len(ids))
            return super().__call__(ids, *args)

    rolled_out(Engine(Watched(hashed(1))), OracleRollout(4, 6, 2), PROMPTS)
    assert max(rows) == 2


def test_a_batch_of_no_prompts_is_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        OracleRollout(4, 8, 0)
