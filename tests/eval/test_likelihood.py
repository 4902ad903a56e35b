"""The likelihood estimator: exact on perfect models, and what it draws."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm.cache.plan import ForwardPlan
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.likelihood import (
    LikelihoodRequest,
    forwards,
    is_greedy,
    log_likelihoods,
    mask_sets,
    masked_log_likelihoods,
)
from dllm.eval.oracle import Joint, Oracle
from tests.cache.models import MASK, PLAIN, VOCAB, Watched, decoder

FEW = 4  # draws, fewer than there are ways to mask three tokens


def of_shuffle(n: int) -> tuple[Oracle, LikelihoodRequest]:
    return Oracle(Joint.shuffle(n)), LikelihoodRequest([], list(range(n)))


def of_replace(n: int, place: int = 0) -> tuple[Oracle, LikelihoodRequest]:
    return Oracle(Joint.replace_random(n)), LikelihoodRequest(
        [], Joint.replace_random(n).support[place].tolist()
    )


def all_masks(length: int) -> list[Tensor]:
    return [torch.tensor(m) for m in itertools.product([False, True], repeat=length) if any(m)]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_mask_set_of_one_size_costs_shuffle_the_same(n):
    model, pair = of_shuffle(n)
    for mask in all_masks(n):
        size = int(mask.sum())
        found = masked_log_likelihoods(model, [pair], [mask])
        assert float(found) == pytest.approx(-size * math.log(size))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_short_answers_are_exact(n):
    model, pair = of_shuffle(n)
    assert log_likelihoods(model, [pair]) == [pytest.approx(-math.lgamma(n + 1))]
    for place in {0, n // 2, n - 1} - ({0} if n == 1 else set()):
        model, pair = of_replace(n, place)
        assert log_likelihoods(model, [pair]) == [pytest.approx(-math.log(n))]


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_a_perfect_model_gives_the_log_probability_of_any_joint(seed):
    """The mean over orders of the chain rule, whatever the joint."""
    rng = np.random.default_rng(seed)
    mass = rng.exponential(size=(3,) * int(rng.integers(1, 5))) ** 3
    answer = tuple(int(symbol) for symbol in rng.integers(0, 3, mass.ndim))
    found = log_likelihoods(Oracle(Joint.table(mass)), [LikelihoodRequest([], answer)])
    assert found == [pytest.approx(math.log(mass[answer] / mass.sum()))]


def test_what_cannot_be_has_no_probability():
    model = Oracle(Joint.replace_random(3))
    assert log_likelihoods(model, [LikelihoodRequest([], [0, 1, 2])])[0] < -1000


def test_many_strata_leave_no_error_where_the_size_decides():
    model, pair = of_shuffle(8)
    for seed in range(3):
        found = log_likelihoods(model, [LikelihoodRequest([], pair.answer, seed)], draws=16)
        assert found == [pytest.approx(-math.lgamma(9))]


@pytest.mark.parametrize("draws", [1, 5, 16])
def test_drawn_sets_estimate_without_bias(draws):
    model, pair = of_replace(6, 2)
    pairs = [LikelihoodRequest([], pair.answer, seed) for seed in range(600)]
    found = torch.tensor(log_likelihoods(model, pairs, draws=draws, batch_size=512))
    error = float(found.std()) / math.sqrt(len(pairs))
    assert 0 < error < 0.1
    assert abs(float(found.mean()) + math.log(6)) < 4 * error


def test_all_sets_are_taken_once_where_they_fit():
    masks, weights = mask_sets(4, 15, seed=3)
    assert {tuple(m) for m in masks.tolist()} == {tuple(m.tolist()) for m in all_masks(4)}
    for size in range(1, 5):
        of_size = weights[masks.sum(1) == size]
        assert float(of_size.sum()) == pytest.approx(1 / size)  # 1 / L, times L / l
        assert of_size.min() == of_size.max()
    assert len(mask_sets(4, 14, seed=3)[0]) == 14


@settings(max_examples=50)
@given(st.integers(4, 60), st.integers(1, 7), st.integers(-(2**63), 2**63 - 1))
def test_drawn_sizes_are_in_equal_strata(length, draws, seed):
    masks, weights = mask_sets(length, draws, seed)
    sizes = masks.sum(1)
    assert len(masks) == draws == forwards(length, draws)
    assert torch.allclose(weights, length / sizes.double() / draws)
    assert sizes.min() >= 1
    gaps = sorted(sizes.tolist())
    gaps = [b - a for a, b in itertools.pairwise([*gaps, gaps[0] + length])]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("length", "draws"), [(3, 2), (5, 3), (4, 9)])
def test_every_size_and_every_token_is_drawn_alike_in_every_place(length, draws):
    seeds = 800
    every = [mask_sets(length, draws, seed)[0] for seed in range(seeds)]
    for draw in range(draws):
        masks = torch.stack([masks[draw] for masks in every])
        counts = Counter(masks.sum(1).tolist())
        expected = seeds / length
        distance = sum((counts[s + 1] - expected) ** 2 / expected for s in range(length))
        assert distance < 30  # chi squared of at most 4 degrees: one in 10**5
        share = masks.double().mean(0)
        assert (share - (length + 1) / length / 2).abs().max() < 4 * 0.5 / math.sqrt(seeds)


def test_sets_of_one_size_are_drawn_alike():
    counts: Counter[tuple[bool, ...]] = Counter()
    for seed in range(1500):
        masks, _ = mask_sets(4, 2, seed)
        counts.update(tuple(mask) for mask in masks.tolist() if sum(mask) == 2)
    expected = counts.total() / 6
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 26
    assert len(counts) == 6


def test_sets_of_one_size_differ_from_draw_to_draw():
    masks, _ = mask_sets(20, 40, seed=0)
    assert masks.sum(1).bincount().tolist() == [0, *[2] * 20]
    assert len(masks.unique(dim=0)) == 39  # there is only one of size 20


def literal(shift: int, pair: LikelihoodRequest, mask: Tensor, scale: float) -> float:
    """One copy, alone, from the whole canvas's logits."""
    ids = torch.tensor([[*pair.prompt, *pair.answer]])
    where = [len(pair.prompt) + i for i in range(len(mask)) if mask[i]]
    seen = ids.clone()
    seen[0, where] = MASK
    plan = ForwardPlan.full(ids.shape[1])
    logits = decoder(shift)(seen, plan)[0].detach()
    if scale:
        seen[0, : len(pair.prompt)] = MASK
        without = decoder(shift)(seen, plan)[0].detach()
        logits = (1 + scale) * logits - scale * without
    distribution = logits.log_softmax(-1)
    return sum(float(distribution[max(p - shift, 0), ids[0, p]]) for p in where)


