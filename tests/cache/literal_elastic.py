"""Elastic-Cache for one row, from its text: plain sets, whole attention matrices, no KV cache.

Slow and literal. Knows nothing of the policy, the plans or the engine; of the model it takes the
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm.models.decoder import Decoder, DecoderLayer


@dataclass
class Kept:
    """Of one layer, for all T positions: inputs, queries, keys, values; the tracked tokens."""

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    tracked: list[int] = field(default_factory=list)


@dataclass
class Told:
    """What a decoding did, by forward: positions that each layer computed, tokens by position."""

    computed: list[list[set[int]]] = field(default_factory=list)
    commits: list[dict[int, int]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # [W, V] of the window, by forward


Choose = Callable[[dict[int, float]], list[int]]  # of the confidences by position


def decode(
    model: Decoder,
    prompt: list[int],
    size: int,
    choose: Choose,
    *,
    window: int,
    gamma: float,
    tracked: int,
    union: bool = False,
    refresh: int | None = None,
) -> Told:
    """Decode `size` tokens behind `prompt`. union: every layer tests what any layer tracks."""
    spec, told = model.spec, Told()
    ids = prompt + [spec.mask_id] * size
    length, masked = len(ids), set(range(len(prompt), len(ids)))
    kept = [_nothing(model, length) for _ in model.layers]
    decoded: set[int] = set()
    forward = 0
    while masked:
        nearest = sorted(masked)[:window]
        if forward == 0 or (refresh is not None and forward % refresh == 0):
            rows, start = set(range(length)), 0
        else:
            rows = decoded | set(nearest) | {r for layer in kept for r in layer.tracked}
            rows |= {max(p - spec.shift, 0) for p in nearest}
            start = len(kept)
        every = sorted({r for layer in kept for r in layer.tracked})
        tested = [every if union else layer.tracked for layer in kept]
        out, computed = _forward(
            model, ids, rows, start, kept, tested, nearest, masked, gamma, tracked
        )
        told.computed.append(computed)
        logits = [model.head(model.norm(out[max(p - spec.shift, 0)])) for p in nearest]
        told.logits.append(torch.stack(logits))
        best, conf = {}, {}
        for p, row in zip(nearest, logits, strict=True):
            row[spec.mask_id] = -torch.inf
            probs = torch.softmax(row, -1)
            conf[p], best[p] = float(probs.max()), int(probs.argmax())
        decoded = set(choose(conf))
        told.commits.append({p: best[p] for p in decoded})
        for p in decoded:
            ids[p] = best[p]
        masked -= decoded
        forward += 1
        ends = [p for p in range(len(prompt), length) if ids[p] == spec.eos_id]
        if ends and (not masked or min(ends) < min(masked)):
            break
    return told


def _nothing(model: Decoder, length: int) -> Kept:
    spec = model.spec
    heads = [(spec.num_heads,), (spec.num_kv_heads,), (spec.num_kv_heads,)]
    q, k, v = (torch.zeros(*h, length, spec.head_dim, dtype=model.dtype) for h in heads)
    return Kept(torch.zeros(length, spec.hidden_size, dtype=model.dtype), q, k, v)


def _forward(
    model: Decoder,
    ids: list[int],
    rows: set[int],
    start: int,
    kept: list[Kept],
    tested: list[list[int]],
    nearest: list[int],
    masked: set[int],
    gamma: float,
    count: int,
) -> tuple[dict[int, Tensor], list[set[int]]]:
    """Rows behind the last layer by position, and the positions each layer computed.

    start: the layer from which everything is computed, as it stands before the first one. tested:
    by layer, the tokens whose attention is compared with what it was.
    """
    everything = range(len(ids))
    x = {p: model.embed.weight[ids[p]] for p in rows}
    computed = []
    for index, (layer, own) in enumerate(zip(model.layers, kept, strict=True)):
        for p in x:
            own.x[p] = x[p]
        if index == start:
            x = {p: own.x[p] for p in everything}
        computed.append(set(x))
        before = [_row(own, own.q[:, r]) for r in tested[index]]  # a_old, by tested token
        places = list(x)  # all rows of a layer at once: a row alone costs as much as all of them
        stacked = torch.stack([x[p] for p in places])
        own.q[:, places], own.k[:, places], own.v[:, places] = _heads(layer, stacked, places)
        rows_of = _row(own, own.q[:, places])  # [H, n, T]
        weights = {p: rows_of[:, i] for i, p in enumerate(places)}  # [H, T] each
        stacked = stacked + _branch(layer, rows_of, own.v)
        x = dict(zip(places, stacked + layer.feed(stacked), strict=True))
        if index < start and tested[index]:
            cosines = []  # across the heads, for every tracked row and key
            for r, old in zip(tested[index], before, strict=True):
                cosines += (old * weights[r]).sum(0) / old.norm(dim=0) / weights[r].norm(dim=0)
            if sum(cosines) / len(cosines) < gamma:
                start = index + 1
        mass = sum(weights[p].sum(0) for p in nearest).tolist()
        known = [key for key in everything if key not in masked]
        own.tracked = sorted(known, key=lambda key: -mass[key])[:count]
    return x, computed


def _heads(layer: DecoderLayer, x: Tensor, places: list[int]) -> list[Tensor]:
    """q [H, n, D], k and v [H_kv, n, D] of rows x [n, d], q and k turned by their positions."""
    spec, x = layer.attn.spec, layer.attn_norm(x)
    half = spec.head_dim // 2
    turn = spec.rope_theta ** (-torch.arange(half, dtype=x.dtype) / half)
    turn = torch.tensor(places, dtype=x.dtype)[:, None] * turn  # [n, D/2]
    found = []
    for name in ("q", "k", "v"):
        heads = getattr(layer.attn, name)(x).view(len(places), -1, spec.head_dim).transpose(0, 1)
        if name != "v":
            a, b = heads[..., :half], heads[..., half:]
            turned = [a * turn.cos() - b * turn.sin(), b * turn.cos() + a * turn.sin()]
            heads = torch.cat(turned, -1)
        found.append(heads)
    return found


def _row(own: Kept, q: Tensor) -> Tensor:
    """The attention rows [H, n, T] of the queries q [H, n, D]; [H, T] of one, [H, D]."""
    if q.ndim == 2:
        return _row(own, q[:, None])[:, 0]
    k = own.k.repeat_interleave(q.shape[0] // own.k.shape[0], 0)  # [H, T, D]
    return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)


def _branch(layer: DecoderLayer, weights: Tensor, v: Tensor) -> Tensor:
    """What attention weights [H, n, T] over values [H_kv, T, D] add to the rows: [n, d]."""
    v = v.repeat_interleave(weights.shape[0] // v.shape[0], 0)  # [H, T, D]
    found: Tensor = layer.attn.o((weights @ v).transpose(0, 1).flatten(1))
    return found
