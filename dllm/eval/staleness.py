"""Costs of an approximate cache: the age of what it reads, and how far predictions move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.models.protocol import Model


@dataclass
class Staleness:
    """Sums over all forwards that were measured; the properties are what to report.

    An age counts the row's forwards since a slot was written: 0 in the forward that writes it, 1 in
    the next one. It is kept per slot, not per layer. Where a `LayerRunner` also writes slots in
    single layers (elastic, interval), these are fresher than their age, which is then an upper
    bound; it says nothing of old branch outputs. The KL knows no such limits.
    """

    predictions: int = 0
    kl_sum: float = 0.0
    worst_kl: float = 0.0
    flipped: int = 0
    reads: float = 0.0
    reused: float = 0.0
    age_sum: float = 0.0
    worst_age: int = 0

    @property
    def kl(self) -> float:
        """Mean KL(uncached || cached) in nats of the predicted rows, over the whole vocabulary."""
        return self.kl_sum / max(self.predictions, 1)

    @property
    def flips(self) -> float:
        """Share of the predicted rows whose best token is another one without the cache."""
        return self.flipped / max(self.predictions, 1)

    @property
    def age(self) -> float:
        """Mean age of the slots read that the same forward did not write; 0 if there were none."""
        return self.age_sum / self.reused if self.reused else 0.0

    @property
    def old(self) -> float:
        """Share of the slots read that the same forward did not write."""
        return self.reused / self.reads if self.reads else 0.0


class Meter:
    """A model that runs every cached forward once more without the cache, and keeps the difference.

    Logits and store are those of the cached forward. The uncached one sees the same ids, up to the
    row's last live slot: the whole row if the policy begins by computing all of it, as policies for
    full attention do; a block-causal model sees no later positions anyway. Forwards without a store
    are their own reference. With guidance both branches count.

    reference: runs the uncached forwards (default: `model`), for instance a `MemoModel` around it.
    """

    def __init__(self, model: Model, reference: Model | None = None) -> None:
        self.model, self.reference = model, reference or model
        self.spec, self.device, self.dtype = model.spec, model.device, model.dtype
        self.total = Staleness()

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        return self.model.new_kv(batch, length, limit)

    @torch.no_grad()
    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        logits = self.model(ids, plan, kv)
        real = predicted(plan.head)
        self.total.predictions += int(real.sum())
        if kv is not None:
            rows = slice(None) if plan.rows is None else plan.rows.cpu().numpy()
            live, age = (torch.from_numpy(a[rows]).to(ids.device) for a in (kv.live, kv.age))
            self._ages(plan, live, age)
            exact = self.reference(ids, uncached(plan, live))
            self._compare(exact[real], logits[real])
        return logits

    def _compare(self, exact: Tensor, cached: Tensor) -> None:
        """Add the divergence of logits [n, V]."""
        p, q = (logits.double().log_softmax(-1) for logits in (exact, cached))
        kl = (p.exp() * (p - q)).sum(-1)
        self.total.kl_sum += float(kl.sum())
        self.total.worst_kl = max(self.total.worst_kl, float(kl.max()))
        self.total.flipped += int((exact.argmax(-1) != cached.argmax(-1)).sum())

    def _ages(self, plan: ForwardPlan, live: Tensor, age: Tensor) -> None:
        """Add the ages [b, T] of what one forward read, as a mean over layers that read unlike."""
        read = live[None]
        if plan.access is not None and plan.access.visible is not None:
            visible = plan.access.visible  # the loop's own: it stands in the place of `read`
            read = read & F.pad(visible, (0, live.shape[1] - visible.shape[-1]))
        elif plan.read is not None:
            read = read & plan.read
        if self.spec.block_length is not None:  # nobody sees a block behind its own
            last = plan.pos if plan.valid is None else plan.pos.where(plan.valid, 0)
            seen = last.amax(1, keepdim=True) // self.spec.block_length
            slot = torch.arange(live.shape[1], device=live.device)
            read = read & (slot // self.spec.block_length <= seen)
        read = read.view(-1, *live.shape)  # [L or 1, b, T]
        old = read & (age > 0)
        self.total.reads += float(read.sum()) / len(read)
        self.total.reused += float(old.sum()) / len(read)
        self.total.age_sum += float((age * old).sum()) / len(read)
        self.total.worst_age = max(self.total.worst_age, int((age * old).max()))


def predicted(head: Tensor) -> Tensor:
    """[B, R] which entries of `ForwardPlan.head` are asked for: they ascend, padding does not."""
    real = torch.ones_like(head, dtype=torch.bool)
    real[:, 1:] = head[:, 1:] > head.cummax(1).values[:, :-1]
    return real


def uncached(plan: ForwardPlan, live: Tensor) -> ForwardPlan:
    """The forward over all positions up to the last live [b, T] slot that predicts the same."""
    slot = torch.arange(live.shape[1], device=live.device).expand_as(live)
    end = (slot * live).amax(1, keepdim=True)
    inside = slot <= end
    head = plan.pos.gather(1, plan.head)
    return ForwardPlan(pos=slot, head=head, valid=None if bool(inside.all()) else inside)
