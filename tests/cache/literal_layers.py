"""dLLM-Cache and Sparse-dLLM as their texts say it: one row, one position after the other.

Nothing of the engine is used but the weights: plain vectors, dictionaries by position, sets.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dllm.cache.kv import KVCache
from dllm.models.decoder import Decoder
from tests.cache.models import EOS, MASK, PLAIN, Watched, run, steps

Rows = dict[int, Any]  # by position


class Plain:
    """A decoder's arithmetic for single positions, in float64."""

    def __init__(self, model: Decoder) -> None:
        self.spec = model.spec
        self.w = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def of(self, layer: int, name: str) -> Any:
        return self.w[f"layers.{layer}.{name}.weight"]

    def norm(self, x: Any, weight: Any) -> Any:
        return weight * x / np.sqrt((x * x).mean() + self.spec.norm_eps)

    def rotate(self, x: Any, pos: int) -> Any:
        half = self.spec.head_dim // 2
        angle = pos / self.spec.rope_theta ** (np.arange(half) / half)
        a, b = x[:, :half], x[:, half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    def heads(self, layer: int, x: Any, pos: int) -> tuple[Any, Any, Any]:
        n = self.norm(x, self.of(layer, "attn_norm"))
        q, k, v = (
            (self.of(layer, f"attn.{name}") @ n).reshape(-1, self.spec.head_dim) for name in "qkv"
        )
        return self.rotate(q, pos), self.rotate(k, pos), v

    def attend(self, layer: int, q: Any, keys: Rows, values: Rows, read: set[int]) -> Any:
        where = sorted(read)
        group = self.spec.num_heads // self.spec.num_kv_heads
        k = np.repeat(np.stack([keys[p] for p in where]), group, axis=1)  # [K, H, D]
        v = np.repeat(np.stack([values[p] for p in where]), group, axis=1)
        score = (q * k).sum(2) / math.sqrt(self.spec.head_dim)  # [K, H]
        weight = np.exp(score - score.max(0))
        weight /= weight.sum(0)
        return self.of(layer, "attn.o") @ (weight[:, :, None] * v).sum(0).ravel()

    def feed(self, layer: int, x: Any) -> Any:
        n = self.norm(x, self.of(layer, "mlp_norm"))
        gate = self.of(layer, "gate") @ n
        return self.of(layer, "down") @ (gate / (1 + np.exp(-gate)) * (self.of(layer, "up") @ n))

    def logits(self, x: Any) -> Any:
        return self.w["head.weight"] @ self.norm(x, self.w["norm.weight"])


@dataclass
class Interval:
    """dLLM-Cache: `step` gives the logits of all positions and notes what each layer computed."""

    plain: Plain
    prompt: int
    length: int
    options: tuple[int, int, float]  # Kp, Kr, rho
    k: dict[int, Rows] = field(default_factory=lambda: defaultdict(dict))
    v: dict[int, Rows] = field(default_factory=lambda: defaultdict(dict))
    a: dict[int, Rows] = field(default_factory=lambda: defaultdict(dict))
    f: dict[int, Rows] = field(default_factory=lambda: defaultdict(dict))
    computed: list[list[set[int]]] = field(default_factory=list)

    def step(self, i: int, ids: list[int], start: int, end: int, needed: set[int]) -> Rows:
        every_prompt, every_answer, rho = self.options
        prompt, answer = set(range(self.prompt)), set(range(self.prompt, self.length))
        h = {p: self.plain.w["embed.weight"][ids[p]] for p in range(self.length)}
        note = []
        for layer in range(self.plain.spec.num_layers):
            rows: set[int] = set()
            if i % every_prompt == 0:
                rows |= prompt
            if i % every_answer == 0:
                rows |= answer
            elif rho > 0 and layer > 0:
                fresh = {p: self.plain.heads(layer, h[p], p)[2] for p in answer}
                like = {p: cosine(fresh[p], self.v[layer][p]) for p in answer}
                lowest = sorted(answer, key=lambda p: (like[p], p))
                rows |= set(lowest[: math.floor(rho * len(answer))])
                self.v[layer].update(fresh)
            if layer == 0:
                rows = prompt | answer
            q: Rows = {}
            for p in rows:
                q[p], self.k[layer][p], self.v[layer][p] = self.plain.heads(layer, h[p], p)
            for p in rows:
                a = self.plain.attend(layer, q[p], self.k[layer], self.v[layer], prompt | answer)
                self.a[layer][p], self.f[layer][p] = a, self.plain.feed(layer, h[p] + a)
            h = {p: h[p] + self.a[layer][p] + self.f[layer][p] for p in h}
            note.append(rows)
        self.computed.append(note)
        return {p: self.plain.logits(h[p]) for p in h}


def cosine(a: Any, b: Any) -> float:
    a, b = a.ravel(), b.ravel()
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


@dataclass
class Sparse:
    """Sparse-dLLM: as above, and notes what each layer reads."""

    plain: Plain
    prompt: int
    length: int
    options: tuple[float, int, int | None]  # keep, width, refresh
    window: int = -1
    since: int = 0
    k: dict[int, Rows] = field(default_factory=lambda: defaultdict(dict))
    v: dict[int, Rows] = field(default_factory=lambda: defaultdict(dict))
    kept: dict[int, set[int]] = field(default_factory=dict)
    computed: list[list[set[int]]] = field(default_factory=list)
    reads: list[list[set[int]]] = field(default_factory=list)

    def step(self, i: int, ids: list[int], start: int, end: int, needed: set[int]) -> Rows:
        refresh = self.options[2]
        self.since = self.since + 1 if start == self.window else 0
        self.window = start
        everything, window = set(range(self.length)), set(range(start, end))
        full = self.since < 2 or (refresh is not None and self.since % refresh == 0)
        rows = everything if full else window | needed
        h = {p: self.plain.w["embed.weight"][ids[p]] for p in rows}
        computed, reads = [], []
        for layer in range(self.plain.spec.num_layers):
            q: Rows = {}
            for p in rows:
                q[p], self.k[layer][p], self.v[layer][p] = self.plain.heads(layer, h[p], p)
            read = everything if full else self.kept[layer] | window
            for p in rows:
                h[p] = h[p] + self.plain.attend(layer, q[p], self.k[layer], self.v[layer], read)
                h[p] = h[p] + self.plain.feed(layer, h[p])
            if full and self.since > 0:
                self.kept[layer] = self.choose(q, self.k[layer], window)
            computed.append(rows)
            reads.append(read)
        self.computed.append(computed)
        self.reads.append(reads)
        return {p: self.plain.logits(h[p]) for p in h}

    def choose(self, q: Rows, k: Rows, window: set[int]) -> set[int]:
        keep, width, _ = self.options
        group = self.plain.spec.num_heads // self.plain.spec.num_kv_heads
        mean = sum(q[p] for p in window) / len(window)  # [H, D]
        outside = [p for p in range(self.length) if p not in window]
        score = [(mean * np.repeat(k[p], group, axis=0)).sum(1).mean() for p in outside]
        reach = width // 2
        best = [max(score[max(0, n - reach) : n + reach + 1]) for n in range(len(score))]
        order = sorted(range(len(outside)), key=lambda n: (-best[n], outside[n]))
        return {outside[n] for n in order[: math.floor(keep * len(outside))]}


def decode(
    make: Callable[[], Any],
    prompt: list[int],
    size: int,
    *,
    block: int | None,
    threshold: float | None,
    shift: int,
    guidance: float,
) -> tuple[list[tuple[list[int], list[int]]], list[Any]]:
    """What every step commits, and the caches with their notes: one, or two with guidance."""
    caches = [make() for _ in range(2 if guidance else 1)]
    ids, length = [*prompt, *[MASK] * size], len(prompt) + size
    masked, found = set(range(len(prompt), length)), []
    while masked and not ended(ids, len(prompt), masked):
        width = block or size
        start = len(prompt) + (min(masked) - len(prompt)) // width * width
        end = min(start + width, length)
        open_now = sorted(p for p in masked if p < end)
        row = {p: max(p - shift, 0) for p in open_now}
        needed = set(row.values())
        out = caches[0].step(len(found), ids, start, end, needed)
        if guidance:
            blank = [MASK] * len(prompt) + ids[len(prompt) :]
            no = caches[1].step(len(found), blank, start, end, needed)
            out = {p: no[p] + (guidance + 1) * (out[p] - no[p]) for p in out}
        token, doubt = {}, {}
        for p in open_now:
            logits = out[row[p]].copy()
            logits[MASK] = -np.inf
            token[p] = int(logits.argmax())
            weight = np.exp(logits - logits.max())
            # equal but for rounding on an empty canvas: ties go to the lower position
            doubt[p] = round(1 - weight[token[p]] / weight.sum(), 12)
        best = min(open_now, key=lambda p: (doubt[p], p))
        sure = [p for p in open_now if threshold is not None and 1 - doubt[p] >= threshold]
        chosen = sure or [best]
        for p in chosen:
            ids[p] = token[p]
        masked -= set(chosen)
        found.append((chosen, [token[p] for p in chosen]))
    return found, caches


def ended(ids: list[int], prompt: int, masked: set[int]) -> bool:
    ends = [p for p in range(prompt, len(ids)) if ids[p] == EOS]
    return bool(ends) and min(ends) < min(masked)


@contextmanager
def written(monkeypatch: Any) -> Iterator[list[tuple[KVCache, dict[int, set[int]]]]]:
    """For every forward of a batch of one row: its store, and the keys written, by layer."""
    notes: list[tuple[KVCache, dict[int, set[int]]]] = []
    opened, updated = KVCache.open, KVCache.update

    def open_(self: KVCache, plan: Any) -> Any:
        notes.append((self, defaultdict(set)))
        return opened(self, plan)

    def update(self: KVCache, layer: int, access: Any, k: Any, v: Any) -> Any:
        notes[-1][1][layer] |= {p for p in access.slots[0].tolist() if p < self.slots}
        return updated(self, layer, access, k, v)

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "open", open_)
        patch.setattr(KVCache, "update", update)
        yield notes


