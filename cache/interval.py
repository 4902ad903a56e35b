"""dLLM-Cache (arXiv 2506.06295): refresh the prompt rarely, the answer often, and between two
refreshes of the answer the rows whose values have changed most.

The residual stream is rebuilt in every step for all positions, from the branches' outputs: fresh
ones where a row is computed, those of its last computation elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.cache.plan import Layer, at_positions
from dllm.cache.policy import PolicyBase, Query, Runs, State, Step, due
from dllm.checks import check_share, check_whole
from dllm.decoding.canvas import positions


@dataclass(frozen=True)
class Interval(PolicyBase):
    """Compute prompt and answer every so many steps, and the most changed answer rows in between.

    prompt, answer: steps of a row between two that compute the one, or the other (none: only the
    first does). share: of the answer's positions (committed ones too), rounded down, computed in
    the steps that do not refresh the answer: layer by layer those with the least cosine between
    their fresh values and the stored ones (0: no comparison). The first layer always computes all.

    A slot's age counts from the last refresh; single layers may have written it since.
    """

    paper: ClassVar[str] = "dLLM-Cache, arXiv 2506.06295"
    prompt: int | None = 50
    answer: int | None = 7
    share: float = 0.25

    def __post_init__(self) -> None:
        check_whole("prompt", self.prompt, 1, none=True)
        check_whole("answer", self.answer, 1, none=True)
        check_share("share", self.share, "a share")

    def query(self, step: Step, state: State) -> Query:
        first = step.index == 0
        prompt, answer = (first | due(step.index, n) for n in (self.prompt, self.answer))
        inside = step.between(step.canvas.prompt, step.canvas.length)  # of the answer
        fresh = step.inside & np.where(inside, answer[:, None], prompt[:, None])
        compared = inside & ~answer[:, None] & (self.share > 0)
        count = (compared.sum(1) * self.share).astype(np.int64)
        pos, real = positions(compared, fill=0)
        most = int((fresh.sum(1) + count).max())
        arrays = {"fresh": fresh, "pos": pos, "real": real, "count": count}
        return Query(step.inside, write=fresh, runner=Runs(partial(Branches, most=most), arrays))


@dataclass(frozen=True)
class Branches:
    """All rows flow through all layers; which of them a layer computes is its own choice.

    fresh [B, T]: rows computed in every layer. pos, real [B, N]: rows whose values are compared.
    count [B]: how many of them are computed. most: rows computed in a layer, the batch's largest.
    """

    fresh: Tensor
    pos: Tensor
    real: Tensor
    count: Tensor
    most: int

    def layer(self, layer: Layer, x: Tensor, run: Any) -> tuple[Tensor, Any]:
        """x [B, T, d] plus the layer's two branches, fresh or kept; the plan has all positions."""
        rows = run.at(run.pos, run.valid) if layer.index == 0 else self.chosen(layer, x, run)
        size = x.shape[1]
        kept = [
            run.kv.keep_extra(name, x.shape[2:], x.dtype)[layer.index, :, :size]
            for name in ("attention", "feed")
        ]
        if rows.pos.shape[1]:
            index = rows.pos[..., None].expand(-1, -1, x.shape[2])  # [B, C, d]
            part = x.gather(1, index)
            q, k, v = layer.heads(part, rows)
            k, v = rows.update(layer.index, k, v)
            attention = layer.attend(q, k, v, rows.layer_mask(layer.index))
            for old, new in zip(kept, (attention, layer.feed(part + attention)), strict=True):
                if rows.valid is not None:  # padding leaves what is there
                    new = torch.where(rows.valid[..., None], new, old.gather(1, index))
                old.scatter_(1, index, new)
        return x + kept[0] + kept[1], run

    def chosen(self, layer: Layer, x: Tensor, run: Any) -> Any:
        """The run of the rows that `layer` computes, padded to `most` [B, most]."""
        mask = self.fresh[:, : x.shape[1]]
        if self.pos.shape[1]:
            mask = mask | self.changed(layer, x, run)
        pos = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.most]
        return run.at(pos, mask.gather(1, pos))

    def changed(self, layer: Layer, x: Tensor, run: Any) -> Tensor:
        """[B, T] the `count` rows whose values are least like the stored ones; stores them all."""
        rows = run.at(self.pos, self.real)
        new = layer.values(x.gather(1, self.pos[..., None].expand(-1, -1, x.shape[2])))
        _, v = run.kv.read(layer.index, run.access)  # [B, H_kv, T, D]
        old = v.gather(2, self.pos[:, None, :, None].expand_as(new))
        like = F.cosine_similarity(flat(new), flat(old), dim=-1)  # [B, N]
        run.kv.update_values(layer.index, rows.access, new)
        # Values that did not change have a cosine of 1 but for rounding, which differs by the shape
        # of the batch: such a tie goes to the lower position, not to the noise.
        noise = torch.finfo(like.dtype).eps ** 0.75  # far above rounding, far below what is meant
        like = (like / noise).round().masked_fill(~self.real, torch.inf)
        order = like.argsort(dim=1, stable=True)
        least = order.argsort(dim=1) < self.count[:, None]
        return at_positions(self.pos, least & self.real, x.shape[1])


def flat(v: Tensor) -> Tensor:
    """Values [B, H_kv, N, D] of all heads side by side: [B, N, H_kv * D], fp32 at least."""
    v = v.transpose(1, 2).flatten(2)
    return v if v.dtype == torch.float64 else v.float()
