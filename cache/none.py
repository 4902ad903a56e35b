"""No cache: every forward computes the whole canvas. The reference that all policies answer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.cache.policy import PolicyBase, Query, State, Step


@dataclass(frozen=True)
class NoCache(PolicyBase):
    """Query every position of every row; nothing is stored."""

    paper: ClassVar[str] = "exact"
    uses_kv: ClassVar[bool] = False

    def query(self, step: Step, state: State) -> Query:
        return Query(step.inside)
