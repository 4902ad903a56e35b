"""Time and multiplications of cached steps: the machinery behind benchmarks.caches.

A random LLaDA-shaped model decodes a fixed number of tokens a step, so that all policies make the
same steps. A long generation is not run whole: its first step is, and it is looked into at a few
blocks, where all before the block stands as prompt. Of each look the first step, in which policies
compute what they keep, is left out; those behind it span one block, the entry into the next
included. Whole generation = its first step + the others at the mean of all looks.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import opened
from dllm.config import DecodeConfig
from dllm.models.decoder import Attention, Decoder, DecoderLayer
from dllm.models.spec import ModelSpec
from dllm.output import Commit

PROMPT, BLOCK, PER_STEP = 256, 32, 4  # tokens
PERIOD = BLOCK // PER_STEP  # steps of a block
LOOKS = (0.25, 0.75)  # where a generation is looked into, as a share of its blocks
SPEC = ModelSpec(
    family="llada",
    vocab_size=4096,
    hidden_size=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    mlp_size=1408,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    mask_id=1,
    eos_id=0,
    pad_id=0,
    rope_fp32=True,
    max_positions=4096,
)


def model(block_length: int | None = None) -> Decoder:
    """Random weights of 30 M parameters in fp32, the same for both attention rules."""
    torch.manual_seed(0)
    return Decoder(replace(SPEC, block_length=block_length)).eval()


class Work:
    """Counts matrix products where they happen, so that no policy has to report its own.

    flops: of all linear layers, and of attention over the keys it is given. rows: positions taken
    through the feed-forward branch, summed over layers. Both include padding.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.flops = self.rows = 0
        for module in decoder.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._linear)
            elif isinstance(module, Attention):
                module.register_forward_pre_hook(self._attention)
            elif isinstance(module, DecoderLayer):
                module.gate.register_forward_pre_hook(self._row)

    def _linear(self, layer: nn.Linear, args: tuple[Tensor]) -> None:
        self.flops += 2 * args[0].numel() * layer.out_features

    def _attention(self, layer: Attention, args: tuple[Tensor, ...]) -> None:
        q, k = args[:2]  # [B, H, Q, D], [B, H_kv, K, D]: scores, and the mean of the values
        self.flops += 4 * q.numel() * k.shape[2]

    def _row(self, layer: nn.Linear, args: tuple[Tensor]) -> None:
        self.rows += args[0].numel() // layer.in_features


def formula(batch: int, queries: int, slots: int, heads: int) -> int:
    """FLOPs of one forward by the usual count: 2 W Q + 4 L d Q T, and the head's."""
    d, s = SPEC.hidden_size, SPEC
    trunk = s.num_layers * (4 * d * d + 3 * d * s.mlp_size)
    attention = 4 * s.num_layers * d * queries * slots
    return batch * (2 * trunk * queries + attention + 2 * d * s.vocab_size * heads)


@dataclass(frozen=True, slots=True)
class Moment:
    """One step: wall time, what it multiplied, tokens committed and forwards, of all rows."""

    seconds: float
    flops: int
    rows: int
    tokens: int
    forwards: int


def look(
    decoder: Decoder, work: Work, cache: str, batch: int, generated: int, block: int, steps: int
) -> tuple[list[Moment], int]:
    """`steps` steps from that block of a generation on, and the bytes stored at their end."""
    generator = torch.Generator().manual_seed(block)
    shape = (batch, PROMPT + block * BLOCK)
    prompts = torch.randint(2, SPEC.vocab_size, shape, generator=generator).tolist()
    left = generated - block * BLOCK
    config = DecodeConfig(
        max_new_tokens=left,
        block_length=BLOCK,
        sampler=f"quota:steps={left // PER_STEP},logits_eos_inf=true",
        cache=cache,
    )
    decoding = opened(decoder, prompts, config)
    moments, forwards = [], 0
    for _ in range(steps):
        work.flops = work.rows = 0
        began = time.perf_counter()
        decoding.step()
        seconds = time.perf_counter() - began
        commits = (event for event in decoding.events if isinstance(event, Commit))
        tokens = sum(len(commit.positions) for commit in commits)  # no row ends within a look
        total = int(decoding.standing.nfe.sum())
        moments.append(Moment(seconds, work.flops, work.rows, tokens, total - forwards))
        forwards = total
    return moments, sum(kv.nbytes for kv in decoding.forward.kvs)


