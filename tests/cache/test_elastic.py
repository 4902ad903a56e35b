"""Elastic-Cache against its literal reference, its limits, and what rows of a batch share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from dllm.cache.elastic import Elastic, log_weights, similarity
from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.config import ConfigError, DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from tests.cache.literal_elastic import decode
from tests.cache.models import MASK, PLAIN, Watched, decoder, run, steps

LAYERS = 5


@pytest.fixture(autouse=True)
def checking(monkeypatch):
    monkeypatch.setenv("DLLM_CHECK_CACHE", "1")


@cache
def deep(shift: int = 0, seed: int = 0) -> Decoder:
    """Five layers, four heads on two pairs of keys: room for drift to begin anywhere."""
    spec = replace(decoder(shift).spec, num_layers=LAYERS, num_heads=4, num_kv_heads=2, head_dim=4)
    model = Decoder(spec)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=2.5 * p.shape[1] ** -0.5, generator=generator)
    return model.double()


class Counted(Watched):
    """Notes what each forward computed: by layer, by row of the KV cache, the set of positions."""

    def __init__(self, model: Decoder) -> None:
        super().__init__(model)
        self.computed: list[list[dict[int, set[int]]]] = []

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        kv = super().new_kv(batch, length, limit)
        update = kv.update

        def noting(layer, access, k, v):
            real = access.slots < kv.slots
            rows = range(len(real)) if access.rows is None else access.rows.tolist()
            slots = [access.slots[b, real[b]].tolist() for b in range(len(real))]
            assert all(len(found) == len(set(found)) for found in slots)
            sets = {row: set(found) for row, found in zip(rows, slots, strict=True)}
            self.computed[-1].append(sets)
            return update(layer, access, k, v)

        kv.update = noting
        return kv

    def __call__(self, ids, plan: ForwardPlan, kv: KVCache | None = None):
        self.computed.append([])
        self.ids = ids.clone()
        return super().__call__(ids, plan, kv)

    def computed_of(self, row: int) -> list[list[set[int]]]:
        """By forward of one row of the KV cache, by layer: the positions that were computed."""
        return [[sets[row] for sets in forward] for forward in self.computed if row in forward[0]]

    @property
    def alone(self) -> list[list[set[int]]]:
        """The same for a batch of one row."""
        return self.computed_of(0)


def prompt_of(seed: int, most: int = 8) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(0, most + 1, (), generator=generator))
    return [PLAIN[i] for i in torch.randint(0, len(PLAIN), (size,), generator=generator)]


def quota(conf: dict[int, float]) -> list[int]:
    """The first of the best; in fp32, where masked positions of an empty canvas are as good as each
    other.
    """
    return [int(max(sorted(conf), key=lambda p: torch.tensor(conf[p]).float()))]


def threshold(conf: dict[int, float]) -> list[int]:
    return [p for p in conf if conf[p] >= 0.6] or quota(conf)


RULES = {"quota": quota, "threshold:threshold=0.6": threshold}


def first_wide(computed: list[set[int]], length: int) -> int:
    """The layer from which all positions were computed; the number of layers if there is none."""
    return next((i for i, layer in enumerate(computed) if len(layer) == length), len(computed))


@pytest.mark.parametrize(
    "cases", [range(24), pytest.param(range(24, 60), marks=pytest.mark.slow)], ids=str
)
def test_it_is_the_literal_reference(cases):
    """Same query sets, widening layers and tokens; and every layer is seen to widen."""
    seen = set()
    for seed in cases:
        gamma, shift, window = (0.5, 0.9, 0.99)[seed % 3], seed % 2, 1 + seed % 6
        tracked, refresh = 1 + seed % 4 // 2, (None, None, 3)[seed // 7 % 3]
        sampler = sorted(RULES)[seed // 2 % 2]
        model, prompt, size = deep(shift, seed % 5), prompt_of(seed, 6), 4 + seed % 5
        options = {"window": window, "gamma": gamma, "tracked": tracked, "refresh": refresh}
        options["union"] = seed // 3 % 2 == 1
        with torch.no_grad():
            told = decode(model, prompt, size, RULES[sampler], **options)
        watched = Counted(model)
        (out,) = run(
            watched,
            [prompt],
            max_new_tokens=size,
            block_length=None,
            sampler=sampler,
            cache=Elastic(**options),
        )
        assert watched.alone == told.computed, f"case {seed}"
        assert [dict(zip(*step, strict=True)) for step in steps(out)] == told.commits
        for mine, logits in zip(watched.logits, told.logits, strict=True):
            torch.testing.assert_close(mine[0], logits, rtol=0, atol=1e-9)
        seen |= {(gamma, first_wide(c, len(prompt) + size)) for c in told.computed[1:]}
    assert {layer for _, layer in seen} == {*range(LAYERS + 1)}
    assert {gamma for gamma, layer in seen if 0 < layer < LAYERS} == {0.5, 0.9, 0.99}


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("window", [1, 3, 5])
def test_refreshed_at_every_step_it_is_uncached_decoding_of_the_first_masked_positions(
    window, shift
):
    for seed in range(6):
        model, prompt = deep(shift, seed), prompt_of(seed)
        ids, out = prompt + [model.spec.mask_id] * 9, []
        while (masked := [p for p, token in enumerate(ids) if token == model.spec.mask_id]) and (
            model.spec.eos_id not in ids[: masked[0]]
        ):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), ForwardPlan.full(len(ids)))[0]
            view = logits[[max(p - shift, 0) for p in masked[:window]]]
            out.append(view.clone())
            view[:, model.spec.mask_id] = -torch.inf
            distribution = dict(zip(masked, view.softmax(-1), strict=False))
            for p in threshold({p: float(distribution[p].max()) for p in distribution}):
                ids[p] = int(distribution[p].argmax())
        watched = Watched(model)
        (same,) = run(
            watched,
            [prompt],
            max_new_tokens=9,
            block_length=None,
            sampler="threshold:threshold=0.6",
            cache=Elastic(window=window, refresh=1),
        )
        for mine, view in zip(watched.logits, out, strict=True):
            torch.testing.assert_close(mine[0], view, rtol=0, atol=1e-9)
        committed = {p: t for step in steps(same) for p, t in zip(*step, strict=True)}
        assert committed == {p: t for p, t in enumerate(ids) if p >= len(prompt) and t != MASK}


PROMPT = list(PLAIN)[3:9]


def decoded(gamma: float, shift: int = 0, **options) -> tuple[Counted, int]:
    """A decoding of 12 tokens, one each forward; and the row's length."""
    watched = Counted(deep(shift, 1))
    usual = {"max_new_tokens": 12, "block_length": None, "sampler": "quota:logits_eos_inf=true"}
    run(watched, [PROMPT], **(usual | options), cache=f"elastic:window=4,gamma={gamma}")
    return watched, len(PROMPT) + 12


