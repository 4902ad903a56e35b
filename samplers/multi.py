"""Several blocks open at once: the pipeline of D2F (arXiv 2508.09192) and d3LLM (2601.07568)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dllm.checks import check_probability, check_whole
from dllm.decoding.canvas import Array, Canvas, Windows
from dllm.samplers.protocols import HostState, PlannerBase, Vocabulary


@dataclass(frozen=True)
class MultiBlock(PlannerBase):
    """Blocks that open before their predecessor is full.

    The next block opens when at least the share `add` of the last open one is decoded, and while
    fewer than `most` open blocks have masked positions. The first block with one always commits a
    token; a later one does so from where its predecessor is decoded to the share `full` (fully
    active), and before that commits only what the rule accepts (semi-active). Blocks behind a
    committed end of text are closed, also those that were open: D2F only opens no new ones, but
    what stands there is no part of the answer.

    add=0.1 and full=0.95 lie in both papers' ranges; most=4 is ours (they set no limit, and every
    open block makes the forward wider). Both papers decode with weights trained for it. Openness
    follows from the canvas alone: as long as nothing is remasked, no block with a masked position
    closes again except behind the end of text. block_length None: one block, nothing to pipeline.
    stop_ids: the ends of text, the model's where left out.
    """

    paper: ClassVar[str] = "D2F, arXiv 2508.09192; d3LLM, arXiv 2601.07568"
    block_length: int | None = None
    add: float = 0.1
    full: float = 0.95
    most: int = 4
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_whole("block_length", self.block_length, 1, none=True)
        check_probability("add", self.add)
        check_probability("full", self.full)
        check_whole("most", self.most, 1)

    def bind(self, vocabulary: Vocabulary) -> MultiBlock:
        """A copy that knows the end-of-text ids."""
        return self if self.stop_ids else replace(self, stop_ids=tuple(vocabulary.stop_ids))

    def windows(self, canvas: Canvas, state: HostState) -> Windows:
        """Slot n is block n, always; a full or closed block is an empty span."""
        answer = canvas.length - canvas.prompt
        size = self.block_length or max(1, int(answer.max()))
        slots = np.arange(max(1, -(-int(answer.max()) // size)))
        prompt, length = canvas.prompt[:, None], canvas.length[:, None]
        start = np.minimum(prompt + slots * size, length)  # [B, N]
        end = np.minimum(start + size, length)

        before = counts_before(canvas.masked)
        masked = np.take_along_axis(before, end, 1) - np.take_along_axis(before, start, 1)
        share = 1 - masked / np.maximum(end - start, 1)
        left = masked > 0
        first = left & (left.cumsum(1) == 1)

        stops = np.isin(canvas.ids, self.stop_ids) & canvas.generated & canvas.known
        ended = np.take_along_axis(counts_before(stops), start, 1) > 0
        behind = share[:, :-1]  # of the predecessor, for all blocks but the first
        reached = np.logical_and.accumulate(led(behind >= self.add), 1)
        able = left & reached & ~ended
        # A row always has a window, also a guessed canvas whose text has ended before its masks.
        opened = (able & (able.cumsum(1) <= self.most)) | first
        active = led(behind >= self.full)
        return Windows(start, np.where(opened, end, start), active & opened)


def counts_before(mask: Array) -> Array:
    """[B, T + 1] how often `mask` [B, T] holds before each position."""
    return np.pad(mask.cumsum(1), ((0, 0), (1, 0)))


def led(mask: Array) -> Array:
    """`mask` [B, N - 1] behind a first column that always holds."""
    return np.pad(mask, ((0, 0), (1, 0)), constant_values=True)