def steadied(looks: list[list[Moment]]) -> list[list[Moment]]:
    """Each step at the median time of all steps that do the same work."""
    same: dict[int, list[float]] = defaultdict(list)
    for moment in itertools.chain(*looks):
        same[moment.flops].append(moment.seconds)
    return [[replace(m, seconds=statistics.median(same[m.flops])) for m in one] for one in looks]


def whole(looks: list[list[Moment]], batch: int, generated: int) -> dict[str, Any]:
    """Sums over a whole generation of `generated` tokens in each of `batch` rows.

    looks of one step are the generation's first.
    """
    first = [one[0] for one in looks if len(one) == 1]
    later = [moment for one in looks for moment in one[1:]]
    left = batch * generated - statistics.fmean(moment.tokens for moment in first)
    tokens = sum(moment.tokens for moment in later)
    found = {}
    for name in ("seconds", "flops", "rows", "forwards"):
        begin = statistics.fmean(getattr(moment, name) for moment in first)
        found[name] = begin + left / tokens * sum(getattr(moment, name) for moment in later)
    return {**found, "tokens_per_step": tokens / len(later) / batch}


@dataclass(frozen=True, slots=True)
class Contender:
    """A cache spec on one of the two models."""

    cache: str
    causal: bool = False

    @property
    def policy(self) -> str:
        return self.cache.partition(":")[0]


def measure(
    contenders: Sequence[Contender], generated: int, batch: int, repeats: int
) -> list[dict[str, Any]]:
    """One row for each contender, visited in turns; the first of each model is its reference.

    generated: tokens of an answer, four blocks at least.
    """
    models = {causal: model(BLOCK if causal else None) for causal in {c.causal for c in contenders}}
    works = {causal: Work(decoder) for causal, decoder in models.items()}
    looks: dict[Contender, list[list[Moment]]] = defaultdict(list)
    stored: dict[Contender, int] = {}
    blocks = generated // BLOCK
    places = [min(int(share * blocks), blocks - 2) for share in LOOKS]
    for _, place, c in itertools.product(range(repeats), (0, *places), contenders):
        steps = 3 if c.policy == "none" else 1 + PERIOD  # all steps of `none` are alike
        decoder, work, steps = models[c.causal], works[c.causal], steps if place else 1
        moments, stored[c] = look(decoder, work, c.cache, batch, generated, place, steps)
        looks[c].append(moments)
    rows = []
    for c in contenders:
        found = whole(steadied(looks[c]), batch, generated)
        rows.append(
            {
                "policy": c.policy,
                "cache": c.cache,
                "block_causal": c.causal,
                "generated": generated,
                "batch": batch,
                **found,
                "bytes": stored[c],
            }
        )
    for row in rows:
        compare(row, next(r for r in rows if r["block_causal"] == row["block_causal"]))
    return rows


def compare(row: dict[str, Any], none: dict[str, Any]) -> None:
    """Put a row's ratios to its reference into it.

    achieved: the share of the FLOP saving realised in time.
    """
    row["time_ratio"] = row["seconds"] / none["seconds"]
    row["flop_ratio"] = row["flops"] / none["flops"]
    saved = 1 - row["flop_ratio"]
    row["achieved"] = (1 - row["time_ratio"]) / saved if saved > 0 else None


def slope(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """The exponent of seconds in lengths: least squares on logarithms."""
    return statistics.linear_regression(
        torch.tensor(lengths).double().log().tolist(), torch.tensor(seconds).double().log().tolist()
    ).slope
