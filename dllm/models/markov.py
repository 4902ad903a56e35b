"""A Markov head: what the token before adds to a drafter's logits, low-rank, in a file of its own.

DSpark (arXiv 2607.05147): the columns of a draft do not see each other's tokens; this bias makes
neighbours agree. Trained beside a finished drafter (dllm/train/markov.py), whose weights it leaves
as they are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dllm.errors import DllmError, LoadError
from dllm.files import FileError
from dllm.tensors import read_tensors, write_tensors

FILE = "markov.safetensors"
FORMAT = "dllm-markov-1"
NAMES = ("left.weight", "right.weight")


class MarkovHead(nn.Module):
    """bias = W2 W1[prev], with W1 [V, rank] and W2 [V, rank]; W2 begins at 0, so a head that is not
    trained changes nothing."""

    def __init__(self, vocab_size: int, rank: int) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("rank", rank)):
            if value < 1:
                raise DllmError(f"{name}={value}: expected a whole number of at least 1")
        self.left = nn.Embedding(vocab_size, rank)
        self.right = nn.Linear(rank, vocab_size, bias=False)
        nn.init.normal_(self.left.weight, std=rank**-0.5)
        nn.init.zeros_(self.right.weight)

    @property
    def vocab_size(self) -> int:
        return self.left.num_embeddings

    @property
    def rank(self) -> int:
        return self.left.embedding_dim

    def bias(self, prev: Tensor) -> Tensor:
        """The bias of tokens prev [...] on the logits [..., V] of the position behind each."""
        return cast(Tensor, self.right(self.left(prev)))

    forward = bias


def save_markov(head: MarkovHead, directory: str | os.PathLike[str]) -> None:
    """Write the head beside the checkpoint in `directory`, whole or not at all."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in head.named_parameters()}
    write_tensors(Path(directory) / FILE, tensors, {"format": FORMAT})


def load_markov(
    directory: str | os.PathLike[str],
    vocab_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> MarkovHead | None:
    """The head beside the checkpoint in `directory`, in eval mode; None where there is none.

    vocab_size: the checkpoint's. LoadError if the file is no head, or one for another vocabulary.
    """
    file = Path(directory) / FILE
    if not file.exists():
        return None
    try:
        tensors, _ = read_tensors(file, NAMES, format=FORMAT)
    except FileError as error:
        raise LoadError(str(error)) from error
    head = MarkovHead(vocab_size, check(tensors, vocab_size, file))
    head.load_state_dict(tensors)
    return head.to(device, dtype).eval()


def check(tensors: dict[str, Tensor], vocab_size: int, file: Path) -> int:
    """The rank of a head's tensors; LoadError unless they fit together and the vocabulary."""
    shape = list(tensors[NAMES[0]].shape)
    rank = shape[1] if len(shape) == 2 else 0
    for name in NAMES:
        found = list(tensors[name].shape)
        if rank < 1 or found != [vocab_size, rank]:
            raise LoadError(
                f"{file}: {name!r} has shape {found}, expected [{vocab_size}, {rank or 'rank'}] "
                "(the drafter's vocabulary and the same rank)"
            )
        if not tensors[name].is_floating_point() or not tensors[name].isfinite().all():
            raise LoadError(f"{file}: {name!r}: expected finite weights")
    return rank
