"""A model that remembers what it computed; for runs that decode the same prompts many times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.models.protocol import Model

MEMO_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class RememberedLogits:
    """Logits [n, V] of one canvas, out of its positions heads [n] (ascending, on the CPU)."""

    heads: Tensor
    logits: Tensor

    def find(self, wanted: Tensor) -> Tensor | None:
        """[m, V] logits of the heads `wanted` [m]; None if not all of them are known."""
        if not bool(torch.isin(wanted, self.heads).all()):
            return None
        return self.logits[torch.searchsorted(self.heads, wanted).to(self.logits.device)]

    def joined(self, other: RememberedLogits) -> RememberedLogits:
        """This and what the other knows beyond it."""
        more = ~torch.isin(other.heads, self.heads)
        heads, order = torch.cat([self.heads, other.heads[more]]).sort()
        logits = torch.cat([self.logits, other.logits[more.to(other.logits.device)]])
        return RememberedLogits(heads, logits[order.to(logits.device)])


class MemoModel:
    """A model that remembers the logits of canvases it has seen, for settings that share them.

    Only uncached forwards over whole rows; others go through. Of a batch, the rows that are new are
    computed. Logits come back as they were computed; in fp32 the last bits may differ from what
    another batch around the row would have given. Entries of `head` with which the engine fills
    rows up (behind the ascending ones, and predicting no masked position) come back as zeros.

    limit: bytes of logits, on the model's device; beyond it the least recently used canvas goes.
    """

    def __init__(self, model: Model, limit: int = MEMO_BYTES) -> None:
        self.model, self.limit = model, limit
        self.spec, self.device, self.dtype = model.spec, model.device, model.dtype
        self.rows = self.reused = 0  # asked for, and those of them that were known
        self.known: dict[bytes, RememberedLogits] = {}  # least recently used first
        self.size = 0

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        return self.model.new_kv(batch, length, limit)

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        every = torch.arange(ids.shape[1], device=ids.device)
        whole = plan.pos.shape == ids.shape and bool((plan.pos == every).all())
        if kv is not None or plan.write is not None or plan.read is not None or not whole:
            return self.model(ids, plan, kv)
        valid = torch.ones_like(ids, dtype=torch.bool) if plan.valid is None else plan.valid
        real = self._real(ids, plan.head)  # [B, R]
        keys = [row[inside].numpy().tobytes() for row, inside in zip(ids.cpu(), valid.cpu())]
        wanted = [row[which] for row, which in zip(plan.head.cpu(), real.cpu())]
        found = [self._recall(key, heads) for key, heads in zip(keys, wanted)]
        new = [b for b, logits in enumerate(found) if logits is None]
        self.rows, self.reused = self.rows + len(ids), self.reused + len(ids) - len(new)
        if new:
            rows = torch.tensor(new, device=ids.device)
            mask = None if bool(valid[rows].all()) else valid[rows]
            fresh = self.model(ids[rows], ForwardPlan(plan.pos[rows], plan.head[rows], valid=mask))
            for b, logits in zip(new, fresh):
                found[b] = mine = logits[real[b]]
                self._remember(keys[b], RememberedLogits(wanted[b], mine))
        known = [logits for logits in found if logits is not None]  # now all of them
        out = known[0].new_zeros(*real.shape, known[0].shape[-1])
        out[real] = torch.cat(known)
        return out

    def _real(self, ids: Tensor, head: Tensor) -> Tensor:
        """[B, R] the entries of `head` that somebody looks at."""
        target = (head + self.spec.shift).clamp(max=ids.shape[1] - 1)
        ascending = head == head.cummax(1).values
        return ascending | (ids.gather(1, target) == self.spec.mask_id)

    def _recall(self, key: bytes, heads: Tensor) -> Tensor | None:
        if key not in self.known:
            return None
        self.known[key] = known = self.known.pop(key)  # now the last of the dictionary
        return known.find(heads)

    def _remember(self, key: bytes, new: RememberedLogits) -> None:
        old = self.known.pop(key, RememberedLogits(new.heads[:0], new.logits[:0]))
        joined = self.known[key] = old.joined(new)
        self.size += joined.logits.nbytes - old.logits.nbytes
        while self.size > self.limit:
            self.size -= self.known.pop(next(iter(self.known))).logits.nbytes
