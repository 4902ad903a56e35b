"""Options of a training run: names and numbers, told without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

GENERATORS = "generators"  # the bundled tasks, as `data`
FREE = ("out", "rollouts", "parts", "device")  # what may change when a run goes on


@dataclass(frozen=True)
class Asked:
    """Options of a training run. None: the recipe's own default, or none at all.

    The command line has an option for every field, and takes its help from here (cli/fields.py).

    Model:
        model: The model to train: a bundled name, a directory, or a hub id; default: the recipe's.
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda, cuda:N or mps.
    Data:
        data: generators (the bundled tasks), generators:TASK+TASK, or a file of prompts as generate
            takes it, where needed with a field answer.
        distill_from: An AR model: its answers are learned, not the data's.
        rollouts: File of answers made for this run, or for another one with the same prompts; by
            default in --out.
        examples: Prompts used; by default 4096, or all of a file.
        max_new_tokens: Of an answer made for this run.
    Training:
        steps: Updates; default: the recipe's.
        batch_size: Rows of an update; default: the recipe's.
        parts: Compute a batch in so many pieces, for want of memory; default: the recipe's.
        lr: Highest learning rate; default: the recipe's.
        muon_lr: Of the layers' matrices, by Muon; default: the recipe's.
        seed: Of all random draws.
        lora (OPTIONS): Train a low-rank adapter: rank=16,alpha=32.
    Result:
        out: Directory of the run; a run in it is resumed.
        merge: Write whole weights (the default), or the adapter alone.
    """

    recipe: str
    out: Path
    model: str | None = None
    data: str = GENERATORS
    distill_from: str | None = None
    rollouts: Path | None = None
    examples: int | None = field(default=None, metadata={"min": 1, "max": 10**7})
    max_new_tokens: int = field(default=128, metadata={"min": 1, "max": 2**20})
    steps: int | None = field(default=None, metadata={"min": 1, "max": 10**9})
    batch_size: int | None = field(default=None, metadata={"min": 1, "max": 2**16})
    parts: int | None = field(default=None, metadata={"min": 1, "max": 2**16})
    lr: float | None = field(default=None, metadata={"min": 0, "max": 10})
    muon_lr: float | None = field(default=None, metadata={"min": 0, "max": 10})
    seed: int = field(default=0, metadata={"min": 0, "max": 2**63 - 1})
    lora: str | None = None
    merge: bool = field(default=True, metadata={"flags": "--merge/--adapter"})
    dtype: str = "float32"
    device: str = "auto"

    @property
    def asked(self) -> dict[str, Any]:
        """The options that decide about the result."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in FREE}
