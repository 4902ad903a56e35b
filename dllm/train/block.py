"""Block-diffusion loss (Fast-dLLM v2, arXiv 2509.26328): noisy blocks, each behind clean ones.

One forward holds three streams of a row: two noisy views of the answer's blocks, whose masks are
each other's complement, and the clean text. A noisy block sees itself and the clean blocks before
it, which is what `Decoder` computes while it decodes that block with cache='block'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm.cache.plan import Layer, Plan
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.data import Batch
from dllm.train.mdlm import TAIL_WEIGHT


@dataclass(frozen=True, slots=True)
class Visible:
    """Takes all rows through a layer under one attention mask [B, 1, Q, Q] (True: may be read)."""

    mask: Tensor

    def layer(self, layer: Layer, x: Tensor, run: Any) -> tuple[Tensor, Any]:
        x = x + layer.attend(*layer.heads(x, run), self.mask)
        return x + layer.feed(x), run


@dataclass(frozen=True, slots=True)
class Streams:
    """What goes into the decoder: [noisy view 0 | noisy view 1 | clean text] of every row.

    tokens, pos [B, Q];  visible [B, Q, Q];  source [2, B, T]: the row of Q that predicts a
    position in a view, for positions in the answer's blocks.
    """

    tokens: Tensor
    pos: Tensor
    visible: Tensor
    source: Tensor

    @classmethod
    def of(
        cls, ids: Tensor, masked: Tensor, start: Tensor, end: Tensor, spec: ModelSpec
    ) -> Streams:
        """Of the text ids [B, T], whole blocks, with masks at masked [2, B, T].

        The views hold the blocks from that of `start` [B] to that of `end` [B], the clean stream
        what is before the last of them. Shorter rows are padded behind both; nothing real sees it.
        """
        size = spec.block_length
        assert size is not None
        first, last = start // size, end // size
        noisy = (int((last - first).max()) + 1) * size
        clean = torch.arange(int(last.max()) * size, device=ids.device)
        where = first[:, None] * size + torch.arange(noisy, device=ids.device)  # [B, noisy]
        inside = where.clamp(max=ids.shape[1] - 1)
        views = ids.masked_fill(masked, spec.mask_id)  # [2, B, T]
        tokens = [*(view.gather(1, inside) for view in views), ids[:, : len(clean)]]
        pos = torch.cat([where, where, clean.expand(len(ids), -1)], 1)
        stream = torch.tensor([0, 1, 2], device=ids.device).repeat_interleave(
            torch.tensor([noisy, noisy, len(clean)], device=ids.device)
        )
        visible = _visible(stream, pos // size)
        return cls(torch.cat(tokens, 1), pos, visible, _source(ids.shape[1], first, noisy, size))


def _visible(stream: Tensor, block: Tensor) -> Tensor:
    """[B, Q, Q] from stream [Q] (2 is clean) and block [B, Q]: own block, and clean ones before."""
    query, key = block[:, :, None], block[:, None, :]
    own = (stream[:, None] == stream[None]) & (query == key)
    return own | ((stream == 2) & (key < query))


def _source(length: int, first: Tensor, noisy: int, size: int) -> Tensor:
    """[2, B, length]: a position is predicted one row before it, in its view or the clean stream.

    The row before a block's first position is in a finished block, which is clean when the block is
    decoded. Position 0 has its own row only.
    """
    pos = torch.arange(length, device=first.device)
    before = (pos - 1).clamp(min=0)
    view = torch.arange(2, device=first.device)[:, None, None]
    in_view = view * noisy + before - first[:, None] * size
    return torch.where((pos % size == 0) & (pos > 0), 2 * noisy + before, in_view)


@dataclass(frozen=True)
class BlockLoss:
    """Cross-entropy (nats a token) of the answers, every token once: masked in one of two views.

    In each block a token is masked in view 0 with a probability t ~ U(0, 1) of that block, else in
    view 1. frontier: share of the blocks in which view 0 masks what is behind a random cut, view 1
    what is before it; 0 is the paper's. What follows the end of text in its block is end of text
    too and counts tail_weight a token; in the share tail_hidden of the rows both views mask all of
    it, as at the start of a generation.
    """

    frontier: float = 0.0
    tail_weight: float = TAIL_WEIGHT
    tail_hidden: float = 0.7

    def __post_init__(self) -> None:
        for name in ("frontier", "tail_weight", "tail_hidden"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r}: expected a number from 0 to 1")

    def corrupt(self, batch: Batch, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the views mask, and the loss weights: both [2, B, T], T whole blocks."""
        blocks = int(batch.end.max()) // size + 1
        pos, rows = torch.arange(blocks * size), len(batch.ids)
        start, stop = batch.start[:, None], batch.end[:, None] + 1  # behind the end of text

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        def spread(by_block: Tensor) -> Tensor:
            return by_block.repeat_interleave(size, 1)

        level, kind, place = uniform(3, rows, blocks)
        opens = torch.arange(blocks) * size
        low, high = opens.maximum(start), (opens + size).minimum(stop)
        cut = low + (place * (high - low)).floor()
        one = uniform(rows, len(pos)) < spread(level)
        one = torch.where(spread(kind < self.frontier), pos >= spread(cut), one)

        answer = (pos >= start) & (pos < stop)
        tail = (pos >= stop) & (pos // size == batch.end[:, None] // size)
        hidden = tail & (uniform(rows, 1) < self.tail_hidden)
        masked = torch.stack([one, ~one]) & (answer | tail) | hidden
        return masked, masked * (answer + self.tail_weight * tail)

    def __call__(
        self, model: Decoder, batch: Batch, generator: torch.Generator, part: slice
    ) -> Tensor:
        """The loss of this process's rows `part`, divided by the weight of the whole batch."""
        size = model.spec.block_length
        if size is None:
            raise DllmError("block_length=None: expected a model with blocks (bd_size)")
        masked, weights = self.corrupt(batch, size, generator)
        total = weights.sum()
        ids = F.pad(batch.ids, (0, masked.shape[2] - batch.ids.shape[1]), value=model.spec.eos_id)
        ids, start, end, masked, weights = (
            t.to(model.device)
            for t in (
                ids[part],
                batch.start[part],
                batch.end[part],
                masked[:, part],
                weights[:, part],
            )
        )
        streams = Streams.of(ids, masked, start, end, model.spec)
        plan = Plan(streams.pos, streams.pos, walk=Visible(streams.visible[:, None]))
        chosen = weights > 0
        row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(weights)[chosen]
        # as in mdlm.loss: on a CPU plain matmuls have the faster backward
        with torch.autocast(model.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            hidden = model.body(model.embed(streams.tokens), plan)
            logits = model.head(hidden[row, streams.source[chosen]])
        nll = F.cross_entropy(
            logits.double() if logits.dtype == torch.float64 else logits.float(),
            ids.expand_as(weights)[chosen],
            reduction="none",
        )
        return (nll * weights[chosen]).sum() / total
