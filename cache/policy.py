"""What a cache policy is: it turns the canvas and the wanted predictions into a `Plan`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dllm.cache.plan import Plan
from dllm.canvas import Canvas


class CachePolicy(Protocol):
    """Decides, forward by forward, which positions are computed and which are read.

    One object serves one request. `uses_store` asks the engine for a `KVStore`; `freezes` says
    that keys and values of a committed token are never computed again, so that a rule which makes
    it a hole again cannot be used.
    """

    @property
    def uses_store(self) -> bool: ...
    @property
    def freezes(self) -> bool: ...

    def plan(self, canvas: Canvas, want: Tensor, shift: int) -> Plan:
        """The next forward: logits of row r must predict the token at position `want` [B, R].

        With `shift` 1 the prediction for position p comes from the query at p - 1 (0 for p = 0).
        """
        ...

    def after(self, canvas: Canvas, committed: Tensor) -> None:
        """Told after every step which positions [B, T] have just been committed."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Told when finished rows leave the batch: only `rows` [n] (indices) stay."""
        ...