@pytest.mark.parametrize("gamma", [0, -1, -2])
@pytest.mark.parametrize("shift", [0, 1])
def test_without_a_limit_to_drift_only_the_first_forward_computes_all(gamma, shift):
    watched, length = decoded(gamma, shift)
    first, *others = watched.alone
    assert first == [set(range(length))] * LAYERS
    assert len(others) == 11
    for forward, queries in zip(others, watched.queries[1:], strict=True):
        assert forward == [queries] * LAYERS
        assert len(queries) <= 4 + 1 + shift + LAYERS  # window, decoded, row before it, tracked


@pytest.mark.parametrize("shift", [0, 1])
def test_a_limit_above_every_cosine_widens_behind_the_first_layer(shift):
    watched, length = decoded(2, shift)
    for forward in watched.alone[1:]:
        assert len(forward[0]) < length
        assert forward[1:] == [set(range(length))] * (LAYERS - 1)


def test_widening_is_not_yet_exact_since_other_rows_go_on_from_older_inputs():
    """Inputs of the second layer were the first one's answer to an older canvas."""
    watched, canvas, length = after(7, gamma=2)
    kv, fresh = watched.kvs[0], watched.model.new_kv(1, length)
    with torch.no_grad():
        watched.model(canvas, ForwardPlan.full(length), fresh)
    inputs, exact = kv.extra["inputs"][:, 0, :length], watched.model.embed(canvas[0])
    torch.testing.assert_close(inputs[0], exact, rtol=0, atol=0)
    assert torch.dist(kv.k[0, ..., :length, :], fresh.k[0, ..., :length, :]) < 1e-12
    assert torch.dist(kv.k[1, ..., :length, :], fresh.k[1, ..., :length, :]) > 1e-3


def after(forwards: int, gamma: float) -> tuple[Counted, Tensor, int]:
    """A decoding cut behind some forwards, the canvas [1, T] its last one saw, and T."""
    watched = Counted(deep(0, 1))
    config = DecodeConfig(
        12, None, sampler="quota:logits_eos_inf=true", cache=f"elastic:window=4,gamma={gamma}"
    )
    stream = Engine(watched).stream_steps([PROMPT], config)
    for _ in zip(range(forwards), stream, strict=False):
        pass
    return watched, watched.ids, len(PROMPT) + 12


