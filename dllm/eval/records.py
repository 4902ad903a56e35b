"""Files of a run of the suite: its plan, a record for every answer, and counts by cell.

run.json       RunPlan: model, tasks, settings, seeds, environment
samples.jsonl  every question once, so that grading needs neither generator nor data file
results.jsonl  one SampleRecord per answer, in a fixed order (results.RANK.jsonl while it runs)
summary.json   Summary
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from dllm.eval.shapes import shaped

SCHEMA = "dllm-eval-1"
PHASES = ("prompt", "forward", "sampler", "other")


@dataclass(frozen=True)
class EvalSetting:
    """A way to decode. Settings of one `method` are the points of one curve, told apart by
    `option` ("threshold=0.9"; "" where there is none). options: of DecodeConfig, JSON values.
    """

    method: str
    option: str = field(metadata={"key": "knob"})  # committed results call it so
    options: Mapping[str, Any] = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.method} {self.option}".strip()

    @cached_property
    def key(self) -> str:
        """The options as canonical JSON: two settings with one key decode alike."""
        return json.dumps(dict(self.options), sort_keys=True)

    @property
    def identity(self) -> tuple[str, str]:
        """Name and key: a preset may decode as a rule does, and is a setting of its own."""
        return self.name, self.key


@dataclass(frozen=True, slots=True, order=True)
class Skipped:
    """A setting (index) that cannot answer a task (index) at size n, and why."""

    setting: int
    task: int
    n: int
    reason: str


@dataclass(frozen=True)
class RunPlan:
    """The extent of a run. model: name, weights (hash), dtype, device, family. tasks: specs. memo:
    whether forwards were remembered between settings, so that seconds mean nothing.
    """

    suite: str
    model: dict[str, Any]
    tasks: tuple[str, ...]
    settings: tuple[EvalSetting, ...]
    seeds: tuple[int, ...]
    count: int
    batch_size: int
    memo: bool
    environment: dict[str, Any]
    skipped: tuple[Skipped, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        settings = [
            {"method": s.method, "knob": s.option, "options": dict(s.options)}
            for s in self.settings
        ]
        return {"schema": SCHEMA, **asdict(self), "settings": settings}

    @classmethod
    def from_dict(cls, fields: object) -> RunPlan:
        """The inverse of `as_dict`, other keys left out; ValueError names what is wrong."""
        found = fields.get("schema") if isinstance(fields, dict) else None
        if found != SCHEMA:
            raise ValueError(f"expected the schema {SCHEMA}, found {found!r:.60}")
        plan = shaped(cls, fields, name="plan")
        for setting in plan.settings:
            shaped(Temperature, dict(setting.options), f"setting {setting.name!r:.60}: options")
        for at, skipped in enumerate(plan.skipped):
            plan.check(f"skipped[{at}]", skipped.task, skipped.setting)
        return plan

    def check(self, where: str, task: int, setting: int | None = None) -> None:
        """ValueError unless these are numbers of a task and of a setting."""
        for name, value, known in (("task", task, self.tasks), ("setting", setting, self.settings)):
            if value is not None and value >= len(known):
                raise ValueError(f"{where}.{name}={value}: expected one of the run's {len(known)}")


@dataclass(frozen=True, slots=True)
class Temperature:
    """The one option of a setting that counting needs to know."""

    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: expected at least 0")


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One answer. setting, task: indices in the plan; (n, seed, i): which sample.

    ids: the answer's tokens, without the end. steps: the decision (1, 2, ...) that committed each,
    0 for a prefilled one. places: in `ids`, those of the answer's items; None unless each item is
    one token. tokens: committed ones up to and including the end; filled: end padding too; nfe,
    canvases: as in Output. budget: tokens of the canvas behind the prompt. seconds: by PHASES, the
    batch's divided by its rows.
    """

    setting: int
    task: int
    n: int
    seed: int
    i: int
    score: bool
    strict: bool
    reason: str
    nfe: int
    canvases: int
    tokens: int
    filled: int
    budget: int
    prompt_tokens: int
    finish: str
    text: str
    ids: list[int]
    steps: list[int]
    places: list[int] | None
    seconds: list[float]

    @classmethod
    def from_dict(cls, fields: object, plan: RunPlan) -> SampleRecord:
        """A row of `plan`; ValueError names what is wrong."""
        row = shaped(cls, fields, name="row")
        plan.check("row", row.task, row.setting)
        if len(row.steps) != len(row.ids):
            raise ValueError(f"steps: expected one for each of {len(row.ids)} ids")
        if len(row.seconds) != len(PHASES):
            raise ValueError(f"seconds: expected {len(PHASES)}, for {', '.join(PHASES)}")
        if row.places and max(row.places) >= len(row.ids):
            raise ValueError(f"places: expected numbers below {len(row.ids)}, the number of ids")
        return row

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        return self.task, self.n, self.seed, self.i, self.setting

    @property
    def sets(self) -> list[list[int]] | None:
        """Items (0, 1, ... in answer order) that each decision committed, in order."""
        if self.places is None:
            return None
        found: dict[int, list[int]] = {}
        for item, place in enumerate(self.places):
            found.setdefault(self.steps[place], []).append(item)
        return [found[step] for step in sorted(found)]


