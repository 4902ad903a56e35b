"""Distinct components of a batch's rows, and what they ask of a step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dllm.decoding.canvas import Array
from dllm.decoding.rows import Row
from dllm.models.protocol import TokenIds
from dllm.samplers.candidates import Proposal
from dllm.samplers.protocols import Planner, Speculator, StopRule, Transform
from dllm.samplers.rule import CommitRule

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Group(Generic[Part]):
    """The rows that share a component. rows [m]: their indices, `index` on the device; member [B]:
    which they are, on the device. All are None where they are all rows.
    """

    part: Part
    rows: Array | None = None
    index: Tensor | None = None
    member: Tensor | None = None


def grouped(parts: Sequence[Part | None], device: torch.device) -> tuple[Group[Part], ...]:
    """The distinct ones of the `parts` [B], in the order in which they first appear."""
    if parts and parts[0] is not None and all(part is parts[0] for part in parts):
        return (Group(parts[0]),)  # the usual batch, of one method
    found: list[tuple[Part, list[int]]] = []
    for i, part in enumerate(parts):
        if part is None:
            continue
        for known, rows in found:
            if same(known, part):
                rows.append(i)
                break
        else:
            found.append((part, [i]))
    groups = []
    for part, rows in found:
        if len(rows) == len(parts):
            groups.append(Group(part))
            continue
        member = np.zeros(len(parts), dtype=np.bool_)
        member[rows] = True
        index = np.array(rows)
        both = (torch.from_numpy(a).to(device) for a in (index, member))
        groups.append(Group(part, index, *both))
    return tuple(groups)


def same(one: Any, two: Any) -> bool:
    """Whether two components do the same: equal values of a class whose values do not change."""
    if one is two:
        return True
    return type(one) is type(two) and type(one).__hash__ is not None and bool(one == two)


@dataclass(frozen=True)
class Methods:
    """How the rows of a batch are decoded, made anew when rows join or leave.

    needs: costly fields of `Candidates` that some component reads. By row, [B]: key of its draws;
    remasks: its rule may mask or replace what is committed; spare: steps that gain no token it may
    take; looks_back: its rule sees what is committed in its window; whole_row: its stop rule sees
    all masked positions.
    """

    planners: tuple[Group[Planner], ...]
    rules: tuple[Group[CommitRule], ...]
    stop_rules: tuple[Group[StopRule], ...]
    transforms: tuple[Group[Transform], ...]
    speculators: tuple[Group[Speculator], ...]
    proposal: Proposal
    needs: frozenset[str]
    key: Array
    remasks: Array
    spare: Array
    looks_back: Array
    whole_row: Array

    @classmethod
    def of(cls, rows: Sequence[Row], spec: TokenIds, device: torch.device) -> Methods:
        parts = [row.components for row in rows]
        rules = grouped([p.rule for p in parts], device)
        stop_rules = grouped([p.stop_rule for p in parts], device)
        needs = frozenset[str]().union(*(p.needs for p in parts))
        return cls(
            planners=grouped([p.planner for p in parts], device),
            rules=rules,
            stop_rules=stop_rules,
            transforms=grouped([p.transform for p in parts], device),
            speculators=grouped([p.speculator for p in parts], device),
            proposal=proposal(rows, spec, device),
            needs=needs,
            key=np.array([row.key for row in rows], dtype=np.int64),
            remasks=np.array([p.rule.remasks for p in parts], dtype=np.bool_),
            spare=np.array([getattr(p.rule, "spare_steps", 0) for p in parts], dtype=np.int64),
            looks_back=np.array(["decoded" in p.rule.needs for p in parts], dtype=np.bool_),
            whole_row=np.array(
                [p.stop_rule is not None and p.stop_rule.whole_row for p in parts], dtype=np.bool_
            ),
        )

    @property
    def narrows(self) -> bool:
        """Whether a window may become smaller behind the forward."""
        return any(group.part.narrows for group in self.planners)


def proposal(rows: Sequence[Row], spec: TokenIds, device: torch.device) -> Proposal:
    """Options of proposing tokens: numbers where the rows agree, tensors where they do not."""
    configs, rules = [row.config for row in rows], [row.components.rule for row in rows]

    def shared(values: Sequence[Any]) -> Any:
        if all(value == values[0] for value in values):
            return values[0]
        kind = torch.float64 if isinstance(values[0], float) else None
        return torch.tensor(values, dtype=kind, device=device)[:, None, None]

    bans = [rule.bans_eos for rule in rules]
    banned, too = [spec.mask_id], None
    if all(bans):
        banned.append(spec.eos_id)
    elif any(bans):
        too = (spec.eos_id, torch.tensor(bans, device=device)[:, None, None])
    return Proposal(
        temperature=shared([float(config.temperature) for config in configs]),
        top_p=shared([float(config.top_p) for config in configs]),
        top_k=shared([config.top_k for config in configs]),
        tempered=shared([rule.tempered for rule in rules]),
        banned=tuple(banned),
        banned_too=too,
        stop_ids=torch.tensor(spec.stop_ids, device=device),
    )
