"""Drafter that is a masked-diffusion model: one pass over what is new and K masks gives K columns.

The prefix stays in a KV cache, so a round computes the tokens of the last round and the
masks. In a model that looks both ways a prefix key is as old as the round that wrote it; that
makes drafts a little worse, never the text wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.models.markov import MarkovHead
from dllm.verify.draft.conditional import lattices as chains
from dllm.verify.draft.lattice import Lattice


@dataclass(frozen=True)
class ModelDrafter:
    """Drafts with a model that this engine loaded.

    width: tokens kept in each column.  temperature: of the marginals.  horizon: masks shown behind
    the context, at least; a model trained on whole answers takes the last mask for the end.
    limit: columns that are drafted at most.  separator: token put behind the masks (DEER, arXiv
    2512.15176, section 3.1).  steps: passes per draft, each filling the surest positions
    (DiffuSpec, arXiv 2510.02358, section 3.1).  eos: tokens behind which nothing is drafted.
    markov: what the token before a column adds to its logits (DSpark, arXiv 2607.05147); for one
    step, as more of them see each other's tokens already.
    """

    model: Decoder
    width: int = 16
    temperature: float = 1.0
    horizon: int = 0
    limit: int = 64
    separator: int | None = None
    steps: int = 1
    eos: Collection[int] = ()
    markov: MarkovHead | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, Decoder):
            raise DllmError(
                f"a drafter of type {type(self.model).__name__} keeps no keys and values, so every "
                "round would compute its whole prefix: load it with dllm.load"
            )
        for name in ("width", "limit", "steps"):
            if getattr(self, name) < 1:
                raise DllmError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.temperature > 0:
            raise DllmError(f"temperature={self.temperature}: a drafter's is above 0")
        if self.markov is not None:
            if self.steps > 1:
                raise DllmError(f"steps={self.steps}: expected 1 with a Markov head (markov=...)")
            if self.markov.vocab_size != self.model.spec.vocab_size:
                raise DllmError(
                    f"a Markov head for {self.markov.vocab_size} tokens: expected "
                    f"{self.model.spec.vocab_size}, as the drafter has"
                )

    def open(self, limits: Sequence[int]) -> ModelSession:
        """Begin a batch whose texts will not be longer than `limits` tokens, prompt included."""
        return ModelSession(self, limits)


class ModelSession:
    """The KV cache of one batch and how far each row's prefix is in it."""

    def __init__(self, drafter: ModelDrafter, limits: Sequence[int]) -> None:
        self.drafter, self.model = drafter, drafter.model
        self.spec = drafter.model.spec
        self.seen: list[list[int]] = [[] for _ in limits]  # what the cache was written from
        self.cached = [0] * len(limits)  # how many of those are in it
        length = max(limits, default=0) + max(drafter.limit, drafter.horizon) + 1
        self.kv = self.model.new_kv(len(limits), length)
        shape, mask = (len(limits), length), self.spec.mask_id
        self.canvas = torch.full(shape, mask, device=self.model.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on."""
        self.seen = [self.seen[row] for row in rows]
        self.cached = [self.cached[row] for row in rows]
        self.canvas = self.canvas[list(rows)]
        for place, row in enumerate(rows):  # they ascend, so none is overwritten before it moves
            if row != place:
                self.kv.move(row, place)
        self.kv.use(len(rows), self.kv.length)

    @torch.inference_mode()
    def propose(self, contexts: Sequence[Sequence[int]], depths: Sequence[int]) -> list[Lattice]:
        """See `DraftSession`."""
        eos = self.drafter.eos
        lattices = [Lattice.empty(eos) for _ in contexts]
        asked = {
            row: min(depth, self.drafter.limit)
            for row, depth in enumerate(depths)
            if depth > 0 and self.end(len(contexts[row]), depth) <= self.kv.length
        }
        if not asked:
            return lattices
        for row in asked:
            self.begin(row, list(contexts[row]))
        for row, lattice in zip(asked, self.read(asked, self.columns(asked)), strict=True):
            lattices[row] = lattice
        return lattices

    def read(self, asked: Mapping[int, int], logits: Tensor) -> list[Lattice]:
        """The lattices of logits [n, K, V] of the rows asked."""
        drafter = self.drafter
        options: Any = {
            "temperature": drafter.temperature,
            "banned": (self.spec.mask_id,),
            "eos": drafter.eos,
        }
        if drafter.markov is not None:
            last, depths = [self.seen[row][-1] for row in asked], [*asked.values()]
            bias = drafter.markov.bias
            return chains(bias, logits, last, depths, drafter.width, **options)
        return [
            Lattice.of(each[:depth], drafter.width, **options)
            for each, depth in zip(logits, asked.values(), strict=True)
        ]

    def begin(self, row: int, context: list[int]) -> None:
        """Note the row's tokens; what the cache has of another text is forgotten."""
        cached = min(self.cached[row], len(context))
        if context[:cached] != self.seen[row][:cached]:
            cached = next(i for i, (a, b) in enumerate(zip(context, self.seen[row])) if a != b)
        self.cached[row], self.seen[row] = cached, context
        self.canvas[row, cached:] = self.spec.mask_id
        self.canvas[row, cached : len(context)] = torch.as_tensor(context[cached:])

    def start(self, row: int) -> int:
        """The first position that the next pass has to compute."""
        cached, block = self.cached[row], self.spec.block_length
        if block is not None:  # in a block that is not full the keys change with every token
            cached -= cached % block
        # with a shift the first column is read at the last token of the text
        return min(cached, len(self.seen[row]) - self.spec.shift)

    def end(self, length: int, depth: int) -> int:
        """The position behind the last mask and the separator of a draft of `depth` columns."""
        masks = max(min(depth, self.drafter.limit), self.drafter.horizon)
        return length + masks + (self.drafter.separator is not None)

    def columns(self, asked: Mapping[int, int]) -> Tensor:
        """Logits [n, K, V] of the positions behind the contexts of the rows asked: row -> depth.

        K is the largest depth; what a row has behind its own means nothing.
        """
        if self.drafter.separator is not None:
            for row, depth in asked.items():
                self.canvas[row, self.end(len(self.seen[row]), depth) - 1] = self.drafter.separator
        logits = self.forward(asked)
        for left in range(self.drafter.steps - 1, 0, -1):
            masked = self.masked(asked)
            if not masked.any():
                break
            self.fill(asked, logits, masked, left)
            again = self.forward(asked)  # a column that is filled stays what it was
            logits = torch.where(self.masked(asked)[..., None], again, logits)
        return logits

    def forward(self, asked: Mapping[int, int]) -> Tensor:
        """One pass over what the cache lacks, the masks and the separator: logits [n, K, V]."""
        device = self.model.device
        starts = [self.start(row) for row in asked]
        lengths = [len(self.seen[row]) for row in asked]
        ends = [self.end(*each) for each in zip(lengths, asked.values(), strict=True)]
        widest = max(end - start for start, end in zip(starts, ends, strict=True))
        start = torch.tensor(starts, device=device)[:, None]
        end = torch.tensor(ends, device=device)[:, None]
        pos = start + torch.arange(widest, device=device)
        valid = pos < end
        first = torch.tensor(lengths, device=device)[:, None] - start - self.spec.shift
        head = first + torch.arange(max(asked.values()), device=device)
        rows = None if len(asked) == len(self.cached) else torch.tensor([*asked], device=device)
        plan = ForwardPlan(
            pos=torch.where(valid, pos, 0),
            head=torch.minimum(head, end - start - 1),
            valid=None if len(asked) == 1 else valid,
            rows=rows,
            extent=max(ends),
        )
        canvas = self.canvas if rows is None else self.canvas[rows]
        logits: Tensor = self.model(canvas, plan, self.kv)
        for row, length in zip(asked, lengths, strict=True):
            self.cached[row] = length
        self.kv.drop(np.array(self.cached))
        return logits

    def masked(self, asked: Mapping[int, int]) -> Tensor:
        """[n, K] bool: which positions of each row's draft are still masks."""
        ahead = torch.arange(max(asked.values()), device=self.model.device)
        depth = torch.tensor([*asked.values()], device=ahead.device)[:, None]
        at = torch.tensor([len(self.seen[row]) for row in asked], device=ahead.device)[:, None]
        rows = torch.tensor([*asked], device=ahead.device)[:, None]
        at = (at + ahead).clamp(max=self.kv.length - 1)
        return (self.canvas[rows, at] == self.spec.mask_id) & (ahead < depth)

    def fill(self, asked: Mapping[int, int], logits: Tensor, masked: Tensor, left: int) -> None:
        """Put the surest tokens into 1 / (left + 1) of each row's masked positions [n, K]."""
        logits = logits.clone()
        logits[..., self.spec.mask_id] = -torch.inf
        sure, token = logits.float().softmax(-1).max(-1)
        count = -(-masked.sum(1) // (left + 1))
        order = sure.masked_fill(~masked, -1.0).argsort(dim=1, descending=True, stable=True)
        chosen = masked & (order.argsort(1) < count[:, None])
        for i, row in enumerate(asked):
            at = len(self.seen[row]) + chosen[i].nonzero()[:, 0]
            self.canvas[row, at] = token[i, chosen[i]]
