"""Planners: in which window of each row tokens may be committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from dllm.canvas import Canvas, Windows


class Planner(Protocol):
    """Chooses the window of every row before a forward; it holds at least one hole."""

    def windows(self, canvas: Canvas) -> Windows: ...


@dataclass(frozen=True)
class Fixed:
    """Equal blocks from left to right, the last one perhaps shorter; None is one block for all."""

    paper: ClassVar[str] = "LLaDA, arXiv 2502.09992 (semi-autoregressive blocks)"
    block_length: int | None = None

    def __post_init__(self) -> None:
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(
                f"block_length={self.block_length}: expected a whole number of at least 1"
            )

    def windows(self, canvas: Canvas) -> Windows:
        if self.block_length is None:
            return Windows(canvas.prompt, canvas.length)
        done = (canvas.first_hole() - canvas.prompt) // self.block_length
        start = canvas.prompt + done * self.block_length
        return Windows(start, torch.minimum(start + self.block_length, canvas.length))
