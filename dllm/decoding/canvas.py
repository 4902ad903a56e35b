"""Canvas: the token ids of a batch, what is masked, where rows end; numpy arrays on the host.

The decode loop keeps this exact mirror of what stands on the device, so that everything that only
asks *where* (planners, cache policies, answers) is plain numpy and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Prefilled = Sequence[tuple[int, Sequence[int]]]  # (offset behind the prompt, token ids)


@dataclass(frozen=True, slots=True)
class Windows:
    """The spans [start, end) in which tokens may be committed now; N of them a row, disjoint.

    start, end [B, N]; a planner with one window a row may give [B]. An empty span is no window. The
    n-th window of a row is the same one from step to step; later steps may leave out empty ones.
    forced [B, N] bool: a step commits at least one token in this window (None: in all). The first
    window of a row that holds a masked position is forced whatever this says.
    """

    start: Array
    end: Array
    forced: Array | None = None

    def __post_init__(self) -> None:
        if self.start.ndim == 1:
            object.__setattr__(self, "start", self.start[:, None])
            object.__setattr__(self, "end", self.end[:, None])

    def padded(self, count: int) -> Windows:
        """The same windows with empty ones behind, so that every row has at least `count`."""
        more = count - self.start.shape[1]
        if more <= 0:
            return self
        start, end = (np.pad(a, ((0, 0), (0, more))) for a in (self.start, self.end))
        forced = self.forced
        return Windows(start, end, None if forced is None else np.pad(forced, ((0, 0), (0, more))))

    def where(self, which: Array, other: Windows) -> Windows:
        """These in the rows `which` [B], those of `other` elsewhere."""
        count = max(w.start.shape[1] for w in (self, other))
        one, two = self.padded(count), other.padded(count)
        forced = None
        if one.forced is not None or two.forced is not None:
            every = np.ones_like(one.start, dtype=np.bool_)
            each = (every if w.forced is None else w.forced for w in (one, two))
            forced = np.where(which[:, None], *each)
        start = np.where(which[:, None], one.start, two.start)
        return Windows(start, np.where(which[:, None], one.end, two.end), forced)

    @property
    def empty(self) -> Array:
        """[B, N] bool: which spans are no windows."""
        return self.end <= self.start

    def first(self) -> Array:
        """[B] where the first window starts; 2^63 - 1 in a row without any."""
        start: Array = np.where(self.empty, np.iinfo(np.int64).max, self.start)
        return np.asarray(start.min(1))

    def last(self) -> Array:
        """[B] where the last window ends; 0 in a row without any."""
        return np.asarray(np.where(self.empty, 0, self.end).max(1))

    def each(self, pos: Array) -> Array:
        """[B, N, K] which absolute positions `pos` [B, K] (or [T]) lie in which window."""
        pos = pos[..., None, :]  # [B, 1, K], or [1, T]
        return (pos >= self.start[..., None]) & (pos < self.end[..., None])

    def contains(self, pos: Array) -> Array:
        """[B, K] which absolute positions `pos` [B, K] (or [T]) lie in a window of their row."""
        if self.start.shape[1] == 1:
            return (pos >= self.start) & (pos < self.end)
        return np.asarray(self.each(pos).any(1))


@dataclass(frozen=True)
class Canvas:
    """B rows of prompt plus positions to fill, each from position 0, padded on the right only.

    ids        [B, T] token ids; masked positions show the mask id
    generated  [B, T] the engine may fill it; a mask id typed in a prompt is no masked position
    known      [B, T] prompt, prefilled, padding, or committed
    prompt     [B] prompt length;  length [B] prompt plus generated;  row [B] identity in draws

    Nothing in it ever changes: a step makes a new one.
    """

    ids: Array
    generated: Array
    known: Array
    prompt: Array
    length: Array
    row: Array

    @classmethod
    def from_prompts(
        cls,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        mask_id: int,
        prefilled: Sequence[Prefilled] = (),
        row_ids: Sequence[int] | None = None,
    ) -> Canvas:
        """A canvas of `prompts` with `max_new_tokens` (one number, or by row) masked positions
        behind each.

        prefilled: by row, what stands in its answer from the start.
        """
        prompt = np.array([len(p) for p in prompts], dtype=np.int64)
        length = prompt + np.asarray(max_new_tokens, dtype=np.int64)
        pos = np.arange(length.max(initial=0))
        ids = np.full((len(prompts), len(pos)), mask_id, dtype=np.int64)
        generated = (pos >= prompt[:, None]) & (pos < length[:, None])
        for row, tokens in enumerate(prompts):
            ids[row, : len(tokens)] = list(tokens)
            for offset, own in prefilled[row] if prefilled else ():
                span = slice(len(tokens) + offset, len(tokens) + offset + len(own))
                ids[row, span] = list(own)
                generated[row, span] = False
        rows = range(len(prompts)) if row_ids is None else row_ids
        return cls(ids, generated, ~generated, prompt, length, np.array(rows, dtype=np.int64))

    @cached_property
    def masked(self) -> Array:
        """[B, T] positions still to be filled."""
        return self.generated & ~self.known

    @cached_property
    def pos(self) -> Array:
        """[T] absolute positions."""
        return np.arange(self.ids.shape[1])

    @cached_property
    def inside(self) -> Array:
        """[B, T] positions of the row, padding left out."""
        return self.pos < self.length[:, None]

    @cached_property
    def answer(self) -> Array:
        """[B, T] positions behind the prompt, prefilled ones too."""
        return self.inside & (self.pos >= self.prompt[:, None])

    def first_masked(self) -> Array:
        """[B] position of the first masked one; the row's length where there is none."""
        return first_of(self.masked, self.length)

    def stepped(self, ids: Array, known: Array, length: Array | None = None) -> Canvas:
        """One step later: new `ids` and `known` [B, T]; rows end at `length` [B] (None: as before).

        What lies behind a new end is dropped; a row never grows.
        """
        if length is None or bool((length >= self.length).all()):
            now = replace(self, ids=ids, known=known)
            for name in ("pos", "inside", "answer"):  # the same as before: not worked out again
                if name in self.__dict__:
                    now.__dict__[name] = self.__dict__[name]
            return now
        length = np.minimum(self.length, length)
        inside = self.pos < length[:, None]
        return replace(
            self, ids=ids, known=known | ~inside, generated=self.generated & inside, length=length
        )

    def take(self, rows: Array | Sequence[int], size: int | None = None) -> Canvas:
        """A canvas with `rows` [n] (indices, repeats allowed), of `size` positions (None: as
        many as the longest of them has).
        """
        rows = np.asarray(rows, dtype=np.int64)
        length = self.length[rows]
        size = int(length.max(initial=0)) if size is None else size
        ids, generated, known = (a[rows, :size] for a in (self.ids, self.generated, self.known))
        return Canvas(ids, generated, known, self.prompt[rows], length, self.row[rows])

    def joined(self, other: Canvas, mask_id: int) -> Canvas:
        """The rows of this canvas, then those of `other`."""
        size = max(self.ids.shape[1], other.ids.shape[1])
        fills = {"ids": mask_id, "generated": False, "known": True}
        wide = (
            np.concatenate([widened(getattr(c, name), size, fill) for c in (self, other)])
            for name, fill in fills.items()
        )
        narrow = (
            np.concatenate([getattr(c, name) for c in (self, other)])
            for name in ("prompt", "length", "row")
        )
        return Canvas(*wide, *narrow)


def first_of(mask: Array, otherwise: Array) -> Array:
    """[B] the first position at which `mask` [B, T] holds; `otherwise` [B] where there is none."""
    if not mask.shape[1]:
        return otherwise
    first = mask.argmax(1)
    return np.where(mask[np.arange(len(mask)), first], first, otherwise)


def widened(a: Array, size: int, fill: Any) -> Array:
    """`a` [B, T, ...] with `fill` behind, so that T is at least `size`."""
    more = size - a.shape[1]
    if more <= 0:
        return a
    return np.concatenate([a, np.full((len(a), more, *a.shape[2:]), fill, dtype=a.dtype)], 1)


def positions(mask: Array, fill: int | None = None) -> tuple[Array, Array]:
    """Positions [B, K] at which `mask` [B, T] holds, ascending, and which of them are real.

    K is the most of a row. Padding stands behind the real ones and shows `fill` (None: T).
    """
    count = mask.sum(1)
    most = int(count.max(initial=0))
    _, col = mask.nonzero()
    pos = np.full((len(mask), most), mask.shape[1] if fill is None else fill, dtype=np.int64)
    real = np.arange(most) < count[:, None]
    pos[real] = col  # both go row by row, ascending
    return pos, real
