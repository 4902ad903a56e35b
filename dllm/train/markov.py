"""Loss of a Markov head: a drafter's logits, biased by the true token before each, say the token.

DSpark (arXiv 2607.05147). The drafter is frozen: compute its logits without gradients, then only
the head learns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.errors import DllmError
from dllm.models.markov import MarkovHead

DECAY = 4.0  # the paper's for blocks of 7
TV_SHARE = 0.9


def markov_logits(head: MarkovHead, logits: Tensor, prev: Tensor) -> Tensor:
    """A drafter's logits [..., V] behind the tokens prev [...], in fp32."""
    return logits.float() + head.bias(prev).float()


def markov_loss(
    head: MarkovHead,
    logits: Tensor,
    tokens: Tensor,
    last: Tensor,
    *,
    valid: Tensor | None = None,
    target: Tensor | None = None,
    decay: float = DECAY,
    tv_share: float = TV_SHARE,
) -> Tensor:
    """Mean loss (nats) of the head on drafts of K positions, teacher-forced.

    logits [B, K, V]: the drafter's.  tokens [B, K]: the true ones.  last [B]: the token before each
    draft.  valid [B, K]: which positions count (None: all).  Position k = 0, 1, ... weighs
    exp(-k / decay), as it counts only where all before it are accepted.
    target [B, K, V]: the target's probabilities behind the true tokens. With them the loss is
    (1 - tv_share) cross-entropy + tv_share total variation: how often a drawn token is rejected.
    """
    if not decay > 0:
        raise DllmError(f"decay={decay}: expected a number of positions above 0")
    if not 0 <= tv_share <= 1:
        raise DllmError(f"tv_share={tv_share}: expected a number from 0 to 1")
    prev = torch.cat([last[:, None], tokens[:, :-1]], 1)
    biased = markov_logits(head, logits, prev)
    loss = F.cross_entropy(biased.transpose(1, 2), tokens, reduction="none")
    if target is not None:
        tv = (biased.softmax(-1) - target).abs().sum(-1) / 2
        loss = (1 - tv_share) * loss + tv_share * tv
    ahead = torch.arange(tokens.shape[1], device=tokens.device)
    weights = torch.exp(-ahead / decay).expand_as(loss)
    if valid is not None:
        weights = weights * valid
    return (weights * loss).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
