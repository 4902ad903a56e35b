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
from torch import Tensor

from dllm.cache.plan import ForwardPlan, Layer
from dllm.models.decoder import Decoder
from dllm.train.mdlm import weighted


@dataclass(frozen=True, slots=True)
class Streams:
    """The query axis [view 0 | view 1 | clean text] of rows whose answers lie in the same blocks.

    The views hold the blocks from `first` to `last`, the clean stream those before `last`: Q
    positions in whole blocks of `size`. As a `LayerRunner` it gives every block its keys: its
    own, and the clean ones before it.
    """

    first: int
    last: int
    size: int

    @property
    def views(self) -> int:
        """The first row of the clean stream on the query axis."""
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


def groups(start: Tensor, end: Tensor, size: int) -> Iterator[tuple[Streams, Tensor]]:
    """Rows [R] grouped by the blocks that hold their answers, so that none has to be padded.

    start, end [B]: first position of each answer, and that of the token that ends it.
    """
    blocks = torch.stack([start, end], 1) // size
    pairs, which = torch.unique(blocks, dim=0, return_inverse=True)
    for index, (first, last) in enumerate(pairs.tolist()):
        yield Streams(first, last, size), (which == index).nonzero()[:, 0]


def nll(model: Decoder, streams: Streams, ids: Tensor, masked: Tensor, weights: Tensor) -> Tensor:
    """Sum of the cross-entropies (nats) of ids [R, T] under masks and weights [2, R, T]."""
    view, row, pos = weights.nonzero(as_tuple=True)
    where = streams.pos(ids.device)[None]
    x = model.embed(streams.tokens(ids, masked, model.spec.mask_id))
    hidden = model.body(x, ForwardPlan(where, where, runner=streams))
    logits = model.head(hidden[row, streams.source(view, pos)])
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    return weighted(wide, ids[row, pos], weights[view, row, pos])
