"""Forwards of a step: the wanted predictions, through the cache policy and the KV cache.

What is computed is decided on the host before anything is sent; then the model runs without a look
at the device. Knows no rule and no planner.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dllm.cache.batching import HostPlan, opened, plans
from dllm.cache.kv import KVCache
from dllm.cache.plan import Access, ForwardPlan
from dllm.cache.policy import CachePolicy, Step, nothing_kept
from dllm.config import DecodeConfig
from dllm.decoding.canvas import Array, Canvas, Windows, positions
from dllm.decoding.state import HostState
from dllm.decoding.transfer import receive
from dllm.models.protocol import Model


@dataclass(frozen=True, slots=True)
class Prepared:
    """The forwards of one step before they run: one, or two where some rows compute everything.

    want [B, T]: positions that are predicted; pos [B, K]: the same, T where a row has fewer.
    computed [B]: forwards that each row takes part in, two a plan with guidance.
    """

    want: Array
    pos: Array
    plans: list[HostPlan]
    computed: Array

    def arrays(self) -> dict[str, Array]:
        """What the device needs to know of the plans, by name."""
        arrays: dict[str, Array] = {}
        for i, plan in enumerate(self.plans):
            names = ("pos", "head", "valid", "slots", "rows", "visible")
            own = {name: getattr(plan, name) for name in names}
            if plan.runner is not None and i == 0:
                own |= {f"runner.{name}": a for name, a in plan.runner.arrays.items()}
            arrays |= {f"{i}.{name}": array for name, array in own.items() if array is not None}
        return arrays


@dataclass
class Forward:
    """The model with its cache, for the rows of a batch.

    kvs: two with guidance, one for each branch. seconds: spent in the model.
    """

    model: Model
    policy: CachePolicy
    config: DecodeConfig
    kvs: list[KVCache]
    state: HostState
    changed: Array  # [B, T] positions whose token changed in the row's last step
    confidence: Array  # [B, T] of the proposal last seen there
    seconds: float = 0.0
    spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @classmethod
    def of(
        cls, model: Model, policy: CachePolicy, config: DecodeConfig, places: int, length: int
    ) -> Forward:
        """No row yet; CacheError if the KV cache would be larger than allowed."""
        kvs = []
        if policy.uses_kv:
            branches = 2 if config.cfg_scale else 1
            mib = config.cache_mib
            limit = None if mib is None else int(mib * 2**20 / branches)
            kvs = [model.new_kv(places, length, limit) for _ in range(branches)]
        nothing = np.zeros((0, 0), dtype=np.bool_)
        state = HostState.fresh(getattr(policy, "fields", {}), 0, 0)
        return cls(model, policy, config, kvs, state, nothing, nothing.astype(np.float32))

    def prepare(
        self,
        canvas: Canvas,
        windows: Windows,
        want: Array,
        index: Array,
        row: Array | None = None,
    ) -> Prepared:
        """Decide what is computed, so that `want` [B, T] is predicted; index [B]: steps so far.

        row [B]: the batch's row that each canvas is of (None: they are the rows).
        """
        changed, confidence = self.changed, self.confidence
        if row is not None:
            changed, confidence = changed[row], confidence[row]
        live = age = changed  # nobody reads them without a cache
        for kv in self.kvs:
            kv.drop(canvas.length)  # a stop rule may have shortened rows
        if self.kvs:
            live, age = self.kvs[0].live, self.kvs[0].age
        step = Step(
            canvas=canvas,
            start=np.minimum(windows.first(), canvas.ids.shape[1]),
            end=windows.last(),
            want=want,
            shift=self.model.spec.shift,
            index=index,
            changed=changed,
            confidence=confidence,
            live=live,
            age=age,
            kept=self._kept if self.kvs else nothing_kept,
        )
        query = self.policy.query(step, self.state.values)
        if query.want is not None:
            want = want & query.want
        pos, _ = positions(want)
        made = plans(query, step, want, pos, stored=bool(self.kvs), buckets=self.config.buckets)
        computed = np.zeros(len(want), dtype=np.int64)
        for plan in made:
            rows = slice(None) if plan.rows is None else plan.rows
            computed[rows] += 2 if self.config.cfg_scale else 1
        return Prepared(want, pos, [opened(plan, self.kvs) for plan in made], computed)

    def run(
        self, prepared: Prepared, sent: Mapping[str, Tensor], ids: Tensor, prompt: Tensor
    ) -> Tensor:
        """Logits [B, K, V] that predict the prepared positions of the canvases ids [B, T]."""
        began = self._begin()
        each = [
            self._logits(self._plan(i, plan, sent), ids, prompt)
            for i, plan in enumerate(prepared.plans)
        ]
        self._end(began)
        if len(each) == 1:
            return each[0]
        logits = each[0].new_empty(len(ids), *each[0].shape[1:])
        for i, own in enumerate(each):
            logits[sent[f"{i}.rows"]] = own
        return logits

    def _plan(self, i: int, plan: HostPlan, sent: Mapping[str, Tensor]) -> ForwardPlan:
        """The i-th plan of a step as the model reads it."""
        pos, valid, rows = (sent.get(f"{i}.{name}") for name in ("pos", "valid", "rows"))
        assert pos is not None
        access = None
        if self.kvs:
            slots, visible = sent.get(f"{i}.slots", pos), sent.get(f"{i}.visible")
            access = Access(slots, rows, plan.extent, visible, plan.whole)
        runner = None
        if plan.runner is not None:
            begun = "0.runner."
            runner = plan.runner.make(
                **{n.removeprefix(begun): t for n, t in sent.items() if n.startswith(begun)}
            )
        return ForwardPlan(
            pos=pos,
            head=sent[f"{i}.head"],
            valid=valid,
            rows=rows,
            extent=plan.extent,
            runner=runner,
            access=access,
            masked=self._masked(plan),
        )

    def _masked(self, plan: HostPlan) -> bool:
        """Whether some query of the plan may not see some key."""
        if plan.visible is not None or (not self.kvs and plan.valid is not None):
            return True
        size = self.model.spec.block_length
        if size is None:
            return False
        first = plan.pos if plan.valid is None else plan.pos[plan.valid]
        return bool(first.min() // size < (plan.extent - 1) // size)

    def _logits(self, plan: ForwardPlan, ids: Tensor, prompt: Tensor) -> Tensor:
        """One forward, or two with guidance: logits [b, K, V] of the plan's rows."""
        if plan.rows is not None:
            ids, prompt = ids[plan.rows], prompt[plan.rows]
        logits = self.model(ids, plan, self.kvs[0] if self.kvs else None)
        scale = self.config.cfg_scale
        if not scale:
            return logits
        hidden = torch.arange(ids.shape[1], device=ids.device) < prompt[:, None]
        unconditional = ids.masked_fill(hidden, self.model.spec.mask_id)
        without = self.model(unconditional, plan, self.kvs[1] if self.kvs else None)
        return guided(logits, without, scale)

    def saw(self, pos: Array, confidence: Array) -> None:
        """Keep the confidences [B, K] of the proposals at the positions pos [B, K], T for none."""
        if self.policy.wants_confidence:
            row, k = (pos < self.confidence.shape[1]).nonzero()
            self.confidence[row, pos[row, k]] = confidence[row, k]

    def take(self, rows: Array, canvas: Canvas) -> None:
        """Go on with `canvas`, whose rows are `rows` [n] (indices) of before, -1 for a new one."""
        length = canvas.ids.shape[1]
        self.state.take(rows, length)
        kept = rows >= 0
        for name in ("changed", "confidence"):
            old = getattr(self, name)
            new = np.zeros((len(rows), length), dtype=old.dtype)
            most = min(length, old.shape[1])
            new[kept, :most] = old[rows[kept], :most]
            setattr(self, name, new)
        for kv in self.kvs:
            for place, source in enumerate(rows.tolist()):
                if source < 0:
                    kv.begin(place)
                elif source != place:
                    kv.move(source, place)
            kv.use(len(rows), length)

    def _kept(self, name: str) -> Array | None:
        """What a layer runner keeps under `name`, [L, B, T, ...]; None before its first forward."""
        kv = self.kvs[0]
        if name not in kv.extra:
            return None
        return receive(kv.extra[name][:, : kv.batch, : kv.length])

    # --- the time spent in the model -------------------------------------------------------------

    def _begin(self) -> float | torch.cuda.Event:
        """Now; on a GPU a mark in its stream, so that nobody waits."""
        if self.model.device.type != "cuda":
            return time.perf_counter()
        return mark()

    def _end(self, began: float | torch.cuda.Event) -> None:
        if isinstance(began, float):
            self.seconds += time.perf_counter() - began
        else:
            self.spans.append((began, mark()))

    def settle_time(self) -> None:
        """Add up what the marks say, once the device has come past them."""
        while self.spans:
            began, ended = self.spans.pop()
            self.seconds += began.elapsed_time(ended) / 1000


def mark() -> torch.cuda.Event:
    """A mark in the GPU's stream."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def guided(logits: Tensor, without: Tensor, scale: float) -> Tensor:
    """Logits under classifier-free guidance; `without` are those that do not see the prompt."""
    moved = without + (scale + 1) * (logits - without)
    return moved.masked_fill(logits == -torch.inf, -torch.inf)  # forbidden stays so
