"""Lattices of a drafter whose Markov head says how a token changes the next one's distribution.

The head adds a bias to the logits of a column, given the token of the column before it (DSpark,
arXiv 2607.05147). So the drafter's distribution is a Markov chain, and candidates are chosen by
what it finds likely, not by marginals alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from dllm.verify.draft.lattice import Lattice

Bias = Callable[[Tensor], Tensor]  # tokens [...] -> what they add to the next logits [..., V]


def lattices(
    bias: Bias,
    logits: Tensor,
    last: Sequence[int],
    depths: Sequence[int],
    width: int,
    *,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    eos: Collection[int] = (),
) -> list[Lattice]:
    """Lattices with `pairs` from logits [n, K, V] of n rows, of as many columns as `depths` say.

    last: the token before each row's first column. Other options: as in `Lattice.of`.
    Of every column the greedy path's token is kept, and those to which the likeliest paths lead,
    `width` in all. So the lattice has the greedy path, and of all nodes that the whole vocabulary
    gives the width - 1 heaviest.
    """
    width = min(width, logits.shape[-1])
    found = candidates(bias, logits, last, width, temperature, banned, eos)
    tokens, pairs = (each.cpu().numpy() for each in found)
    return [
        Lattice.chained(ids[:depth], scores[0, 0], scores[:depth], eos)
        for ids, scores, depth in zip(tokens, pairs.astype(np.float64), depths, strict=True)
    ]


def candidates(
    bias: Bias,
    logits: Tensor,
    last: Sequence[int],
    width: int,
    temperature: float,
    banned: Sequence[int],
    eos: Collection[int],
) -> tuple[Tensor, Tensor]:
    """tokens [n, K, M] and pairs [n, K, M, M]; of column 0 all rows of pairs are its distribution.

    One column after the other, all rows of the batch at once. Paths end behind a token of eos.
    """
    rows, columns, _ = logits.shape
    tokens = torch.empty((rows, columns, width), dtype=torch.long, device=logits.device)
    pairs = torch.empty((rows, columns, width, width), device=logits.device)
    before = torch.tensor(last, device=logits.device)[:, None]  # [n, W]: W is 1, then M
    weight = torch.zeros(rows, 1, device=logits.device)  # of the likeliest path to each of them
    ends = torch.tensor([*eos], dtype=torch.long, device=logits.device)
    for i in range(columns):
        scores = (logits[:, i, None].float() + bias(before).float()) / temperature
        if banned:
            scores[..., list(banned)] = -torch.inf
        scores = scores.log_softmax(-1)  # [n, W, V]
        best = (weight[..., None] + scores).amax(1)
        # the greedy path goes through the first candidate of every column
        ids = best.scatter(1, scores[:, 0].argmax(-1, keepdim=True), torch.inf).topk(width).indices
        weight = best.gather(1, ids)
        gone = weight == -torch.inf
        weight = weight.masked_fill(torch.isin(ids, ends), -torch.inf)
        kept = scores.gather(2, ids[:, None].expand(-1, scores.shape[1], -1))
        pairs[:, i] = kept.masked_fill(gone[:, None], -torch.inf)
        tokens[:, i] = ids.masked_fill(gone, -1)
        before = ids
    return tokens, pairs
