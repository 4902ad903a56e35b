"""Canvas: the token ids of a batch, what is masked, where rows end. No model, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """The spans [start, end) in which tokens may be committed now; N of them a row, disjoint.

    start, end [B, N]; a planner with one window a row may give [B]. An empty span is no window. The
    n-th window of a row is the same one from step to step; later steps may leave out empty ones.
    forced [B, N] bool: a step commits at least one token in this window (None: in all). The first
    window of a row that holds a masked position is forced whatever this says.
    """

    start: Tensor
    end: Tensor
    forced: Tensor | None = None

    def __post_init__(self) -> None:
        if self.start.ndim == 1:
            object.__setattr__(self, "start", self.start[:, None])
            object.__setattr__(self, "end", self.end[:, None])

    def padded(self, count: int) -> Windows:
        """The same windows with empty ones behind, so that every row has at least `count`."""
        more = max(0, count - self.start.shape[1])
        start, end = (torch.nn.functional.pad(t, (0, more)) for t in (self.start, self.end))
        forced = self.forced
        return Windows(
            start, end, None if forced is None else torch.nn.functional.pad(forced, (0, more))
        )

    @property
    def empty(self) -> Tensor:
        """[B, N] bool: which spans are no windows."""
        return self.end <= self.start

    def first(self) -> Tensor:
        """[B] where the first window starts; 2^63 - 1 in a row without any."""
        return self.start.masked_fill(self.empty, torch.iinfo(self.start.dtype).max).amin(1)

    def each(self, pos: Tensor) -> Tensor:
        """[B, N, K] which absolute positions `pos` [B, K] (or [T]) lie in which window."""
        pos = pos.unsqueeze(-2)  # [B, 1, K], or [1, T]
        return (pos >= self.start[..., None]) & (pos < self.end[..., None])

    def contains(self, pos: Tensor) -> Tensor:
        """[B, K] which absolute positions `pos` [B, K] (or [T]) lie in a window of their row."""
        return self.each(pos).any(1)


Prefilled = Sequence[tuple[int, Sequence[int]]]  # (offset behind the prompt, token ids)


@dataclass(slots=True)
class Canvas:
    """B rows of prompt plus positions to fill, each from position 0, padded on the right only.

    ids        [B, T] token ids; masked positions show the mask id generated  [B, T] the engine may
    fill this position; a mask id typed in a prompt is no masked one known      [B, T] prompt, or
    committed prompt     [B] prompt length;  length [B] prompt plus generated;  row [B] index in the
    request
    """

    ids: Tensor
    generated: Tensor
    known: Tensor
    prompt: Tensor
    length: Tensor
    row: Tensor

    @classmethod
    def from_prompts(
        cls,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        mask_id: int,
        device: torch.device | str = "cpu",
        prefilled: Sequence[Prefilled] = (),
    ) -> Canvas:
        """A canvas of `prompts` with `max_new_tokens` masked positions behind each.

        prefilled: by row, what stands in its answer from the start.
        """
        size = max(map(len, prompts)) + max_new_tokens
        ids = torch.full((len(prompts), size), mask_id)
        prompt_length = torch.tensor([len(p) for p in prompts])
        length = prompt_length + max_new_tokens
        pos = torch.arange(size)
        generated = (pos >= prompt_length[:, None]) & (pos < length[:, None])
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
            for offset, tokens in prefilled[row] if prefilled else ():
                span = slice(len(prompt) + offset, len(prompt) + offset + len(tokens))
                ids[row, span] = torch.tensor(list(tokens), dtype=torch.long)
                generated[row, span] = False
        tensors = (ids, generated, ~generated, prompt_length, length, torch.arange(len(prompts)))
        return cls(*(t.to(device) for t in tensors))

    @property
    def masked(self) -> Tensor:
        """[B, T] positions still to be filled."""
        return self.generated & ~self.known

    @property
    def pos(self) -> Tensor:
        """[T] absolute positions."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)

    def first_masked(self) -> Tensor:
        """[B] position of the first masked one; the row's length where there is none."""
        size = self.ids.shape[1]
        first = torch.where(self.masked, self.pos, size).amin(1)
        return torch.minimum(first, self.length)

    def commit(self, pos: Tensor, token: Tensor, chosen: Tensor) -> None:
        """Fill the `chosen` [B, K] of the positions `pos` [B, K] with `token` [B, K]."""
        rows, cols = chosen.nonzero(as_tuple=True)
        where = pos[rows, cols]
        self.ids[rows, where] = token[rows, cols]
        self.known[rows, where] = True

    def reopen(self, pos: Tensor, chosen: Tensor, mask_id: int) -> None:
        """Mask the `chosen` [B, K] of the committed positions `pos` [B, K] again."""
        rows, cols = chosen.nonzero(as_tuple=True)
        where = pos[rows, cols]
        self.ids[rows, where] = mask_id
        self.known[rows, where] = False

    def shorten(self, length: Tensor) -> None:
        """Drop what rows hold from position `length` [B] on; a row never grows."""
        self.length = torch.minimum(self.length, length)
        inside = self.pos < self.length[:, None]
        self.generated = self.generated & inside
        self.known = self.known | ~inside

    def copy(self) -> Canvas:
        """The same canvas once more: what changes one of the two leaves the other as it is."""
        return replace(self, ids=self.ids.clone(), known=self.known.clone())

    def take(self, rows: Tensor) -> Canvas:
        """A canvas of its own with `rows` [n] (indices, repeats allowed) of this one."""
        return Canvas(
            *(t[rows] for t in (self.ids, self.generated, self.known)),
            *(t[rows] for t in (self.prompt, self.length, self.row)),
        )

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` [n] (indices), and the columns that none of them reaches."""
        size = int(self.length[rows].max()) if len(rows) else 0
        self.ids, self.generated, self.known = (
            t[rows, :size] for t in (self.ids, self.generated, self.known)
        )
        self.prompt, self.length, self.row = (t[rows] for t in (self.prompt, self.length, self.row))


def positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, K] at which `mask` [B, T] holds, ascending, and which of them are real."""
    most = int(mask.sum(1).max())
    pos = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return pos, mask.gather(1, pos)
