"""Learn2PD's filter: roll-outs against a slow loop in NumPy, the fit against what it must find."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.samplers.learn2pd import NAMES, Learn2PD, load_filter, save_filter
from dllm.train.filter import Filter, FilterMLP, Traces
from tests.cache.models import decoder
from tests.fakes import EOS, EOT, MASK, PLAIN, FakeModel, Out, hashed, leaning
from tests.samplers.test_learn2pd import samples, view_of

PROMPTS = [[3, 4, 6], [7], [8, 9, 10, 11, 12], [6, 6], [4, 7, 3, 9]]


# --- the roll-outs -------------------------------------------------------------------------------


def proposals(out: Out, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token and probability of the best proposal at every position; the mask is banned."""
    logits = out(ids).copy()
    logits[:, MASK] = -np.inf
    law = np.exp(logits - logits.max(1, keepdims=True))
    law /= law.sum(1, keepdims=True)
    return law.argmax(1), law.max(1)


def window(ids: np.ndarray, start: int, block: int) -> range:
    first = start + (np.flatnonzero(ids[start:] == MASK)[0] // block) * block
    return range(first, min(first + block, len(ids)))


def ended(ids: np.ndarray, start: int) -> bool:
    ends = [i for i in range(start, len(ids)) if ids[i] in (EOS, EOT)]
    holes = [i for i in range(start, len(ids)) if ids[i] == MASK]
    return not holes or (bool(ends) and ends[0] < holes[0])


def one_by_one(out: Out, prompt: list[int], recipe: Filter) -> list[int]:
    ids = np.array(prompt + [MASK] * recipe.max_new_tokens)
    while not ended(ids, len(prompt)):
        token, conf = proposals(out, ids)
        holes = [p for p in window(ids, len(prompt), recipe.block_length) if ids[p] == MASK]
        best = max(holes, key=lambda p: conf[p])
        ids[best] = token[best]
    return [EOS if t == MASK else int(t) for t in ids[len(prompt) :]]


def oracle_steps(
    out: Out, prompt: list[int], recipe: Filter
) -> list[tuple[list[float], list[bool], list[bool]]]:
    """(seen, right, counted) of every step that commits what the reference has."""
    reference = one_by_one(out, prompt, recipe)
    ids, steps = np.array(prompt + [MASK] * recipe.max_new_tokens), []
    while not ended(ids, len(prompt)):
        token, conf = proposals(out, ids)
        here = window(ids, len(prompt), recipe.block_length)
        seen, right, counted = [], [], []
        for offset in range(recipe.block_length):
            inside = offset < len(here)
            pos = here[offset] if inside else -1
            seen.append(conf[pos] if inside else 1.0)
            counted.append(bool(inside and ids[pos] == MASK))
            right.append(bool(counted[-1] and token[pos] == reference[pos - len(prompt)]))
        steps.append((seen, right, counted))
        chosen = [here[k] for k in range(recipe.block_length) if right[k]]
        holes = [p for p in here if ids[p] == MASK]
        for pos in chosen or [max(holes, key=lambda p: conf[p])]:
            ids[pos] = reference[pos - len(prompt)]
    return steps


def traced(out: Out, recipe: Filter, prompts: list[list[int]] = PROMPTS) -> Traces:
    engine = Engine(FakeModel(out))
    return recipe.roll_outs(engine, prompts, recipe.references(engine, prompts))


MODELS = {
    "hashed": hashed(1),
    "sure": hashed(2, spread=4.0),
    "ends soon": leaning(EOT, 4.0),
    "agrees": leaning(PLAIN[2]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("block", "holes"), [(4, 10), (5, 5), (3, 12)])
def test_roll_outs_are_those_of_a_slow_loop(name, block, holes):
    out = MODELS[name]
    recipe = Filter(block_length=block, max_new_tokens=holes, batch_size=2)
    traces = traced(out, recipe)
    expected = [(i, *s) for i, p in enumerate(PROMPTS) for s in oracle_steps(out, p, recipe)]
    rows, seen, right, counted = zip(*expected, strict=True)
    assert traces.row.tolist() == list(rows)
    assert traces.right.tolist() == list(right)
    assert traces.counted.tolist() == list(counted)
    assert traces.seen.dtype == torch.float32
    np.testing.assert_allclose(traces.seen.numpy(), np.array(seen), rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_references_are_those_of_a_slow_loop_with_end_of_text_in_the_holes(name):
    recipe = Filter(block_length=4, max_new_tokens=10, batch_size=3)
    found = recipe.references(Engine(FakeModel(MODELS[name])), PROMPTS)
    assert found == [tuple(one_by_one(MODELS[name], p, recipe)) for p in PROMPTS]


def test_the_models_show_what_the_slow_loop_must_decide():
    recipe = Filter(block_length=4, max_new_tokens=10)
    traces = {name: traced(out, recipe) for name, out in MODELS.items()}
    wrong = {name: (t.counted & ~t.right).any().item() for name, t in traces.items()}
    assert wrong["hashed"]
    assert not wrong["agrees"]
    answers = recipe.references(Engine(FakeModel(MODELS["ends soon"])), PROMPTS)
    assert any(EOT in a and a[-1] == EOS for a in answers)


@given(st.integers(0, 2**32), st.integers(1, 6), st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_a_batch_records_what_each_prompt_alone_does(seed, batch_size, order):
    out, recipe = hashed(seed % 1000), Filter(block_length=4, max_new_tokens=7)
    prompts = [PROMPTS[i] for i in order]
    together = traced(out, replace(recipe, batch_size=batch_size), prompts)
    for row, prompt in enumerate(prompts):
        mine, alone = together.pick(together.row == row), traced(out, recipe, [prompt])
        for name in ("seen", "right", "counted"):
            assert torch.equal(getattr(mine, name), getattr(alone, name))


def test_a_block_causal_model_is_rolled_out_from_its_exact_cache():
    engine, recipe = Engine(decoder(block=4)), Filter(block_length=4, max_new_tokens=12)
    prompts = [[3, 4, 6, 7], [8] * 8]
    both = []
    for cache in ("none", "block"):
        one = replace(recipe, cache=cache)
        both.append(one.roll_outs(engine, prompts, one.references(engine, prompts)))
    assert len(both[0].row) > len(prompts)
    assert torch.equal(both[0].right, both[1].right)
    torch.testing.assert_close(both[0].seen, both[1].seen, rtol=0, atol=1e-6)


def test_a_cache_that_does_not_fit_the_model_says_so():
    with pytest.raises(DllmError, match="expected a block-causal model"):
        Filter(cache="block").references(Engine(decoder()), PROMPTS)


# --- the loss ------------------------------------------------------------------------------------


def random_traces(seed: int, steps: int = 7, block: int = 5) -> Traces:
    draw = torch.Generator().manual_seed(seed)
    coins = torch.rand(2, steps, block, generator=draw) < 0.5
    seen = torch.rand(steps, block, generator=draw)
    return Traces(seen, coins[0], coins[1], torch.arange(steps) // 2)


def total(recipe: Filter, traces: Traces, part: slice = slice(None)) -> Tensor:
    model = FilterMLP(recipe.block_length, 6, seed=3)
    return recipe.loss(model, traces, torch.Generator(), part)


@pytest.mark.parametrize("weight", [1.0, 0.25, 4.0])
def test_the_loss_is_the_mean_over_candidates_of_what_they_cost(weight):
    traces = random_traces(0)
    w1, b1, w2, b2 = (t.detach().double().numpy() for t in FilterMLP(5, 6, seed=3).parameters())
    costs = []
    for n, k in traces.counted.nonzero().tolist():
        hidden = np.maximum(w1 @ traces.seen[n].double().numpy() + b1, 0)
        p = 1 / (1 + math.exp(-(w2[k] @ hidden + b2[k])))
        costs.append(-weight * math.log(p) if traces.right[n, k] else -math.log(1 - p))
    found = total(Filter(5, max_new_tokens=5, positive_weight=weight), traces)
    assert found.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_the_losses_of_the_processes_add_up():
    recipe, traces = Filter(5, max_new_tokens=5), random_traces(1)
    parts = [total(recipe, traces, slice(i, None, 3)) for i in range(3)]
    assert sum(parts).item() == pytest.approx(total(recipe, traces).item(), rel=1e-5)


# --- the fit -------------------------------------------------------------------------------------


def test_a_fitted_filter_commits_as_its_oracle_and_minds_candidates_alone(tmp_path):
    conf, label = samples(4096, 1)
    counted = torch.rand(conf.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    traces = Traces(conf, label ^ ~counted, counted, torch.arange(len(conf)))
    recipe = Filter(block_length=16, lr=1e-2, steps=400, max_new_tokens=16)
    path = tmp_path / "f"
    save_filter(path, recipe.fit(traces).state_dict())
    conf, label = samples(300, 2)
    commit = Learn2PD(str(path), threshold=0.5).select(view_of(conf)).commit
    assert (commit == label).double().mean() >= 0.97


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_where_nothing_can_be_told_the_filter_says_the_share_that_is_right(weight):
    right = torch.tensor([[True, False], [True, False], [True, True], [False, False]])
    every = torch.ones_like(right)
    traces = Traces(torch.ones(4, 2), right, every, torch.arange(4))
    recipe = Filter(2, hidden=4, max_new_tokens=2, steps=1500, lr=1e-2, positive_weight=weight)
    said = recipe.fit(traces)(traces.seen[0]).sigmoid()
    odds = torch.tensor([3.0, 1 / 3]) * weight
    torch.testing.assert_close(said, odds / (1 + odds), rtol=0, atol=2e-3)


def test_a_fit_is_a_function_of_its_seed():
    traces, recipe = random_traces(2), Filter(5, max_new_tokens=5, steps=3)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = recipe.fit(traces).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    again, other = recipe.fit(traces).state_dict(), replace(recipe, seed=1).fit(traces).state_dict()
    assert list(first) == list(NAMES)
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    assert not any(torch.equal(first[name], other[name]) for name in NAMES)


def test_the_log_tells_step_and_falling_loss():
    lines: list[dict[str, float]] = []
    traces, recipe = random_traces(3), Filter(5, max_new_tokens=5, steps=250)
    model = recipe.fit(traces, lines.append)
    assert [line["step"] for line in lines] == list(range(2, 251, 2))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["loss"] == pytest.approx(
        recipe.loss(model, traces, torch.Generator(), slice(None)).item(), abs=2e-2
    )


def test_the_papers_filter_has_2112_parameters():
    recipe = Filter()
    model = FilterMLP(recipe.block_length, recipe.hidden, recipe.seed)
    assert sum(p.numel() for p in model.parameters()) == 2112
    assert (recipe.lr, recipe.steps) == (3e-3, 40_000)


# --- the whole recipe ----------------------------------------------------------------------------


def test_a_trained_filter_decodes_with_fewer_forwards_where_the_model_is_sure(tmp_path):
    engine = Engine(FakeModel(leaning(PLAIN[2])))
    path = tmp_path / "filter.safetensors"
    recipe = Filter(block_length=4, hidden=8, max_new_tokens=8, steps=300)
    model = recipe.train(engine, PROMPTS, path)
    layers = load_filter(path)
    assert all(torch.equal(layers[name], t) for name, t in model.state_dict().items())
    config = recipe.config.replace(history=False)
    slow = engine.generate(PROMPTS, config)
    fast = engine.generate(PROMPTS, config, sampler=f"learn2pd:filter={path}")
    assert [o.token_ids for o in fast] == [o.token_ids for o in slow]
    assert {o.nfe for o in slow} == {8}
    assert {o.nfe for o in fast} == {2}


def test_without_prompts_nothing_is_trained(tmp_path):
    with pytest.raises(DllmError, match="got no prompts"):
        Filter().train(Engine(FakeModel()), [], tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"block_length": 64, "max_new_tokens": 32}, "block_length=64.*max_new_tokens=32"),
        ({"block_length": 0}, "block_length=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"positive_weight": -1.0}, "positive_weight=-1.0"),
        ({"positive_weight": math.inf}, "positive_weight=inf"),
    ],
)
def test_bad_knobs_name_their_value(knobs, says):
    with pytest.raises(ValueError, match=says):
        Filter(**knobs)
