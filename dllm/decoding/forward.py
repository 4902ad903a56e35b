"""Forwards of a step: the wanted predictions, through the cache policy and the KV cache.

Knows no rule and no planner. Counts forwards by row, since rows of a batch may need different ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm.cache.batching import plans
from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.cache.policy import CachePolicy, State, Step
from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas, Windows, positions
from dllm.models.protocol import Model


@dataclass
class Forward:
    """The model with its cache, for the rows of one request.

    nfe [B]: forwards that each row took part in. seconds: spent in the model; first: of these, in
    the first step.
    """

    model: Model
    policy: CachePolicy
    config: DecodeConfig
    nfe: Tensor
    changed: Tensor  # [B, T] positions that got or lost their token in the row's last step
    confidence: Tensor  # [B, T] of the proposal last seen there
    kvs: list[KVCache] = field(default_factory=list)  # with guidance, one for each of the two
    state: State = field(default_factory=dict)
    seconds: float = 0.0
    first: float = 0.0

    @classmethod
    def of(cls, model: Model, policy: CachePolicy, config: DecodeConfig, canvas: Canvas) -> Forward:
        """Nothing computed yet; CacheError if the KV cache would be larger than allowed."""
        unknown = torch.zeros_like(canvas.known)
        forward = cls(model, policy, config, canvas.row * 0, unknown, unknown.float())
        if policy.uses_kv:
            branches = 2 if config.cfg_scale else 1
            mib = config.cache_mib
            limit = None if mib is None else int(mib * 2**20 / branches)
            batch, length = canvas.ids.shape
            forward.kvs = [model.new_kv(batch, length, limit) for _ in range(branches)]
        return forward

    def predict(
        self, canvas: Canvas, windows: Windows, want: Tensor, index: Tensor, row: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [R, K, V] that predict the positions [R, K], and the `want` [R, T] they are for.

        canvas: R canvases, each of them of the batch's row `row` [R]; index [R]: steps made so far.
        """
        step = self._step(canvas, windows, want, index, row)
        query = self.policy.query(step, self.state)
        if query.want is not None:
            want = want & query.want
        chosen = plans(query, step, want, stored=bool(self.kvs), buckets=self.config.buckets)
        pos, _ = positions(want)
        began = self._clock()
        if len(chosen) == 1:
            logits = self._logits(canvas, chosen[0])
        else:
            each = [self._logits(canvas, plan) for plan in chosen]
            logits = each[0].new_empty(len(row), *each[0].shape[1:])
            for plan, own in zip(chosen, each, strict=True):
                logits[plan.rows] = own
        self.seconds += self._clock() - began
        self.first = self.first or self.seconds
        return logits, pos, want

    def _step(
        self, canvas: Canvas, windows: Windows, want: Tensor, index: Tensor, row: Tensor
    ) -> Step:
        size = canvas.ids.shape[1]
        live = age = torch.zeros_like(canvas.known)
        for kv in self.kvs:
            kv.drop(canvas.length)  # a stop rule may have shortened rows
        if self.kvs:
            live, age = self.kvs[0].live, self.kvs[0].age
        return Step(
            canvas=canvas,
            start=windows.first().clamp(max=size),
            end=windows.end.masked_fill(windows.empty, 0).amax(1),
            want=want,
            shift=self.model.spec.shift,
            index=index,
            changed=self.changed[row],
            confidence=self.confidence[row],
            live=live,
            age=age,
            extra=self.kvs[0].extra if self.kvs else {},
        )

    def _logits(self, canvas: Canvas, plan: ForwardPlan) -> Tensor:
        """One forward, or two with guidance: logits [b, K, V] of the plan's rows."""
        rows = slice(None) if plan.rows is None else plan.rows
        ids = canvas.ids[rows]
        logits = self.model(ids, plan, self.kvs[0] if self.kvs else None)
        self.nfe[rows] += 1
        scale = self.config.cfg_scale
        if not scale:
            return logits
        hidden = canvas.pos < canvas.prompt[rows][:, None]
        unconditional = ids.masked_fill(hidden, self.model.spec.mask_id)
        without = self.model(unconditional, plan, self.kvs[1] if self.kvs else None)
        self.nfe[rows] += 1
        return guided(logits, without, scale)

    def saw(self, pos: Tensor, real: Tensor, confidence: Tensor) -> None:
        """Keep the confidences [B, K] of the proposals at the `real` [B, K] positions [B, K]."""
        if self.policy.wants_confidence:
            old = self.confidence.gather(1, pos)
            self.confidence.scatter_(1, pos, torch.where(real, confidence, old))

    def keep(self, rows: Tensor, length: int) -> None:
        """Drop all rows but `rows` [n] (indices), and the positions from `length` on."""
        self.nfe = self.nfe[rows]
        self.changed, self.confidence = (t[rows, :length] for t in (self.changed, self.confidence))
        for kv in self.kvs:
            kv.keep(rows, length)
        self.state = {
            name: t[rows, :length] if t.ndim > 1 else t[rows] for name, t in self.state.items()
        }

    def _clock(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def guided(logits: Tensor, without: Tensor, scale: float) -> Tensor:
    """Logits under classifier-free guidance; `without` are those that do not see the prompt."""
    moved = without + (scale + 1) * (logits - without)
    return moved.masked_fill(logits == -torch.inf, -torch.inf)  # forbidden stays so
