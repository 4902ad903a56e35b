"""Commit rule: a frozen dataclass of options with a pure `select`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from dllm.decoding.state import Fields
from dllm.samplers.candidates import Candidates

# Confidences are fp32: a bound met with less than this share to spare counts as equality, so that
# 4 * (1 - 0.75) is not below 1, whichever way 0.75 was rounded.
NOISE = 2.0**-20


@dataclass(frozen=True, slots=True)
class Selection:
    """The decision of one step.

    commit [B, K] bool: the candidates that become known. It may be empty: the engine then commits
    the best candidate of a forced window by `score`, the rule's own measure as keys for
    `Candidates.rank` (None: by confidence).
    token [B, K]: tokens to commit in place of the proposed ones. remask [B, D] bool: which of
    `Candidates.decoded` are masked again. replace [B, D]: tokens to put there instead of what
    stands, -1 where nothing changes. open [B] bool: the window stays open, whatever is left masked
    in it: its row goes on, and its next step has the same window.

    A step that masks as many positions again as it commits, or leaves a window without masked
    positions open, gains nothing: a row may take as many of them as its rule's `spare_steps`.
    """

    commit: Tensor
    score: tuple[Tensor, ...] | None = None
    token: Tensor | None = None
    remask: Tensor | None = None
    replace: Tensor | None = None
    open: Tensor | None = None


class CommitRule(Protocol):
    """A way to choose among candidates.

    `needs` names the costly fields of `Candidates` the rule reads ("margin", "entropy", ...);
    `tempered` says that confidences come from the tempered, truncated distribution; `bans_eos`
    forbids the end-of-sequence token; `remasks` says that committed tokens may be masked again or
    replaced, which a cache that freezes them cannot follow; `spare_steps` bounds the steps of a row
    that gain no token; `by_row` says that it goes through the rows on the host, so that it must not
    be shown those of other rules; `fields` is the state that it keeps, of each window of a row. All
    have defaults in `CommitRuleBase`.
    """

    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def tempered(self) -> bool: ...
    @property
    def bans_eos(self) -> bool: ...
    @property
    def remasks(self) -> bool: ...
    @property
    def spare_steps(self) -> int: ...
    @property
    def by_row(self) -> bool: ...
    @property
    def fields(self) -> Fields: ...
    def select(self, view: Candidates) -> Selection: ...


class CommitRuleBase:
    """Base of the rules here: the usual answers to what `CommitRule` asks."""

    paper: ClassVar[str] = ""
    fields: ClassVar[Fields] = {}
    by_row: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def tempered(self) -> bool:
        return False

    @property
    def bans_eos(self) -> bool:
        return False

    @property
    def remasks(self) -> bool:
        return False

    @property
    def spare_steps(self) -> int:
        return 0


def commits(view: Candidates, selection: Selection, forced: Tensor | None = None) -> Tensor:
    """[B, K] what really becomes known: the selection, at least one candidate where `forced` [B].

    Without `forced` every row that has a candidate commits one.
    """
    chosen = selection.commit & view.valid
    best = view.surest(*(selection.score or ()))
    empty = ~chosen.any(1)
    if forced is not None:
        empty &= forced
    return chosen | (best & empty[:, None])


def steps_of_window(view: Candidates, steps: int | None) -> Tensor:
    """[B] the window's share of a row's `steps` (None: one per token), by length, at least one.

    LLaDA's steps * block_length / generated length where that is whole; elsewhere the shares are
    rounded so that they still add up to `steps`.
    """
    if steps is None:
        return (view.end - view.start).clamp(min=1)
    size = view.length - view.prompt
    upto_end = steps * (view.end - view.prompt) // size
    upto_start = steps * (view.start - view.prompt) // size
    return (upto_end - upto_start).clamp(min=1)


def quota(view: Candidates, steps: int | None) -> Tensor:
    """[B] LLaDA's number of tokens for this step: equal shares of the window's masked positions,
    larger ones first, at least one. `steps` as in `steps_of_window`.
    """
    share = steps_of_window(view, steps)
    count = view.window_masked // share + (view.window_step < view.window_masked % share)
    return count.clamp(min=1)


def top(view: Candidates, count: Tensor, *scores: Tensor) -> Tensor:
    """[B, K] the `count` [B] best candidates of each row in the order of `Candidates.rank`."""
    return view.valid & (view.rank(*scores) < count[:, None])


def doubt(view: Candidates) -> Tensor:
    """[B, K] 1 - confidence in float64, exact also where the confidence rounds to 1."""
    return view.log1m.double().exp()
