"""The meter of what a cache costs, against small cases worked out by hand."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.eval.staleness import Meter, Staleness
from dllm.tuning.memo import MemoModel
from tests.cache.models import Watched, decoder, run, steps

NO_END = "quota:logits_eos_inf=true"  # one token a step, to the end


def measured(
    model: Any, prompts: list[list[int]], reference: Any = None, **options: Any
) -> Staleness:
    meter = Meter(model, reference)
    run(meter, prompts, **options)
    return meter.total


class Recorder(Watched):
    """Also notes the canvases."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.ids: list[Tensor] = []

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        self.ids.append(ids.clone())
        return super().__call__(ids, plan, kv)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cache", ["none", "prefix:refresh=1", "dual:refresh=1"])
def test_what_is_computed_anew_is_not_stale(cache, shift):
    total = measured(
        decoder(shift), [[5, 6, 7], [8], []], max_new_tokens=9, block_length=4, cache=cache
    )
    assert total.predictions > 0
    assert 0 <= total.worst_kl < 1e-12
    assert (total.flipped, total.reused, total.age, total.worst_age) == (0, 0, 0, 0)


def test_ages_of_the_dual_cache_by_hand():
    """Four slots of the prompt and four of the window: they are read at ages 1, 2, 3."""
    total = measured(
        decoder(), [[4, 5, 6, 7]], max_new_tokens=4, block_length=4, sampler=NO_END, cache="dual"
    )
    assert (total.reads, total.reused, total.age_sum) == (4 * 8, 3 * 4, 4 * (1 + 2 + 3))
    assert (total.age, total.worst_age, total.old) == (2, 3, 12 / 32)
    assert total.predictions == 4 + 3 + 2 + 1  # all holes of the window, in each of four steps


def test_a_block_causal_model_reads_no_later_block():
    """Windows that are its blocks: the dual cache is exact, what is behind the window unread."""
    total = measured(
        decoder(block=4),
        [[4, 5, 6, 7]],
        max_new_tokens=8,
        block_length=4,
        sampler=NO_END,
        cache="dual",
    )
    assert (total.reads, total.reused) == (12 + 3 * 8 + 12 + 3 * 12, 3 * 4 + 3 * 8)
    assert (total.age, total.worst_age) == (2, 3)
    assert total.worst_kl < 1e-12


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_divergence_is_that_of_a_whole_forward(cache, shift):
    model = Recorder(decoder(shift))
    options = {"max_new_tokens": 7, "block_length": 4, "sampler": NO_END, "cache": cache}
    total = measured(model, [[5, 6, 7, 8]], decoder(shift), **options)
    kl, worst, flipped, count = 0.0, 0.0, 0, 0
    for ids, plan, logits in zip(model.ids, model.plans, model.logits, strict=True):
        with torch.no_grad():
            exact = decoder(shift)(ids, ForwardPlan.full(ids.shape[1]))
        for r, at in enumerate(plan.pos[0, plan.head[0]].tolist()):
            p, q = exact[0, at].softmax(-1), logits[0, r].softmax(-1)
            here = float((p * (p / q).log()).sum())
            kl, worst, count = kl + here, max(worst, here), count + 1
            flipped += int(p.argmax() != q.argmax())
    assert total.predictions == count
    assert total.kl == pytest.approx(kl / count, rel=1e-9)
    assert total.worst_kl == pytest.approx(worst, rel=1e-9)
    assert total.worst_kl > total.kl > 1e-6
    assert (total.flipped, total.flips) == (flipped, flipped / count)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cache", ["prefix:refresh=3", "dual", "dual:refresh=2"])
def test_a_batch_adds_up_from_its_rows(cache, shift):
    """Ragged prompts and different progress: no padding is counted, no neighbour is looked at."""
    prompts = [[3, 6, 7, 8, 9], [4], [10, 11, 12]]
    options = {
        "max_new_tokens": 11,
        "block_length": 4,
        "sampler": "threshold:threshold=0.6",
        "cache": cache,
    }
    together = measured(decoder(shift), prompts, **options)
    alone = [measured(decoder(shift), [prompt], **options) for prompt in prompts]
    for name in ("predictions", "flipped", "reads", "reused", "age_sum"):
        assert getattr(together, name) == sum(getattr(one, name) for one in alone), name
    assert together.kl_sum == pytest.approx(sum(one.kl_sum for one in alone), rel=1e-9)
    assert together.worst_kl == pytest.approx(max(one.worst_kl for one in alone), rel=1e-9)
    assert together.worst_age == max(one.worst_age for one in alone)


def test_slots_kept_from_reading_do_not_count():
    """Six positions, then the last two of them: layers that read four, three and no old slots."""
    model = decoder()
    meter, ids = Meter(model), torch.arange(4, 10)[None]
    kv = meter.new_kv(1, 6)
    meter(ids, ForwardPlan.full(6), kv)
    assert (meter.total.reads, meter.total.reused) == (6, 0)
    read = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
    pos = torch.tensor([[4, 5]])
    meter(ids, ForwardPlan(pos, torch.tensor([[1]]), read=read[:, None]), kv)
    assert meter.total.reads == pytest.approx(6 + (6 + 5 + 2) / 3)
    assert meter.total.reused == pytest.approx((4 + 3 + 0) / 3)
    meter(ids, ForwardPlan(pos, torch.tensor([[1]]), read=read[1:2]), kv)
    assert meter.total.reused == pytest.approx((4 + 3 + 0) / 3 + 3)
    assert meter.total.age_sum == pytest.approx((4 + 3 + 0) / 3 + 2 * 3)
    assert meter.total.predictions == 6 + 1 + 1


def test_measuring_changes_nothing_and_may_be_remembered():
    options = {"max_new_tokens": 9, "block_length": 4, "cache": "dual"}
    prompts = [[5, 6, 7], [8]]
    plain = run(decoder(), prompts, **options)
    memo = MemoModel(decoder())
    meters = [Meter(decoder()), Meter(decoder(), memo), Meter(decoder(), memo)]
    for meter in meters:
        for a, b in zip(plain, run(meter, prompts, **options), strict=True):
            assert (steps(a), a.nfe) == (steps(b), b.nfe)
        assert astuple(meter.total) == pytest.approx(astuple(meters[0].total), rel=1e-9)
    assert memo.reused >= memo.rows / 2
