"""The extremely greedy oracle of Learn2PD: commit whatever is right (arXiv 2509.25188)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class ExtremelyGreedy(CommitRuleBase):
    """Commit every candidate whose token is the reference's; where a row has none, its most
    confident candidate with the reference's token instead of its own.

    references: for each row of the request, the token ids of its answer, usually those of decoding
    one token a step. How few forwards it takes says how much parallelism a model offers. A row or
    position without a reference is a ValueError.
    """

    paper = "Learn2PD (EGP), arXiv 2509.25188"
    by_row: ClassVar[bool] = True
    references: tuple[tuple[int, ...], ...]
    answers: Tensor = field(init=False, repr=False, compare=False)  # [rows, longest], -1 behind

    def __post_init__(self) -> None:
        if not any(self.references):
            raise ValueError(f"references={self.references}: expected token ids for each row")
        longest = max(map(len, self.references))
        rows = [[*answer, *[-1] * (longest - len(answer))] for answer in self.references]
        object.__setattr__(self, "answers", torch.tensor(rows))

    def select(self, view: Candidates) -> Selection:
        right = self.answer_at(view)
        match = view.valid & (view.token == right)
        best = view.surest()
        commit = match | (best & ~match.any(1, keepdim=True))
        return Selection(commit, token=right.where(view.valid, view.token))

    def answer_at(self, view: Candidates) -> Tensor:
        """[B, K] the reference's token at each candidate's position."""
        rows, longest = self.answers.shape
        offset = (view.pos - view.prompt[:, None]).where(view.valid, 0)
        answers = self.answers.to(view.pos.device)[view.row.clamp(max=rows - 1)]  # [B, longest]
        right = answers.gather(1, offset.clamp(max=longest - 1))
        unknown = view.valid & (view.row >= rows)[:, None]
        missing = unknown | (view.valid & ((offset >= longest) | (right < 0)))
        if missing.any():
            b, k = missing.nonzero()[0].tolist()
            row = int(view.row[b])
            if row >= rows:
                raise ValueError(f"references: hold {rows} rows, expected one for row {row}")
            raise ValueError(
                f"references: row {row} holds {len(self.references[row])} tokens, expected one at "
                f"position {int(offset[b, k])} of the answer"
            )
        return right
