"""LLaDA's semi-autoregressive blocks: the planner that is always there (arXiv 2502.09992)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dllm.checks import check_whole
from dllm.decoding.canvas import Canvas, Windows
from dllm.samplers.protocols import HostState, PlannerBase, Vocabulary


@dataclass(frozen=True)
class FixedBlocks(PlannerBase):
    """Equal blocks from left to right, the last one perhaps shorter; block_length None is one block
    for all.

    Blocks count from the prompt's end. `aligned`: from position 0, as the attention of block-causal
    models does; binding to such a model sets it. The first block may then be shorter too.
    """

    paper: ClassVar[str] = "LLaDA, arXiv 2502.09992 (semi-autoregressive blocks)"
    block_length: int | None = None
    aligned: bool = False

    def __post_init__(self) -> None:
        check_whole("block_length", self.block_length, 1, none=True)

    def bind(self, vocabulary: Vocabulary) -> FixedBlocks:
        """A copy aligned with the blocks of the model's attention, if it has any."""
        return self if vocabulary.attention_block is None else replace(self, aligned=True)

    def windows(self, canvas: Canvas, state: HostState) -> Windows:
        if self.block_length is None:
            return Windows(canvas.prompt, canvas.length)
        origin = np.zeros_like(canvas.prompt) if self.aligned else canvas.prompt
        done = (canvas.first_masked() - origin) // self.block_length
        start = origin + done * self.block_length
        end = np.minimum(start + self.block_length, canvas.length)
        return Windows(np.maximum(start, canvas.prompt), end)
