"""A model and a tokenizer small enough to reason about.

What `FakeModel` puts out at a position depends on the row's own ids and on that position, not on
neighbours, padding or earlier calls. Every committed token changes all logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan

PAD, EOS, EOT, MASK, VOCAB = 0, 1, 2, 5, 13
PLAIN = (3, 4, 6, 7, 8, 9, 10, 11, 12)  # the tokens that are nothing special

Out = Callable[[np.ndarray], np.ndarray]  # ids [L] -> logits [L, V], one row per position


@dataclass(frozen=True)
class FakeSpec:
    shift: Literal[0, 1] = 0
    family: str = "fake"
    vocab_size: int = VOCAB
    mask_id: int = MASK
    eos_id: int = EOS
    pad_id: int = PAD
    stop_ids: tuple[int, ...] = (EOS, EOT)
    block_length: int | None = None
    max_positions: int = 256


def _mix(x: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finaliser."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def hashed(seed: int = 0, spread: float = 2.0) -> Out:
    """Logistic noise times `spread` from a hash of the whole row, the position and the token."""

    def out(ids: np.ndarray) -> np.ndarray:
        pos = np.arange(1, len(ids) + 1, dtype=np.uint64)
        content = _mix(_mix(ids.astype(np.uint64) + np.uint64(1)) + pos).sum() + np.uint64(seed)
        cells = pos[:, None] * np.uint64(VOCAB) + np.arange(VOCAB, dtype=np.uint64)
        u = ((_mix(_mix(content[None]) + cells) >> np.uint64(12)) + 0.5) * 2.0**-52
        return spread * (np.log(u) - np.log1p(-u))

    return out


def drifting(seed: int, drift: float) -> Out:
    """Logits that mostly stay as tokens are committed, so that guesses often come true."""
    still, moving = hashed(seed, 3.0), hashed(seed + 1, drift)
    return lambda ids: still(np.zeros_like(ids)) + moving(ids)


def constant(value: float = 0.0) -> Out:
    """The same logits everywhere: everything ties."""
    return lambda ids: np.full((len(ids), VOCAB), value)


def leaning(token: int, height: float = 30.0, base: Out | None = None) -> Out:
    """`base` with one token raised at every position, so that it is proposed everywhere."""

    def out(ids: np.ndarray) -> np.ndarray:
        logits = (base or hashed())(ids).copy()
        logits[:, token] += height
        return logits

    return out


def scripted(tokens: Mapping[int, int], heights: Mapping[int, float] | float = 8.0) -> Out:
    """Zeros, but for the token that each position proposes, at its height."""

    def out(ids: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(ids), VOCAB))
        for pos, token in tokens.items():
            if pos < len(ids):
                logits[pos, token] = heights if isinstance(heights, (int, float)) else heights[pos]
        return logits

    return out


class FakeModel:
    """`out` behind the Model protocol; remembers its calls, and fails where it is told to.

    interrupt_at: the call (from 0) that raises KeyboardInterrupt. poison: (call, batch row, value):
    one logit of every position of that row becomes `value`.
    """

    def __init__(
        self,
        out: Out | None = None,
        shift: Literal[0, 1] = 0,
        dtype: torch.dtype = torch.float64,
        interrupt_at: int | None = None,
        poison: tuple[int, int, float] | None = None,
    ) -> None:
        self.out, self.spec, self.dtype = out or hashed(), FakeSpec(shift), dtype
        self.device = torch.device("cpu")
        self.interrupt_at, self.poison = interrupt_at, poison
        self.plans: list[ForwardPlan] = []
        self.seen: list[Tensor] = []  # the ids of every call

    @property
    def calls(self) -> int:
        return len(self.plans)

    @property
    def batches(self) -> list[int]:
        """How many rows each call had."""
        return [len(ids) for ids in self.seen]

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        raise NotImplementedError("the fake computes every row anew")

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        valid = torch.ones_like(plan.pos, dtype=torch.bool) if plan.valid is None else plan.valid
        # Rows asked for at padding stay NaN: nobody may look at them.
        logits = torch.full((*plan.head.shape, VOCAB), torch.nan, dtype=torch.float64)
        each, equal = torch.unique(
            torch.where(valid, ids.gather(1, plan.pos), -1), dim=0, return_inverse=True
        )
        size = valid.sum(1)
        whole = torch.where(valid, torch.arange(plan.pos.shape[1]), plan.pos)
        assert torch.equal(plan.pos, whole), "an uncached row is computed whole"
        assert torch.equal(valid, torch.arange(valid.shape[1]) < size[:, None])
        real = valid.gather(1, plan.head)
        for i, row in enumerate(each):  # equal rows are computed once
            out = torch.from_numpy(self.out(row[row >= 0].numpy()))
            these = (equal == i)[:, None] & real
            logits[these] = out[plan.pos.gather(1, plan.head)[these]]
        if self.poison is not None and self.calls == self.poison[0]:
            logits[self.poison[1], :, PLAIN[-1]] = self.poison[2]
        self.plans.append(plan)
        self.seen.append(ids.clone())
        return logits.to(self.dtype)


class FakeText:
    """One string per token id; some tokens hold several characters, special ones none."""

    has_chat_template = True
    pieces = ("", "", "", "a", "b", "", "c", "d", "ab", "cd", "\n", "x\ny", "é")

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in ids)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [EOT, *self.encode("".join(m["content"] for m in messages)), EOT]
