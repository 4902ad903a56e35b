"""Masked-diffusion loss (LLaDA, arXiv 2502.09992, section 2): mask answer tokens, predict them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm.cache.plan import Plan
from dllm.models.decoder import Decoder
from dllm.train.data import Batch

FRONTIER, BLOCKWISE = 0.45, 0.2  # shares of the rows; see `corrupt`
TAIL_WEIGHT = 0.1  # padding is easy and long: at full weight it would be most of the loss


def corrupt(batch: Batch, mask_id: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask part of every answer; return the noisy ids [B, T] and the loss weights [B, T].

    Of an answer with its first two EOS (L tokens) l ~ U{1..L} random ones are masked, each with
    weight 1/l: LLaDA's bound up to a constant. In BLOCKWISE of the rows everything behind a random
    cut is masked too, as it is for a sampler that works in blocks. FRONTIER rows are all known
    before the cut, all masked behind it, and only the first two masks count: what has to be worked
    out (a sum, say) and cannot be copied from further on. The padding behind the answer is all
    masked in most rows, as at the start of a generation.
    """
    ids, rows = batch.ids, batch.ids.shape[0]
    pos = torch.arange(ids.shape[1])[None]
    core = (pos >= batch.start[:, None]) & (pos < batch.end[:, None] + 2)
    tail = pos >= batch.end[:, None] + 2
    length = core.sum(1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    count = 1 + (uniform(rows) * length).long()
    rank = uniform(*ids.shape).masked_fill(~core, 2.0).argsort(1).argsort(1)
    masked = core & (rank < count[:, None])
    cut = (batch.start + (uniform(rows) * length).long())[:, None]
    kind = uniform(rows)[:, None]
    behind, frontier = core & (pos >= cut), kind < FRONTIER
    masked = torch.where(frontier, behind, masked | (behind & (kind < FRONTIER + BLOCKWISE)))
    counted = masked & (~frontier | (pos < cut + 2))
    ratio = torch.where(uniform(rows) < 0.7, 1.0, count / length)
    masked_tail = tail & (uniform(*ids.shape) < ratio[:, None])

    weights = counted / counted.sum(1, keepdim=True)
    weights += TAIL_WEIGHT * masked_tail / masked_tail.sum(1, keepdim=True).clamp(min=1)
    return ids.masked_fill(masked | masked_tail, mask_id), weights


def loss(model: Decoder, batch: Batch, generator: torch.Generator, part: slice) -> Tensor:
    """Weighted cross-entropy (nats a row) of the masked tokens, the head run on those alone.

    `part` are the rows of this process; their sum is divided by the size of the whole batch, so
    that the processes' losses add up to that of one.
    """
    noisy, weights = corrupt(batch, model.spec.mask_id, generator)
    ids, noisy, weights = batch.ids[part], noisy[part], weights[part]
    chosen = weights > 0
    plan = Plan.full(noisy.shape[1], noisy.shape[0])
    # On CPU the flash kernel's backward takes longer than the whole forward; plain matmuls do not.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits = model.head(model.hidden(noisy, plan)[chosen])
    nll = F.cross_entropy(logits.float(), ids[chosen], reduction="none")
    return (nll * weights[chosen]).sum() / batch.ids.shape[0]
