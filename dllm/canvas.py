"""The batch being decoded: token ids, what is a hole, where rows end. No model, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """The span [start, end) of each row in which tokens may be committed now; start, end: [B]."""

    start: Tensor
    end: Tensor

    def contains(self, pos: Tensor) -> Tensor:
        """Which absolute positions `pos` [B, K] (or [T]) lie in their row's window."""
        return (pos >= self.start[:, None]) & (pos < self.end[:, None])


@dataclass(slots=True)
class Canvas:
    """B rows of prompt plus positions to fill, each from position 0, padded on the right only.

    ids        [B, T] token ids; holes show the mask id
    generated  [B, T] the engine may fill this position; a mask id typed in a prompt is not a hole
    known      [B, T] prompt, or committed
    prompt     [B] prompt length;  length [B] prompt plus generated;  row [B] index in the request
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
    ) -> Canvas:
        """A canvas of `prompts` with `max_new_tokens` holes behind each."""
        size = max(map(len, prompts)) + max_new_tokens
        ids = torch.full((len(prompts), size), mask_id)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
        prompt_length = torch.tensor([len(p) for p in prompts])
        length = prompt_length + max_new_tokens
        pos = torch.arange(size)
        generated = (pos >= prompt_length[:, None]) & (pos < length[:, None])
        tensors = (ids, generated, ~generated, prompt_length, length, torch.arange(len(prompts)))
        return cls(*(t.to(device) for t in tensors))

    @property
    def holes(self) -> Tensor:
        """[B, T] positions still to be filled."""
        return self.generated & ~self.known

    @property
    def pos(self) -> Tensor:
        """[T] absolute positions."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)

    def first_hole(self) -> Tensor:
        """[B] position of the first hole; the row's length where there is none."""
        size = self.ids.shape[1]
        first = torch.where(self.holes, self.pos, size).amin(1)
        return torch.minimum(first, self.length)

    def commit(self, pos: Tensor, token: Tensor, chosen: Tensor) -> None:
        """Fill the `chosen` [B, K] of the positions `pos` [B, K] with `token` [B, K]."""
        rows, cols = chosen.nonzero(as_tuple=True)
        where = pos[rows, cols]
        self.ids[rows, where] = token[rows, cols]
        self.known[rows, where] = True

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` [n] (indices), and the columns that none of them reaches."""
        size = int(self.length[rows].max()) if len(rows) else 0
        self.ids, self.generated, self.known = (
            t[rows, :size] for t in (self.ids, self.generated, self.known)
        )
        self.prompt, self.length, self.row = (t[rows] for t in (self.prompt, self.length, self.row))
