"""No cache: every forward computes the whole canvas. The reference that all policies answer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dllm.cache.plan import Plan
from dllm.canvas import Canvas


@dataclass(frozen=True)
class NoCache:
    """Query every position of every row; nothing is stored."""

    paper: ClassVar[str] = "exact"
    uses_store: ClassVar[bool] = False
    freezes: ClassVar[bool] = False

    def plan(self, canvas: Canvas, want: Tensor, shift: int) -> Plan:
        pos = canvas.pos.expand_as(canvas.ids)
        inside = pos < canvas.length[:, None]
        # Queries are all positions in order, so a position is its own index on the query axis.
        return Plan(
            pos=pos,
            head=(want - shift).clamp(min=0),
            valid=None if bool(inside.all()) else inside,
        )

    def after(self, canvas: Canvas, committed: Tensor) -> None:
        """Nothing to remember."""

    def keep(self, rows: Tensor) -> None:
        """Nothing to drop."""
