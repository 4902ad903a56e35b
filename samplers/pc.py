"""PC-Sampler: early positions and informative tokens first (arXiv 2508.13021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

import torch
from torch import Tensor

from dllm.checks import check_number, check_positive, check_whole
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import Vocabulary
from dllm.samplers.rule import CommitRuleBase, Selection, quota, top
from dllm.tensors import read_tensors


@dataclass(frozen=True)
class PositionCalibrated(CommitRuleBase):
    """Commit the k best by exp(-decay * i) * min(-p ln f(token), clip); k is LLaDA's quota for
    `steps` (None: one).

    i counts positions behind the prompt; f is how often the token occurs in a corpus, read from the
    tensor "frequency" [V] of the safetensors file `table`. Without a table all tokens count as
    equally frequent and the score is p exp(-decay * i), never clipped. The defaults are the
    paper's; it sets decay to 0 for Sudoku and .5 for Countdown. A bad table is a ValueError.
    """

    paper = "PC-Sampler, arXiv 2508.13021"
    decay: float = 0.25
    clip: float = 10.0
    steps: int | None = None
    table: str | None = None
    surprise: Tensor | None = field(
        default=None, init=False, repr=False, compare=False
    )  # -ln f [V]

    def __post_init__(self) -> None:
        check_number("decay", self.decay, 0)
        check_positive("clip", self.clip)
        check_whole("steps", self.steps, 1, none=True)
        if self.table is not None:
            frequency = read_frequency(self.table)
            # An unseen token is as surprising as float64 can say; any usual clip is lower.
            smallest = torch.finfo(torch.float64).tiny
            object.__setattr__(self, "surprise", -frequency.clamp(min=smallest).log())

    def bind(self, vocabulary: Vocabulary) -> PositionCalibrated:
        if self.surprise is not None and len(self.surprise) < vocabulary.size:
            raise ValueError(
                f"table={self.table!r}: holds {len(self.surprise)} frequencies, expected one for "
                f"each of {vocabulary.size} tokens"
            )
        return self

    def select(self, view: Candidates) -> Selection:
        # Logarithms of both factors: exp(-decay * i) alone would underflow far behind the prompt.
        value = view.conf.double().log()
        if self.surprise is not None:
            surprise = self.surprise.to(view.token.device)
            value = value + surprise[view.token.where(view.valid, 0)].log()
            value = value.clamp(max=log(self.clip))
        score = value - self.decay * (view.pos - view.prompt[:, None])
        scores = (score, -view.log1m)
        return Selection(top(view, quota(view, self.steps), *scores), scores)


def read_frequency(path: str) -> Tensor:
    """The tensor "frequency" of a safetensors file as float64 [V]; ValueError if it is not one."""
    tensors, _ = read_tensors(path, ["frequency"], called=f"table={path!r}")
    frequency: Tensor = tensors["frequency"].double()
    if frequency.ndim != 1:
        raise ValueError(
            f"table={path!r}: 'frequency' has shape {list(frequency.shape)}, expected [V]"
        )
    if not ((frequency >= 0) & (frequency <= 1)).all():
        raise ValueError(f"table={path!r}: expected frequencies from 0 to 1")
    return frequency
