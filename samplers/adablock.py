"""AdaBlock-dLLM: blocks that end where a line is likely to end (arXiv 2509.26432)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dllm.checks import check_positive, check_probability, check_whole
from dllm.decoding.canvas import Array, Canvas, Windows
from dllm.decoding.state import Fields, StateField
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import HostState, PlannerBase, State, Vocabulary


@dataclass(frozen=True)
class AdaBlock(PlannerBase):
    """Blocks as long as the model's own lines.

    At the start of a block, look at the next floor(share * answer length) positions: of those whose
    most likely token is a delimiter, the block ends behind the most confident one (ties: the first)
    if its probability is at least `threshold`, and else after `block_length` tokens (None: the
    rest). The forward that plans is also the block's first step. The most likely token counts
    whatever the temperature; end of text is no delimiter; the answer length is what an early end
    has left of it.

    share and threshold are the paper's for LLaDA (Dream: threshold 0.5); its rule for decoding a
    block is Fast-dLLM's threshold 0.9. delimiter_ids: by default every token whose text holds
    `delimiter`, as the paper's list for Dream; with `exact` only tokens that are nothing else, as
    its list for LLaDA, token 198 alone.
    """

    paper: ClassVar[str] = "AdaBlock-dLLM, arXiv 2509.26432"
    narrows: ClassVar[bool] = True
    # of the open block; a fresh row has none
    fields: ClassVar[Fields] = {
        "start": StateField(-1),
        "end": StateField(-1),
        "planning": StateField(False, "bool"),
    }
    block_length: int | None = None
    share: float = 0.25
    threshold: float = 0.3
    delimiter: str = "\n"
    exact: bool = False
    delimiter_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_whole("block_length", self.block_length, 1, none=True)
        check_probability("threshold", self.threshold)
        check_positive("share", self.share, 1)
        if not self.delimiter and not self.delimiter_ids:
            raise ValueError("delimiter='': expected a text, or delimiter_ids")

    def bind(self, vocabulary: Vocabulary) -> AdaBlock:
        """A copy that knows its delimiter ids; ValueError where no token holds the delimiter."""
        if self.delimiter_ids:
            return self
        ids = tuple(
            token
            for token, text in enumerate(vocabulary.pieces)
            if (text == self.delimiter if self.exact else self.delimiter in text)
        )
        if not ids:
            raise ValueError(f"delimiter={self.delimiter!r}: expected a text some token holds")
        return replace(self, delimiter_ids=ids)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"best"})

    def windows(self, canvas: Canvas, state: HostState) -> Windows:
        """The open block; where there is none, all that the next block may reach."""
        first, length = canvas.first_masked(), canvas.length
        scope = length
        if self.block_length is not None:
            reach: Array = ((length - canvas.prompt) * self.share).astype(np.int64)
            scope = np.minimum(first + np.maximum(reach, self.block_length), length)
        planning = first >= state["end"]
        state["planning"] = planning
        start = np.where(planning, first, state["start"])
        return Windows(start, np.where(planning, scope, np.minimum(state["end"], length)))

    def narrow(self, view: Candidates, state: State) -> tuple[Tensor, Tensor]:
        """Ends the blocks that begin with this step."""
        if view.best is None or view.best_conf is None or not self.delimiter_ids:
            raise ValueError("AdaBlock: expected the view's best tokens, and bound delimiters")
        start, end = view.start, view.end
        reach = ((view.length - view.prompt).double() * self.share).long()
        delimiter = torch.isin(view.best, view.best.new_tensor(self.delimiter_ids))
        delimiter &= view.valid & (view.pos < (start + reach)[:, None])
        # argmax gives the first of equal maxima, and positions ascend
        best = view.best_conf.masked_fill(~delimiter, -torch.inf)
        at = best.argmax(1, keepdim=True)
        found = best.gather(1, at)[:, 0] >= self.threshold
        line = view.pos.gather(1, at)[:, 0] + 1
        default = view.length
        if self.block_length is not None:
            default = torch.minimum(start + self.block_length, default)
        end = torch.where(state["planning"], torch.where(found, line, default), end)
        state["start"], state["end"] = start, end
        return start, end