PAIRS = [
    LikelihoodRequest([3, 4, 6, 7, 8], [9, 10, 11], seed=1),
    LikelihoodRequest([12], [3, 3, 4, 6, 9], seed=2),
    LikelihoodRequest([7, MASK, 8], [6, 4], seed=1),
    LikelihoodRequest([], [8, 9, 12], seed=5),
]


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize("shift", [0, 1])
def test_it_is_the_weighted_sum_over_single_copies(shift, scale):
    expected = []
    for pair in PAIRS:
        masks, weights = mask_sets(len(pair.answer), FEW, pair.seed)
        values = [literal(shift, pair, mask, scale) for mask in masks]
        expected.append(float(weights @ torch.tensor(values, dtype=torch.float64)))
    found = log_likelihoods(decoder(shift), PAIRS, draws=FEW, cfg_scale=scale, batch_size=3)
    assert found == pytest.approx(expected, rel=1e-9)


def test_neither_order_nor_batch_changes_a_value_nor_the_global_generator():
    model = decoder()
    state = torch.get_rng_state()
    expected = log_likelihoods(model, PAIRS, draws=FEW)
    assert torch.equal(torch.get_rng_state(), state)
    turned = log_likelihoods(model, PAIRS[::-1], draws=FEW, batch_size=1)
    alone = [log_likelihoods(model, [pair], draws=FEW)[0] for pair in PAIRS]
    assert turned[::-1] == pytest.approx(expected, rel=1e-12)
    assert alone == pytest.approx(expected, rel=1e-12)


