"""What a user asks of any recipe: names and numbers, told without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

GENERATORS = "generators"  # the bundled tasks, as `data`
FREE = ("out", "rollouts", "parts", "device")  # what may change when a run goes on


@dataclass(frozen=True)
class Asked:
    """A recipe's run as a user asks for it. None: the recipe's own default.

    model: the student's checkpoint.  data, examples: see `read_questions`.  distill_from: an AR
    model whose answers are learned.  rollouts: file of answers that a model gave; in `out` if None.
    max_new_tokens: of those answers.  muon_lr, parts: see `TrainConfig`.  lora: options of `Lora`;
    None trains all weights.  merge: write whole weights, not the adapter.
    """

    recipe: str
    out: Path
    model: str | None = None
    data: str = GENERATORS
    distill_from: str | None = None
    rollouts: Path | None = None
    examples: int | None = None
    max_new_tokens: int = 128
    steps: int | None = None
    batch_size: int | None = None
    parts: int | None = None
    lr: float | None = None
    muon_lr: float | None = None
    seed: int = 0
    lora: str | None = None
    merge: bool = True
    dtype: str = "float32"
    device: str = "auto"

    @property
    def asked(self) -> dict[str, Any]:
        """The options that decide about the result."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in FREE}