def compared(
    monkeypatch: Any, rng: random.Random, model: Decoder, literal: Any, policy: Any, options: Any
) -> Iterator[tuple[Any, list[int]]]:
    """A random request decoded both ways, with the same commits, forwards and keys computed.

    Yields each literal cache with the numbers of the engine's forwards that were its own.
    """
    prompt = [rng.choice(PLAIN) for _ in range(rng.randint(0, 9))]
    size, block = rng.randint(3, 12), rng.choice([None, 1, 4, 5])
    threshold, guidance = rng.choice([None, 0.6]), rng.choice([0.0, 0.0, 0.7])
    watched = Watched(model)
    with written(monkeypatch) as notes:
        (output,) = run(
            watched,
            [prompt],
            max_new_tokens=size,
            block_length=block,
            sampler="quota" if threshold is None else f"threshold:threshold={threshold}",
            cfg_scale=guidance,
            cache=policy(*options),
        )
    expected, caches = decode(
        lambda: literal(Plain(model), len(prompt), len(prompt) + size, options),
        prompt,
        size,
        block=block,
        threshold=threshold,
        shift=model.spec.shift,
        guidance=guidance,
    )
    assert steps(output) == expected
    assert output.nfe == len(notes) == len(expected) * len(caches)
    for kv, cache in zip(watched.kvs, caches, strict=True):
        own = [i for i, (of, _) in enumerate(notes) if of is kv]
        assert [[notes[i][1][n] for n in range(3)] for i in own] == cache.computed
        yield cache, own