MIXED = [prompt_of(seed) for seed in (3, 4, 2, 9, 0)]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("sampler", sorted(RULES))
def test_rows_that_widen_and_rows_that_do_not_are_as_alone(sampler, gamma, shift):
    options = {"max_new_tokens": 10, "block_length": None, "sampler": sampler}
    options["cache"] = f"elastic:window=4,gamma={gamma},tracked=2"
    together = Counted(deep(shift, 3))
    outputs = run(together, MIXED, **options)
    lengths = [len(prompt) + 10 for prompt in MIXED]
    every = min(output.nfe for output in outputs)  # forwards with all rows in the KV cache
    for row, (prompt, output) in enumerate(zip(MIXED, outputs, strict=True)):
        alone = Counted(together.model)
        (same,) = run(alone, [prompt], **options)
        assert steps(output) == steps(same)
        for a, b in zip(output.history, same.history, strict=True):
            torch.testing.assert_close(a.confidences, b.confidences, rtol=0, atol=1e-9)
        assert together.computed_of(row)[:every] == alone.alone[:every]
    wide = [
        {first_wide(together.computed_of(row)[i], lengths[row]) for row in range(len(MIXED))}
        for i in range(1, every)
    ]
    assert any(len(layers - {0}) > 1 for layers in wide)  # otherwise nothing was mixed


@pytest.mark.parametrize("gamma", [0, 0.9, 2])
def test_with_guidance_each_branch_keeps_its_own(gamma):
    """What one branch computes does not reach the other; both track what the guided one chose."""
    options = {"max_new_tokens": 10, "block_length": None, "sampler": "quota:logits_eos_inf=true"}
    options |= {"cache": f"elastic:window=4,gamma={gamma}", "cfg_scale": 0.7}
    together = Counted(deep(0, 3))
    outputs = run(together, MIXED, **options)
    assert len(together.kvs) == 2
    for prompt, output in zip(MIXED, outputs, strict=True):
        (same,) = run(together.model, [prompt], **options)
        assert steps(output) == steps(same)
        for a, b in zip(output.history, same.history, strict=True):
            torch.testing.assert_close(a.confidences, b.confidences, rtol=0, atol=1e-9)


def test_the_kv_cache_counts_inputs_and_queries():
    watched, _, _ = after(3, gamma=0.9)
    (kv,) = watched.kvs
    spec = watched.spec
    slots = LAYERS * 8 * (kv.slots + 1)  # of one number in every layer, in bytes
    pairs = slots * 2 * spec.num_kv_heads * spec.head_dim
    rows = slots * (spec.hidden_size + spec.num_heads * spec.head_dim)
    assert kv.nbytes == pairs + rows + slots // 8  # and a byte for every tracked token
    mib = (pairs + rows) / 2**20
    with pytest.raises(DllmError, match="MiB are allowed"):
        decoded(0.9, cache_mib=0.9 * mib)
    decoded(0.9, cache_mib=1.1 * mib)


@pytest.mark.parametrize(
    "spec", ["window=0", "tracked=0", "refresh=0", "gamma=nan", "gamma=inf", "window=-1"]
)
def test_bad_options_are_refused(spec):
    name, _, value = spec.partition("=")
    with pytest.raises(DllmError, match=rf"{name}={value}.*expected"):
        run(decoder(), [[5]], cache=f"elastic:{spec}")


def test_block_causal_models_are_refused():
    with pytest.raises(ConfigError, match=r"elastic.*expected a model whose positions all see"):
        run(decoder(block=4), [[5]], cache="elastic")


def test_parts_that_look_at_all_masked_positions_are_refused():
    with pytest.raises(ConfigError, match="looks at all masked positions, but cache 'elastic'"):
        run(decoder(), [[5]], cache="elastic", planner="slowfast")


def test_similarity_is_the_cosine_across_heads_of_the_keys_that_are_read():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 4, 8).double(), torch.randn(2, 2, 2, 6, 8).double()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0]]).bool()[:, None, None]
    real = torch.tensor([[True, False, True], [True, True, False]])
    old, new = (log_weights(q[i], k[i], mask) for i in range(2))  # 4 heads on 2
    for row in range(2):
        cosines = []
        for n in range(3):
            for key in range(6):
                if real[row, n] and mask[row, 0, 0, key]:
                    a, b = old[row, :, n, key].exp(), new[row, :, n, key].exp()
                    cosines.append(float(a @ b / a.norm() / b.norm()))
        mean = sum(cosines) / len(cosines)
        torch.testing.assert_close(float(similarity(old, new, real)[row]), mean)


def test_weights_too_small_to_be_squared_have_a_cosine_all_the_same():
    old = torch.tensor([-300.0, -301.0]).view(1, 2, 1, 1)
    new = torch.tensor([-301.0, -300.0]).view(1, 2, 1, 1)
    e = torch.tensor(1.0).exp()
    expected = 2 * e / (1 + e * e)
    real = torch.ones(1, 1, dtype=torch.bool)
    torch.testing.assert_close(similarity(old, new, real), expected.view(1))
