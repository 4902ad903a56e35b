"""Candidate canvases: those that one forward computes, a row's own and the guessed ones.

A row whose next canvas was guessed goes on without a forward, while the others stand still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.decoding.canvas import Canvas


@dataclass(frozen=True, slots=True)
class CandidateCanvases:
    """The canvases that one forward computes: those of the rows themselves, then guessed ones.

    row [R] the row of each canvas;  length [R], ids, known, want [R, T]: its content and the
    positions whose logits [R, K, V] were computed, at pos [R, K].
    """

    row: Tensor
    length: Tensor
    ids: Tensor
    known: Tensor
    want: Tensor
    pos: Tensor
    logits: Tensor

    def of(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pos [B, K], logits [B, K, V] and want [B, T] of the canvas `which` [B] of each row; -1:
        any.
        """
        if len(which) == len(self.row):
            return self.pos, self.logits, self.want
        return self.pos[which], self.logits[which], self.want[which]

    def find(self, canvas: Canvas, want: Tensor) -> Tensor:
        """[B] index of a canvas that equals each row of `canvas`, and its `want` [B, T]; or -1.

        The guessed ones alone are searched: a row's own canvas is behind it.
        """
        pairs = (self.ids, canvas.ids), (self.known, canvas.known), (self.want, want)
        equal = torch.stack([(mine == theirs[self.row]).all(1) for mine, theirs in pairs]).all(0)
        equal &= self.length == canvas.length[self.row]  # a stop rule may have shortened the row
        found = torch.full_like(canvas.row, -1)
        found[self.row[equal]] = equal.nonzero()[:, 0]
        return found


class Guesses:
    """Canvases that rows may become in their next steps, made by a speculator."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Canvas]] = []  # rows [B] that have this guess, and it

    def renew(
        self, moves: Tensor, canvas: Canvas, pos: Tensor, token: Tensor, sets: Sequence[Tensor]
    ) -> None:
        """Replace the guesses of rows that have moved to `canvas`: it with each of the `sets`
        [B, K] of the positions pos [B, K] filled with token [B, K].
        """
        self.made = [(rows & ~moves, guess) for rows, guess in self.made]
        before = torch.zeros_like(pos, dtype=torch.bool)
        for chosen in sets:
            guess = canvas.copy()
            guess.commit(pos, token, chosen)
            rows = moves & (chosen & ~before).any(1) & guess.masked.any(1)
            self.made.append((rows, guess))
            before = chosen

    def stacked(self, canvas: Canvas) -> tuple[Canvas, Tensor]:
        """One canvas of the rows of `canvas` and of all guesses, and the row [R] of each."""
        every = torch.arange(len(canvas.row), device=canvas.row.device)
        rows = [every, *(has.nonzero()[:, 0] for has, _ in self.made)]
        row = torch.cat(rows)
        if len(row) == len(every):
            return canvas, every
        stacked = canvas.take(row)
        at = len(every)
        size = canvas.ids.shape[1]  # guesses from before a row was shortened are wider
        for mine, (_, guess) in zip(rows[1:], self.made, strict=True):
            span = slice(at, at + len(mine))
            stacked.ids[span] = guess.ids[mine, :size]
            stacked.known[span] = guess.known[mine, :size]
            at += len(mine)
        return stacked, row

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` [n] (indices)."""
        for _, guess in self.made:
            guess.keep(rows)
        self.made = [(has[rows], guess) for has, guess in self.made]


def merged(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], moved: Tensor
) -> dict[str, Tensor]:
    """The tensors [B, ...] of `new`, but those of `old` in rows that have not `moved` [B].

    Where the two differ in size they are padded with zeros behind.
    """
    result = dict(new)
    for name in old.keys() & new.keys():
        one, two = new[name], old[name]
        size = [max(a, b) for a, b in zip(one.shape, two.shape, strict=True)]
        one, two = (_grown(t, size) for t in (one, two))
        result[name] = torch.where(moved.view(-1, *[1] * (one.ndim - 1)), one, two)
    return result


def _grown(t: Tensor, size: list[int]) -> Tensor:
    if list(t.shape) == size:
        return t
    grown = t.new_zeros(size)
    grown[tuple(slice(n) for n in t.shape)] = t
    return grown
