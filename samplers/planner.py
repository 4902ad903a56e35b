"""LLaDA's semi-autoregressive blocks: the planner that is always there (arXiv 2502.09992)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm.canvas import Canvas, Windows
from dllm.samplers.parts import PlannerBase, State
from dllm.samplers.rule import at_least


@dataclass(frozen=True)
class Fixed(PlannerBase):
    """Equal blocks from left to right, the last one perhaps shorter; None is one block for all."""

    paper: ClassVar[str] = "LLaDA, arXiv 2502.09992 (semi-autoregressive blocks)"
    block_length: int | None = None

    def __post_init__(self) -> None:
        if self.block_length is not None:
            at_least("block_length", self.block_length, 1, "a whole number")

    def windows(self, canvas: Canvas, state: State) -> Windows:
        if self.block_length is None:
            return Windows(canvas.prompt, canvas.length)
        done = (canvas.first_hole() - canvas.prompt) // self.block_length
        start = canvas.prompt + done * self.block_length
        return Windows(start, torch.minimum(start + self.block_length, canvas.length))
