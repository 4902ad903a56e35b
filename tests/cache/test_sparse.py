"""Sparse-dLLM reads what its text says, layer by layer, and always the window."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from dllm.cache.sparse import Sparse, scores
from dllm.config import ConfigError
from dllm.models.decoder import Decoder, DecoderLayer
from dllm.registry import SpecError
from tests.cache.literal_layers import Sparse as Literal
from tests.cache.literal_layers import compared
from tests.cache.models import Watched, decoder, run, steps

OPTIONS = [(0.5, 3, None), (0.2, 1, None), (0.75, 5, 3), (0.0, 3, None)]


def grouped(shift: int, seed: int) -> Decoder:
    """Four query heads on two key heads."""
    model = Decoder(replace(decoder().spec, num_heads=4, shift=shift)).double()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=2.0 * p.shape[1] ** -0.5, generator=generator)
    return model


@pytest.fixture
def reads(monkeypatch):
    """The slots that each layer of each forward reads, by store of the run (a batch of one row)."""
    found = []
    attend = DecoderLayer.attend

    def spy(self, q, k, v, mask):
        seen = torch.ones(k.shape[2], dtype=torch.bool) if mask is None else mask[0, 0, 0]
        found.append(set(seen.nonzero()[:, 0].tolist()))
        return attend(self, q, k, v, mask)

    monkeypatch.setattr(DecoderLayer, "attend", spy)
    return found


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shift", [0, 1])
def test_it_reads_what_the_text_says(monkeypatch, reads, options, shift):
    rng = random.Random(f"{options} {shift}")
    for case in range(12):
        model = grouped(shift, case) if case % 3 == 0 else decoder(shift, None, case % 4)
        reads.clear()
        for cache, own in compared(monkeypatch, rng, model, Literal, Sparse, options):
            assert [reads[3 * i : 3 * i + 3] for i in own] == cache.reads


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 1.0])
def test_each_layer_keeps_its_share_and_the_window(reads, keep):
    prompt, size, block = [5, 6, 7, 8, 9], 12, 6
    run(decoder(), [prompt], max_new_tokens=size, block_length=block, cache=Sparse(keep))
    lazy = [read for read in reads if len(read) < 17]
    assert lazy or keep == 1
    for read in lazy:
        window = set(range(5, 11)) if set(range(5, 11)) <= read else set(range(11, 17))
        assert window <= read
        assert len(read) == 6 + int(keep * 11)


def test_layers_and_guided_branches_choose_for_themselves(reads):
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    options = {"max_new_tokens": 8, "block_length": 8, "cfg_scale": 0.5}
    run(decoder(seed=1), [prompt], **options, cache="sparse")
    third = reads[4 * 3 : 6 * 3]  # two forwards a step: the third step is the first lazy one
    assert [len(read) for read in third] == [12] * 6
    one, two = third[:3], third[3:]
    assert not one[0] == one[1] == one[2]
    assert one != two


def test_two_forwards_of_a_window_compute_all_the_others_the_window():
    watched = Watched(decoder(seed=3))
    run(watched, [[5, 6, 7]], max_new_tokens=8, block_length=4, cache="sparse")
    one, two = {3, 4, 5, 6}, {7, 8, 9, 10}
    everything = {0, 1, 2} | one | two
    assert watched.queries == [everything] * 2 + [one] * 2 + [everything] * 2 + [two] * 2


def test_windows_that_end_in_their_second_forward_are_uncached():
    model, prompts = decoder(seed=3), [[5, 6, 7], [8]]
    for size in (1, 2):
        options = {"max_new_tokens": 3 * size, "block_length": size}
        plain = run(model, prompts, **options)
        same = run(model, prompts, **options, cache="sparse:keep=0.0")
        assert [steps(o) for o in same] == [steps(o) for o in plain]


def test_rows_of_a_batch_choose_in_their_own_time():
    """Rows enter windows at different steps, with different numbers of positions to choose from."""
    prompts = [[5, 6, 7, 8, 9, 10, 11], [5, 9], [6, 7, 8, 6], [8]]
    apart = 0
    for seed in range(8):
        options = {
            "max_new_tokens": 20,
            "block_length": 5,
            "sampler": "threshold:threshold=0.3",
            "cache": Sparse(0.3),
        }
        watched = Watched(decoder(seed=seed))
        together = run(watched, prompts, **options)
        apart += any(plan.rows is not None for plan in watched.plans)
        for prompt, output in zip(prompts, together, strict=True):
            (alone,) = run(decoder(seed=seed), [prompt], **options)
            assert steps(output) == steps(alone)
    assert apart > 2


def test_grouped_queries_score_as_if_the_keys_were_repeated():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 3, generator=generator)
    k = torch.randn(2, 2, 7, 3, generator=generator)
    asking = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
    found = scores(q, k, asking)
    for row in range(2):
        mean = q[row][:, asking[row]].mean(1)  # [H, D]
        wide = k[row].repeat_interleave(2, 0)  # [H, K, D]
        torch.testing.assert_close(found[row], torch.einsum("hd,hkd->hk", mean, wide).mean(0))


def test_block_causal_models_are_refused():
    with pytest.raises(ConfigError, match="expected a bidirectional model"):
        run(decoder(0, 4), [[5]], max_new_tokens=2, cache="sparse")


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("keep=1.5", "keep=1.5: expected a share from 0 to 1"),
        ("width=2", "width=2: expected an odd whole number of at least 1"),
        ("width=0", "width=0: expected an odd whole number"),
        ("refresh=0", "refresh=0: expected a whole number of at least 1"),
    ],
)
def test_bad_options_are_refused(option, what):
    with pytest.raises(SpecError, match=what):
        run(decoder(), [[5]], max_new_tokens=2, cache=f"sparse:{option}")
