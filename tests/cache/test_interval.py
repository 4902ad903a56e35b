"""dLLM-Cache computes the rows that its text says, layer by layer, and pads without a trace."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from dllm.cache.interval import Branches, Interval
from dllm.registry import SpecError
from tests.cache.literal_layers import Interval as Literal
from tests.cache.literal_layers import compared
from tests.cache.models import Watched, decoder, run, steps

OPTIONS = [(8, 4, 0.25), (5, 3, 0.25), (4, 2, 0.0), (100, 7, 0.25)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shift", [0, 1])
def test_it_computes_what_the_text_says(monkeypatch, options, shift):
    rng = random.Random(f"{options} {shift}")
    for case in range(12):
        model = decoder(shift, None, case % 4)
        assert [*compared(monkeypatch, rng, model, Literal, Interval, options)]


def test_intervals_are_each_rows_own():
    """Rows of a batch choose different numbers of rows; what pads the shorter ones writes nothing.

    Rows finish at different steps, so that what is kept moves up.
    """
    prompts = [[5, 6, 7, 8, 9, 10, 11], [5], [], [8, 8, 9]]
    for seed in range(3):
        options = {"max_new_tokens": 9, "cache": Interval(4, 3, 0.4), "sampler": "eb"}
        together = run(decoder(seed=seed), prompts, **options)
        for prompt, output in zip(prompts, together, strict=True):
            (alone,) = run(decoder(seed=seed), [prompt], **options)
            assert steps(output) == steps(alone)


def test_rows_cut_short_compare_fewer_values():
    """Answers of different lengths: what pads the comparison stores no values."""
    prompts = [[5, 6, 7, 8, 9, 10, 11], [5, 5, 9], [6], [8, 8, 9]]
    ragged = 0
    for seed in range(5):
        options = {
            "max_new_tokens": 12,
            "cache": Interval(20, 9, 0.4),
            "stop_rule": "eotp:threshold=0.1",
        }
        together = run(decoder(seed=seed), prompts, **options)
        ragged += len({output.nfe for output in together}) > 1
        for prompt, output in zip(prompts, together, strict=True):
            (alone,) = run(decoder(seed=seed), [prompt], **options)
            assert steps(output) == steps(alone)
    assert ragged


def test_a_slots_age_counts_from_its_last_refresh():
    ages = []

    class Seen(Watched):
        def __call__(self, ids, plan, kv=None):
            logits = super().__call__(ids, plan, kv)
            ages.append(kv.age[0].tolist())
            return logits

    run(Seen(decoder()), [[5, 6]], max_new_tokens=5, cache="interval:prompt=3,answer=2")
    assert [age[0] for age in ages] == [0, 1, 2, 0, 1][: len(ages)]
    assert [age[2] for age in ages] == [0, 1, 0, 1, 0][: len(ages)]
    assert len(ages) >= 4


@pytest.mark.parametrize("block", [2, 5])
def test_a_block_causal_model_is_exact_when_refreshed(block):
    model, prompts = decoder(0, block), [[5, 6, 7], [8]]
    plain = run(model, prompts, max_new_tokens=7)
    same = run(model, prompts, max_new_tokens=7, cache="interval:prompt=1,share=1.0")
    assert [steps(o) for o in plain] == [steps(o) for o in same]
    lazy = run(model, prompts, max_new_tokens=7, cache="interval")
    alone = [run(model, [p], max_new_tokens=7, cache="interval")[0] for p in prompts]
    assert [steps(o) for o in lazy] == [steps(o) for o in alone]


def test_what_the_walk_keeps_counts_as_cache():
    watched = Watched(decoder())
    run(watched, [[5, 6]], max_new_tokens=4, cache="interval")
    (kv,) = watched.kvs
    assert set(kv.extra) == {"attention", "feed"}
    assert all(t.dtype == torch.float64 for t in kv.extra.values())


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("prompt=0", "prompt=0: expected a whole number of at least 1"),
        ("answer=-1", "answer=-1: expected a whole number of at least 1"),
        ("share=1.5", "share=1.5: expected a share from 0 to 1"),
        ("share=nan", "share=nan: expected a share"),
    ],
)
def test_bad_options_are_refused(option, what):
    with pytest.raises(SpecError, match=what):
        run(decoder(), [[5]], max_new_tokens=2, cache=f"interval:{option}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_did_not_change_tie_to_the_lower_position(dtype):
    """A cosine of 1 is rounded one way or the other, and which way depends on the batch's shape."""
    old = torch.ones(1, 1, 4, 8, dtype=dtype)
    old[0, 0, 3] *= torch.tensor([1, -1] * 4)
    new = torch.ones_like(old)
    new[0, 0, :3] *= 1 + torch.tensor([0, 1, 2], dtype=dtype)[:, None]  # the direction is the same
    new[0, 0, 1:3] += torch.finfo(dtype).eps * torch.arange(8, dtype=dtype)
    pos, every = torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool)
    kv = SimpleNamespace(read=lambda *_: (None, old), update_values=lambda *_: None)
    run = SimpleNamespace(kv=kv, access=None, at=lambda *_: SimpleNamespace(access=None))
    layer = SimpleNamespace(index=0, values=lambda x: new)
    for count, chosen in ((1, [3]), (2, [0, 3]), (3, [0, 1, 3])):
        branches = Branches(~every, pos, every, torch.tensor([count]), 4)
        found = branches.changed(layer, torch.zeros(1, 4, 2, dtype=dtype), run)
        assert found.nonzero()[:, 1].tolist() == chosen


def test_padding_of_the_comparison_does_not_undo_position_0():
    """Of rows without a prompt, the shorter one: what fills it up stands at position 0 too."""
    old = torch.ones(2, 1, 4, 8, dtype=torch.float64)
    new = old * torch.tensor([1, -1] * 4)
    kv = SimpleNamespace(read=lambda *_: (None, old), update_values=lambda *_: None)
    run = SimpleNamespace(kv=kv, access=None, at=lambda *_: SimpleNamespace(access=None))
    layer = SimpleNamespace(index=0, values=lambda x: new)
    pos = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    branches = Branches(~real, pos, real, torch.tensor([4, 2]), 4)
    found = branches.changed(layer, torch.zeros(2, 4, 2, dtype=torch.float64), run)
    assert found.tolist() == real.tolist()
