"""CreditDecoding: tokens that keep being the best earn a higher logit (arXiv 2510.06133)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_number, check_probability, check_whole
from dllm.decoding.state import Fields, StateField
from dllm.samplers.transforming import State

MOST_SLOTS = 1024  # each is 12 bytes for every position; hardly one has so many best tokens


@dataclass(frozen=True)
class Credit:
    """Add alpha * ln(1 + credit) to the logits, for proposals and confidences alike.

    Every time a masked position is scored, its credits shrink by the factor `beta`, the most likely
    token of the raw logits earns p^gamma, and then the credits are added. The paper's values (its
    rule is Fast-dLLM's threshold 0.9).

    The paper keeps a credit for every position and token of the vocabulary. Here a position has
    `slots` of them, and a new token takes the one with the least credit: the same as long as a
    position has had no more than `slots` different best tokens. Logits come back in fp32 at
    least, in place where they are.
    """

    paper: ClassVar[str] = "CreditDecoding, arXiv 2510.06133"
    alpha: float = 0.7
    beta: float = 0.8
    gamma: float = 0.2
    slots: int = 8

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0)
        check_probability("beta", self.beta)
        check_number("gamma", self.gamma, 0)
        check_whole("slots", self.slots, 1, MOST_SLOTS)

    @property
    def fields(self) -> Fields:
        """The `slots` of every position; token -1 is a free one."""
        own = (self.slots,)
        return {
            "token": StateField(-1, per_position=True, shape=own),
            "credit": StateField(0, "float32", per_position=True, shape=own),
        }

    def apply(self, logits: Tensor, pos: Tensor, valid: Tensor, state: State) -> Tensor:
        z = logits if logits.dtype == torch.float64 else logits.float()
        high, top = z.max(-1, keepdim=True)  # [B, K, 1]
        total = (z - high).exp_().sum(-1, keepdim=True)  # 1 / p of the best
        earned = total.pow(-self.gamma).float()

        # what is no masked position reads and writes the column behind all positions
        behind = state["token"].shape[1] - 1
        where = pos.where(valid, behind)[..., None].expand(-1, -1, self.slots)
        token = state["token"].gather(1, where)  # [B, K, slots]
        credit = state["credit"].gather(1, where) * self.beta
        own = token == top
        slot = torch.where(own.any(-1), own.long().argmax(-1), credit.argmin(-1))[..., None]
        before = credit.masked_fill(~own, 0.0).sum(-1, keepdim=True)
        token = token.scatter(2, slot, top)
        credit = credit.scatter(2, slot, before + earned)

        for name, new in (("token", token), ("credit", credit)):
            state[name] = state[name].scatter(1, where, new)
        bonus = (self.alpha * credit.log1p()).masked_fill(~valid[..., None], 0.0)
        return z.scatter_add_(2, token.clamp(min=0), bonus.to(z.dtype))
