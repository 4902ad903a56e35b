"""What a commit rule is: a frozen dataclass of knobs with a pure `select`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dllm.samplers.candidates import Candidates


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision of one step; commit [B, K] bool says which candidates become known."""

    commit: Tensor


class Rule(Protocol):
    """A way to choose among candidates.

    `needs` names the costly fields of `Candidates` the rule reads ("margin", "entropy");
    `tempered` says that confidences come from the tempered, truncated law; `bans_eos` forbids
    the end-of-sequence token. All three have defaults in `CommitRule`.
    """

    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def tempered(self) -> bool: ...
    @property
    def bans_eos(self) -> bool: ...
    def select(self, view: Candidates) -> Selection: ...


class CommitRule:
    """Base of the rules here: the usual answers to what `Rule` asks."""

    paper: ClassVar[str] = ""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def tempered(self) -> bool:
        return False

    @property
    def bans_eos(self) -> bool:
        return False


def steps_of_window(view: Candidates, steps: int | None) -> Tensor:
    """[B] the window's share of a row's `steps` (None: one per token), by length, at least one.

    LLaDA's steps * block_length / generated length where that is whole; elsewhere the shares are
    rounded so that they still add up to `steps`.
    """
    size = view.length - view.prompt
    total = size if steps is None else torch.full_like(size, steps)
    upto_end = total * (view.end - view.prompt) // size
    upto_start = total * (view.start - view.prompt) // size
    return (upto_end - upto_start).clamp(min=1)


def top(view: Candidates, count: Tensor, *scores: Tensor) -> Tensor:
    """[B, K] the `count` [B] best candidates of each row in the order of `Candidates.rank`."""
    return view.valid & (view.rank(*scores) < count[:, None])