@dataclass(slots=True)
class Cell:
    """Sums over the answers of one setting to one task at one size, all seeds together.

    ceiling: sum of the perfect model's chances for the commits really made, over the `ceiled`
    answers for which that is known, `ceiled_right` of which are right. tau: sum of Kendall's rank
    correlation between commit order and left to right, over `ordered` answers.
    """

    setting: int
    task: int
    n: int
    count: int = 0
    right: int = 0
    strict: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    nfe: int = 0
    canvases: int = 0
    tokens: int = 0
    filled: int = 0
    ceiling: float = 0.0
    ceiled: int = 0
    ceiled_right: int = 0
    tau: float = 0.0
    ordered: int = 0
    seconds: list[float] = field(default_factory=lambda: [0.0] * len(PHASES))

    def check(self, where: str) -> None:
        """ValueError where these cannot be sums over `count` answers."""
        ordered(where, strict=self.strict, right=self.right, count=self.count)
        ordered(where, ceiled_right=self.ceiled_right, ceiled=self.ceiled, count=self.count)
        ordered(where, ordered=self.ordered, count=self.count)
        ordered(where, reasons=sum(self.reasons.values()), count=self.count)
        if not 0 <= self.ceiling <= self.ceiled * (1 + 1e-9):
            raise ValueError(f"{where}.ceiling={self.ceiling}: expected at most {self.ceiled}")
        if not abs(self.tau) <= self.ordered * (1 + 1e-9):
            raise ValueError(f"{where}.tau={self.tau}: expected at most {self.ordered}")
        if len(self.seconds) != len(PHASES) or min(self.seconds) < 0:
            raise ValueError(f"{where}.seconds: expected {len(PHASES)} of at least 0")


@dataclass(frozen=True, slots=True)
class OracleCell:
    """The per-sample oracle over one method's options: for each sample the best score and, of the
    settings that reach it, the fewest forwards (ParallelBench, arXiv 2510.04767, appendix G.2).
    """

    method: str
    task: int
    n: int
    count: int
    right: int
    nfe: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """summary.json: the plan and what was counted."""

    plan: RunPlan
    cells: tuple[Cell, ...]
    oracles: tuple[OracleCell, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.plan.as_dict(),
            "cells": [asdict(cell) for cell in self.cells],
            "oracles": [asdict(oracle) for oracle in self.oracles],
        }

    @classmethod
    def from_dict(cls, fields: object) -> Summary:
        """The inverse of `as_dict`; ValueError names what is wrong in anything else."""
        plan = RunPlan.from_dict(fields)
        assert isinstance(fields, dict)  # else it is no plan
        counts = shaped(RunCounts, fields, name="summary")
        for at, cell in enumerate(counts.cells):
            plan.check(f"cells[{at}]", cell.task, cell.setting)
            cell.check(f"cells[{at}]")
        for at, oracle in enumerate(counts.oracles):
            plan.check(f"oracles[{at}]", oracle.task)
            ordered(f"oracles[{at}]", right=oracle.right, count=oracle.count)
        return cls(plan, counts.cells, counts.oracles)


@dataclass(frozen=True, slots=True)
class RunCounts:
    """summary.json beside its plan."""

    cells: tuple[Cell, ...]
    oracles: tuple[OracleCell, ...]


def ordered(where: str, **counts: float) -> None:
    """ValueError unless no count is larger than the one behind it."""
    for (less, few), (more, many) in itertools.pairwise(counts.items()):
        if few > many:
            raise ValueError(f"{where}.{less}={few}: expected at most {more}={many}")
