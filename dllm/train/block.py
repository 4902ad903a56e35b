"""Block-diffusion loss (Fast-dLLM v2, arXiv 2509.26328): noisy blocks, each behind clean ones.

One forward holds three streams of a row: two noisy views of the answer's blocks, whose masks are
each other's complement, and the clean text. A noisy block sees itself and the clean blocks before
it, which is what `Decoder` computes while it decodes that block with cache='block'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm.cache.plan import Layer, Plan
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.train.data import Batch
from dllm.train.mdlm import TAIL_WEIGHT


@dataclass(frozen=True, slots=True)
class Streams:
    """The query axis [view 0 | view 1 | clean text] of rows whose answers lie in the same blocks.

    The views hold the blocks from `first` to `last`, the clean stream those before `last`: Q
    positions in whole blocks of `size`. As a `Walk` it gives every block its keys: its own, and
    the clean ones before it.
    """

    first: int
    last: int
    size: int

    @property
    def views(self) -> int:
        """Where the clean stream begins on the query axis."""
        return 2 * (self.last + 1 - self.first) * self.size

    @property
    def blocks(self) -> list[int]:
        """The block of the text in each block of the query axis."""
        return [*range(self.first, self.last + 1)] * 2 + [*range(self.last)]

    def pos(self, device: torch.device) -> Tensor:
        """[Q] absolute positions."""
        starts = torch.tensor(self.blocks, device=device) * self.size
        return (starts[:, None] + torch.arange(self.size, device=device)).flatten()

    def tokens(self, ids: Tensor, masked: Tensor, mask_id: int) -> Tensor:
        """[R, Q] from the text ids [R, T] and what each view masks [2, R, T]."""
        noisy = slice(self.first * self.size, (self.last + 1) * self.size)
        one, two = ids.masked_fill(masked, mask_id)[:, :, noisy]
        return torch.cat([one, two, ids[:, : self.last * self.size]], 1)

    def source(self, view: Tensor, pos: Tensor) -> Tensor:
        """The row of Q that predicts each position `pos` of a `view`: that of one before it.

        Before a block's first position is a finished block, which is clean when the block is
        decoded. Position 0 has its own row only.
        """
        before = (pos - 1).clamp(min=0)
        in_view = view * (self.views // 2) + before - self.first * self.size
        return torch.where((pos % self.size == 0) & (pos > 0), self.views + before, in_view)

    def layer(self, layer: Layer, x: Tensor, run: Any) -> tuple[Tensor, Any]:
        q, k, v = layer.heads(x, run)
        branches = []
        for index, block in enumerate(self.blocks):
            own = slice(index * self.size, (index + 1) * self.size)
            clean = slice(self.views, self.views + block * self.size)
            keys, values = (torch.cat([t[:, :, clean], t[:, :, own]], 2) for t in (k, v))
            branches.append(layer.attend(q[:, :, own], keys, values, None))
        x = x + torch.cat(branches, 1)
        return x + layer.feed(x), run


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
        ids = F.pad(batch.ids, (0, masked.shape[2] - batch.ids.shape[1]), value=model.spec.eos_id)
        share = Batch(ids[part], batch.start[part], batch.end[part])
        loss = torch.zeros((), device=model.device)
        # as in mdlm.loss: on a CPU plain matmuls have the faster backward
        with torch.autocast(model.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            for streams, rows in groups(share, size):
                views = (t[:, part][:, rows].to(model.device) for t in (masked, weights))
                loss = loss + _summed(model, streams, share.ids[rows].to(model.device), *views)
        return loss / weights.sum()


def groups(batch: Batch, size: int) -> Iterator[tuple[Streams, Tensor]]:
    """Rows [R] of the batch by the blocks that their answers lie in, so that none is padded."""
    blocks = torch.stack([batch.start, batch.end], 1) // size
    pairs, which = torch.unique(blocks, dim=0, return_inverse=True)
    for index, (first, last) in enumerate(pairs.tolist()):
        yield Streams(first, last, size), (which == index).nonzero()[:, 0]


def _summed(
    model: Decoder, streams: Streams, ids: Tensor, masked: Tensor, weights: Tensor
) -> Tensor:
    """Weighted cross-entropy (nats) of the rows ids [R, T] under weights [2, R, T]."""
    view, row, pos = weights.nonzero(as_tuple=True)
    where = streams.pos(ids.device)[None]
    x = model.embed(streams.tokens(ids, masked, model.spec.mask_id))
    hidden = model.body(x, Plan(where, where, walk=streams))
    logits = model.head(hidden[row, streams.source(view, pos)])
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    nll = F.cross_entropy(wide, ids[row, pos], reduction="none")
    return (nll * weights[view, row, pos]).sum()
