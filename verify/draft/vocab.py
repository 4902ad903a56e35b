"""Drafter of another vocabulary than the target's: texts and columns are translated.

Whatever is lost on the way makes drafts shorter, never the text wrong: drafts are only compared
with what the target emits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.text.tokenizer import ChatTokenizer
from dllm.verify.draft.drafter import ModelDrafter
from dllm.verify.draft.lattice import Branch, Lattice
from dllm.verify.protocol import DraftSession

MARKS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})  # how tokenizers write space and newline


def id_map(
    draft: ChatTokenizer, target: ChatTokenizer, draft_size: int, target_size: int
) -> Tensor:
    """[draft_size] the target's id of each of the drafter's tokens, -1 where there is none.

    Tokens are the same if they are written the same, spaces and newlines in either notation; the
    end tokens are each other's.
    """
    there = spelled(target.tokenizer.get_vocab(), target_size)
    ids = torch.full((draft_size,), -1)
    for piece, token in spelled(draft.tokenizer.get_vocab(), draft_size).items():
        ids[token] = there.get(piece, -1)
    mine, theirs = draft.tokenizer.eos_token_id, target.tokenizer.eos_token_id
    if mine is not None and theirs is not None:
        ids[mine] = theirs
    return ids


def spelled(vocab: Mapping[str, int], size: int) -> dict[str, int]:
    """Spelling to id of the tokens below `size`."""
    return {piece.translate(MARKS): token for piece, token in vocab.items() if token < size}


def same_ids(ids: Tensor) -> bool:
    """Whether no token of a map changes its id, so that nothing has to be translated."""
    known = ids >= 0
    return bool((ids[known] == torch.arange(len(ids))[known]).all()) and bool(known.any())


@dataclass(frozen=True)
class Translated:
    """A drafter with another vocabulary, as one that speaks the target's ids.

    ids: see `id_map`.  draft, target: the tokenizers of both.
    """

    drafter: ModelDrafter
    ids: Tensor
    draft: ChatTokenizer
    target: ChatTokenizer

    def open(self, limits: Sequence[int]) -> TranslatedSession:
        return TranslatedSession(self, self.drafter.open([2 * limit for limit in limits]))


@dataclass
class TranslatedSession:
    """The drafter's session behind its translation."""

    whole: Translated
    session: DraftSession

    def keep(self, rows: Sequence[int]) -> None:
        self.session.keep(rows)

    def propose(self, contexts: Sequence[Sequence[int]], depths: Sequence[int]) -> list[Lattice]:
        """Columns in the target's ids while tokens are one to one, and the best path in any case.

        The context is tokenized anew: the KV cache keeps what its beginning has in common with the
        last one's.
        """
        draft, target = self.whole.draft, self.whole.target
        own = [draft.encode(target.decode(ids, skip_special_tokens=False)) for ids in contexts]
        lattices = self.session.propose(own, depths)
        return [self.translate(*each) for each in zip(own, lattices, strict=True)]

    def translate(self, context: Sequence[int], lattice: Lattice) -> Lattice:
        """`lattice` behind the drafter's `context`, in the target's ids."""
        ids = self.whole.ids.numpy()
        tokens = np.where(lattice.tokens < 0, -1, ids[lattice.tokens])
        eos = frozenset(int(ids[token]) for token in lattice.eos)
        slots = lattice.path()[: lattice.first_end()]
        path = lattice.tokens[np.arange(len(slots)), slots]
        known = ids[path] >= 0
        columns = len(tokens) if known.all() else int(known.argmin())
        tokens, gone = tokens[:columns], tokens[:columns] < 0
        logp, worth = shared(lattice.logp[:columns], gone), lattice.worth(slots.tolist())
        branches = () if known.all() else self.respelled(context, path, worth)
        if lattice.pairs is None:
            return Lattice(tokens, logp, eos, branches)
        pairs = shared(lattice.pairs[:columns], gone[:, None])
        return Lattice.chained(tokens, logp[:1], pairs, eos, branches)

    def respelled(
        self, context: Sequence[int], path: NDArray[np.int64], worth: float
    ) -> tuple[Branch, ...]:
        """The drafter's best path, of log-probability `worth`, as a branch: its text in the
        target's tokens."""
        draft, target = self.whole.draft, self.whole.target
        before = draft.decode(context[-4:])  # a decoder may treat the start of a text differently
        text = draft.decode([*context[-4:], *path.tolist()])
        tokens = target.encode(text[len(before) :])
        if not tokens:
            return ()
        sure = float(np.exp(worth / len(tokens)))
        return (Branch(tuple(tokens), (sure,) * len(tokens), "model"),)


def shared(logp: NDArray[np.float64], gone: NDArray[np.bool_]) -> NDArray[np.float64]:
    """logp [..., M] without the tokens that are gone, what they had shared by all others."""
    kept = np.where(gone, -np.inf, logp)
    dropped = np.exp(logp).sum(-1, keepdims=True) - np.exp(kept).sum(-1, keepdims=True)
    return np.asarray(kept - np.log1p(-np.minimum(dropped, 1 - 1e-9)))