def test_seeds_decide_what_is_masked():
    pairs = [LikelihoodRequest(PAIRS[0].prompt, PAIRS[1].answer, seed) for seed in (1, 2, 1)]
    one, other, again = log_likelihoods(decoder(), pairs, draws=FEW)
    assert one == pytest.approx(again, rel=1e-12)
    assert one != pytest.approx(other, rel=1e-3)


def test_forwards_are_as_many_copies_as_are_computed():
    model = Watched(decoder())
    log_likelihoods(model, PAIRS, draws=FEW, batch_size=3)
    rows = [len(plan.pos) for plan in model.plans]
    assert sum(rows) == sum(forwards(len(pair.answer), FEW) for pair in PAIRS) == 4 + 4 + 3 + 4
    assert rows == [3] * 5
    assert forwards(1) == 1
    assert forwards(7) == 127
    assert forwards(8) == 128


def test_large_vocabularies_are_normalised_in_parts(monkeypatch):
    expected = log_likelihoods(decoder(), PAIRS)
    monkeypatch.setattr("dllm.eval.likelihood.CHUNK", 2 * VOCAB)
    assert log_likelihoods(decoder(), PAIRS) == pytest.approx(expected, rel=1e-12)


def test_half_precision_is_normalised_in_a_wider_one():
    class Half(Watched):
        def __call__(self, ids, plan, kv=None):
            self.logits.append(super().__call__(ids, plan, kv).bfloat16())
            return self.logits[-1]

    model = Half(decoder())
    (pair,) = PAIRS[:1]
    found = masked_log_likelihoods(model, [pair], [torch.ones(3, dtype=torch.bool)])
    distribution = model.logits[-1][0].double().log_softmax(-1)
    assert float(found) == pytest.approx(
        float(distribution[range(3), list(pair.answer)].sum()), rel=1e-6
    )


def one_at_a_time(prompt: list[int], count: int, scale: float) -> list[int]:
    """Greedy decoding of `count` tokens, most confident first, with nothing of the engine."""
    ids = torch.tensor([[*prompt, *[MASK] * count]])
    plan = ForwardPlan.full(ids.shape[1])
    for _ in range(count):
        logits = decoder()(ids, plan)[0]
        if scale:
            hidden = ids.clone()
            hidden[0, : len(prompt)] = MASK
            logits = (1 + scale) * logits - scale * decoder()(hidden, plan)[0]
        logits[:, MASK] = -torch.inf
        best, token = logits.softmax(-1).max(-1)
        best[ids[0] != MASK] = -1
        best[: len(prompt)] = -1
        at = int(best.argmax())
        ids[0, at] = token[at]
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_greedy_is_what_the_most_confident_token_first_decodes(scale):
    engine, tried = Engine(decoder()), 0
    for prompt in itertools.product(PLAIN[:3], repeat=2):
        answer = one_at_a_time(list(prompt), 4, scale)
        if set(answer) <= set(PLAIN):
            tried += 1
            assert is_greedy(engine, LikelihoodRequest(prompt, answer), scale)
            other = [*answer[:3], PLAIN[answer[3] == PLAIN[0]]]
            assert not is_greedy(engine, LikelihoodRequest(prompt, other), scale)
    assert tried > 3


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        (LikelihoodRequest([VOCAB], [3]), {}, f"pair 1: token id {VOCAB}"),
        (LikelihoodRequest([3], [-1]), {}, "pair 1: token id -1"),
        (LikelihoodRequest([3], []), {}, "pair 1: the answer is empty"),
        (LikelihoodRequest([3] * 4000, [3] * 97), {}, "pair 1: 4097 tokens; the model has 4096"),
        (LikelihoodRequest([3], [3]), {"draws": 0}, "draws=0"),
        (LikelihoodRequest([3], [3]), {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_does_not_fit_is_named(pair, options, message):
    with pytest.raises(DllmError, match=message):
        log_likelihoods(decoder(), [PAIRS[0], pair], **options)


def test_a_model_that_answers_with_nan_is_named():
    class Broken(Watched):
        def __call__(self, ids, plan, kv=None):
            logits = super().__call__(ids, plan, kv)
            logits[(ids[:, 0] == 12)] = torch.nan
            return logits

    with pytest.raises(DllmError, match="pair 1: the model's logits hold NaN"):
        log_likelihoods(Broken(decoder()), PAIRS[:2], draws=FEW)
