"""Lossless speculation: FreeDave (arXiv 2510.00294) and SSD (arXiv 2510.04147)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_whole
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRule, commits


@dataclass(frozen=True)
class FreeDave:
    """Guess the next `length` canvases as those the rule itself reaches if the logits stay.

    For a fixed number k of tokens per step these are the k, 2k, ... best of the remaining
    candidates: FreeDave as published, for any rule. The engine forwards all guesses at once and
    keeps those that are what really happens, so the result is that of the rule alone, in at most as
    many forwards; each is up to 1 + `length` canvases a row wide. The paper has 4 for LLaDA and 8
    for Dream. Its "++" variant accepts guesses that only come close; that is lossy and left out.
    """

    paper: ClassVar[str] = "FreeDave, arXiv 2510.00294"
    length: int = 4

    def __post_init__(self) -> None:
        check_whole("length", self.length, 1)

    def drafts(self, rule: CommitRule, view: Candidates, done: Tensor) -> list[Tensor]:
        """`rule` sees the view as it would be: fewer candidates, later steps, nothing changed."""
        sets: list[Tensor] = []
        state = dict(view.state)  # the rule keeps its state through the guesses, and not after
        kl = None if view.kl is None else torch.zeros_like(view.kl)
        for ahead in range(1, 1 + min(self.length, view.pos.shape[1])):  # each commits a token
            guess = replace(
                view,
                valid=view.valid & ~done,
                step=view.step + ahead,
                window_step=view.window_step + ahead,
                masked=view.masked - (view.valid & done).sum(1),
                kl=kl,
                state=state,
            )
            done = done | commits(guess, rule.select(guess))
            sets.append(done)
        return sets


@dataclass(frozen=True)
class SelfSpeculation:
    """Guess the next `length` canvases as one more token each, the most confident first.

    SSD's chain. It is made for rules that commit one token a step; others keep their result too,
    but rarely follow it: take FreeDave for them. length=4 is ours, as FreeDave's for LLaDA.
    """

    paper: ClassVar[str] = "SSD, arXiv 2510.04147"
    length: int = 4

    def __post_init__(self) -> None:
        check_whole("length", self.length, 1)

    def drafts(self, rule: CommitRule, view: Candidates, done: Tensor) -> list[Tensor]:
        left = view.valid & ~done
        rank = replace(view, valid=left).rank()
        most = min(self.length, view.pos.shape[1])
        return [done | (left & (rank < count)) for count in range(1, most + 1)]
