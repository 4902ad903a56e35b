"""Prophet: commit all that is left once the answer is sure (arXiv 2508.19982)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_number, check_whole
from dllm.decoding.state import Fields
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import DeviceCanvas, State, Verdict, Vocabulary


@dataclass(frozen=True)
class Prophet:
    """Fill a row when the answer region's mean gap of the two best logits reaches a threshold.

    The region is `length` positions long. It starts `at` positions behind the prompt, or `skip`
    behind the last place where known tokens of the answer spell `marker`. The released code has the
    user put the marker into the canvas ("The answer is") and leaves out one position behind it:
    give the text with DecodeConfig.prefilled, and skip=1. `marker` is found where it is tokenised
    as it is on its own; marker_ids says otherwise.

    The threshold falls with the share of the answer known before the step: `early` below 0.33,
    `middle` below 0.67, `late` after (the paper's values). The paper's progress is step / steps,
    the same for a fixed number of tokens a step, and not defined for other rules.

    Departure: the mean is over the region's masked positions; the paper's is over all its
    positions, but committed ones are not scored here. They are settled, so a region that is all
    committed fires. Given tokens and positions behind the row's end do not belong to the region;
    without a region (no marker yet) nothing fires.
    """

    fields: ClassVar[Fields] = {}
    paper: ClassVar[str] = "Prophet, arXiv 2508.19982"
    length: int = 5
    at: int | None = None
    marker: str = ""
    skip: int = 0
    early: float = 7.5
    middle: float = 5.0
    late: float = 2.5
    marker_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_whole("length", self.length, 1)
        check_whole("skip", self.skip, 0)
        check_whole("at", self.at, 0, none=True)
        if (self.at is None) == (not self.marker and not self.marker_ids):
            raise ValueError(f"at={self.at}, marker={self.marker!r}: expected one of the two")
        for name in ("early", "middle", "late"):
            check_number(name, getattr(self, name), 0)

    def bind(self, vocabulary: Vocabulary) -> Prophet:
        """A copy that knows its marker's ids; ValueError where the marker has none."""
        if self.at is not None or self.marker_ids:
            return self
        ids = tuple(vocabulary.encode(self.marker))
        if not ids:
            raise ValueError(f"marker={self.marker!r}: expected a text of at least one token")
        return replace(self, marker_ids=ids)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"best", "gap"})

    @property
    def whole_row(self) -> bool:
        return True

    def check(self, view: Candidates, canvas: DeviceCanvas, state: State) -> Verdict:
        if view.gap is None:
            raise ValueError("Prophet: expected the view's logit gaps")
        start = self._start(canvas)[:, None]
        exists = self._inside(canvas.pos[None], start) & canvas.generated
        scored = self._inside(view.pos, start) & view.valid
        count = scored.sum(1)
        mean = view.gap.masked_fill(~scored, 0.0).double().sum(1) / count.clamp(min=1)
        threshold = torch.where(view.filled < 0.67, self.middle, self.late)
        threshold = torch.where(view.filled < 0.33, self.early, threshold)
        return Verdict(fill=exists.any(1) & ((count == 0) | (mean >= threshold)))

    def _inside(self, pos: Tensor, start: Tensor) -> Tensor:
        return (pos >= start) & (pos < start + self.length)

    def _start(self, canvas: DeviceCanvas) -> Tensor:
        """[B] where the region starts; the canvas size where there is none."""
        if self.at is not None:
            return canvas.prompt + self.at
        if not self.marker_ids:
            raise ValueError(f"marker={self.marker!r}: expected to be bound to a vocabulary")
        size, width = canvas.ids.shape[1], len(self.marker_ids)
        if size < width:
            return torch.full_like(canvas.prompt, size)
        answer = canvas.known & (canvas.pos >= canvas.prompt[:, None])
        answer &= canvas.pos < canvas.length[:, None]
        marker = canvas.ids.new_tensor(self.marker_ids)
        spelled = (canvas.ids.unfold(1, width, 1) == marker).all(2)
        spelled &= answer.unfold(1, width, 1).all(2)  # [B, T - width + 1] starts of the marker
        found = torch.where(spelled, canvas.pos[: spelled.shape[1]], -1).amax(1)
        return torch.where(found >= 0, found + width + self.skip, size)
