"""A model that is never wrong: the true conditionals of a known joint distribution.

Decoding with it separates what a rule loses from what a trained network loses: any error left is
the rule's. See `closed_forms` for the accuracies that follow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError
from dllm.eval.closed_forms import answers
from dllm.models.hf import HFSpec
from dllm.samplers.noise import seed_key, uniform

IMPOSSIBLE = -1e4  # the logit of probability 0: finite, and exp() of it is exactly 0
CELLS = 2**23  # entries of the [rows, support] tables worked on at a time


@dataclass(frozen=True, eq=False)
class Joint:
    """A distribution over sequences of symbols 0 .. symbols - 1, given by its support.

    support [S, n] int64, the sequences of positive mass, each once;  log_mass [S] float64, up to a
    constant. The list tasks are those of ParallelBench (arXiv 2510.04767, section 4): items are
    0 .. n - 1 in input order, the new item of a task that has one is n, all answers equally likely.
    """

    support: Tensor
    log_mass: Tensor
    symbols: int

    def __post_init__(self) -> None:
        shape = tuple(self.support.shape)
        if len(shape) != 2 or not shape[0] or self.log_mass.shape != shape[:1]:
            raise ValueError(
                f"support {list(shape)} with log_mass {list(self.log_mass.shape)}: expected "
                "[S, n] and [S], S at least 1"
            )
        object.__setattr__(self, "log_mass", self.log_mass.double())
        if not bool(torch.isfinite(self.log_mass).all()):
            raise ValueError("log_mass holds NaN or infinity: leave out sequences of mass 0")
        if bool(((self.support < 0) | (self.support >= self.symbols)).any()):
            raise ValueError(f"symbols={self.symbols}: the support holds others")

    @property
    def positions(self) -> int:
        return self.support.shape[1]

    @classmethod
    def uniform(cls, sequences: Iterable[tuple[int, ...]], symbols: int | None = None) -> Joint:
        """Equal mass on every one of `sequences`."""
        support = torch.tensor(list(sequences), dtype=torch.int64)
        log_mass = torch.zeros(len(support), dtype=torch.float64)
        return cls(support, log_mass, int(support.max()) + 1 if symbols is None else symbols)

    @classmethod
    def copy(cls, n: int) -> Joint:
        """One answer: the n items in order (also reverse, sort and the operations by index)."""
        return cls.uniform(answers("copy", n))

    @classmethod
    def shuffle(cls, n: int) -> Joint:
        """All n! orders of n items."""
        return cls.uniform(answers("shuffle", n))

    @classmethod
    def replace_random(cls, n: int) -> Joint:
        """n items, one of them replaced by a new one."""
        return cls.uniform(answers("replace_random", n))

    @classmethod
    def insert_random(cls, n: int) -> Joint:
        """n items and a new one anywhere among them."""
        return cls.uniform(answers("insert_random", n))

    @classmethod
    def remove_random(cls, n: int) -> Joint:
        """n items without one of them."""
        return cls.uniform(answers("remove_random", n), n)

    @classmethod
    def latin_square(cls, order: int = 4) -> Joint:
        """All latin squares of `order`, rows one behind the other (576 of order 4)."""
        return cls.uniform(answers("latin_square", order))

    @classmethod
    def table(cls, probabilities: np.ndarray | Tensor) -> Joint:
        """Any joint of n positions and v symbols, as an array with n axes of length v (need not sum
        to 1). ValueError for negative or non-finite entries, or none above 0.
        """
        mass = torch.as_tensor(probabilities, dtype=torch.float64)
        if mass.ndim == 0 or len(set(mass.shape)) != 1:
            raise ValueError(f"probabilities of shape {list(mass.shape)}: expected n equal axes")
        if not bool((mass >= 0).all() & mass.isfinite().all()) or not bool(mass.any()):
            raise ValueError("probabilities: expected finite numbers from 0, one of them above 0")
        support = mass.nonzero()
        return cls(support, mass[tuple(support.T)].log(), mass.shape[0])

    def contains(self, answers: Tensor) -> Tensor:
        """[B] bool: which of `answers` [B, n] have positive mass."""
        known = torch.ones_like(answers, dtype=torch.bool)
        hot = self._one_hot(self.support)
        parts = [
            (self._matches(part, every, hot) == self.positions).any(1)
            for part, every in self._chunks(answers, known)
        ]
        return torch.cat(parts)

    def conditionals(self, answers: Tensor, known: Tensor) -> Tensor:
        """[B, n, symbols] float64: the distribution of every position given the `known` [B, n] of
        `answers`.

        Where the known symbols cannot occur together, those that contradict the ones to their left
        are taken as unknown.
        """
        hot = self._one_hot(self.support)
        parts = [self._conditionals(a, k, hot) for a, k in self._chunks(answers, known)]
        return torch.cat(parts)

    def _conditionals(self, answers: Tensor, known: Tensor, hot: Tensor) -> Tensor:
        agrees = self._matches(answers, known, hot) == known.sum(1, keepdim=True)  # [B, S]
        broken = (~agrees.any(1)).nonzero()[:, 0]
        if len(broken):
            agrees[broken] = self._agree_in_part(answers[broken], known[broken])
        log_mass = torch.where(agrees, self.log_mass, -torch.inf)
        mass = (log_mass - log_mass.amax(1, keepdim=True)).exp()
        distribution = (mass @ hot).view(len(answers), self.positions, self.symbols)
        return distribution / mass.sum(1)[:, None, None]

    def _agree_in_part(self, answers: Tensor, known: Tensor) -> Tensor:
        """[B, S] which sequences agree with the known symbols, left to right, as far as any do."""
        agrees = torch.ones(len(answers), len(self.support), dtype=torch.bool)
        agrees = agrees.to(answers.device)
        for slot in range(self.positions):
            here = agrees & (answers[:, slot, None] == self.support[:, slot])
            use = known[:, slot] & here.any(1)
            agrees = torch.where(use[:, None], here, agrees)
        return agrees

    def _matches(self, answers: Tensor, known: Tensor, hot: Tensor) -> Tensor:
        """[B, S] how many known positions of each row are as in each sequence; `hot` [S, n * v]."""
        told = self._one_hot(answers) * known.repeat_interleave(self.symbols, dim=1)
        return told @ hot.T

    def _one_hot(self, sequences: Tensor) -> Tensor:
        """[N, n * v] float64; a token that is no symbol has no 1."""
        symbols = torch.arange(self.symbols, device=sequences.device)
        return (sequences[..., None] == symbols).flatten(1).double()

    def _chunks(self, answers: Tensor, known: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        size = max(1, CELLS // len(self.support))
        return zip(torch.split(answers, size), torch.split(known, size), strict=True)


class Oracle:
    """`(ids, plan) -> logits`, the logs of the joint's conditionals: the model interface.

    Symbols are the token ids 0 .. v - 1; mask, end and padding follow and are never predicted
    inside the answer, and nothing but the end behind it. Position i of the joint is position
    `prompt_length` + i of every row; every token there that is not the mask is evidence. What the
    prompt says has no influence but on the noise.

    jitter: standard deviation of Gaussian noise on the logits, a hash of (seed, prompt, known
    tokens, position, symbol). A perfect model has exact ties, and an argmax that breaks them alike
    at every position is not what ParallelBench's greedy formulas mean (arXiv 2510.04767, appendix
    A). The noise is the only thing that tells rows apart: give them different prompts.
    """

    def __init__(
        self, joint: Joint, *, jitter: float = 0.0, seed: int = 0, prompt_length: int = 0
    ) -> None:
        if not 0 <= jitter < float("inf"):
            raise ValueError(f"jitter={jitter}: expected a finite number of at least 0")
        if prompt_length < 0:
            raise ValueError(f"prompt_length={prompt_length}: expected a number of at least 0")
        v = joint.symbols
        self.spec = HFSpec(vocab_size=v + 3, mask_id=v, eos_id=v + 1, pad_id=v + 2, family="oracle")
        self.joint, self.jitter, self.seed = joint, jitter, seed
        self.prompt_length = prompt_length

    @property
    def device(self) -> torch.device:
        return self.joint.support.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def prompts(self, count: int) -> list[list[int]]:
        """`count` different prompts of `prompt_length` symbols, so that rows get different noise.

        ValueError where there are not that many.
        """
        base, size = self.joint.symbols, self.prompt_length
        if count > base**size:
            raise ValueError(
                f"prompt_length={size}: {count} prompts of {base} symbols need a longer one"
            )
        return [[row // base**i % base for i in range(size)] for row in range(count)]

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        raise DllmError("an oracle keeps no keys and values: use cache='none'")

    @torch.no_grad()
    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        """Logits [B, R, vocab_size] of the rows `plan.head`, float64 and finite."""
        if kv is not None:
            raise DllmError("an oracle reads no KV cache: use cache='none'")
        n, v = self.joint.positions, self.joint.symbols
        row = ids[:, : self.prompt_length + n]  # a canvas may be shorter, or longer
        answer = torch.full((len(ids), n), self.spec.mask_id, device=ids.device)
        answer[:, : max(0, row.shape[1] - self.prompt_length)] = row[:, self.prompt_length :]
        distribution = self.joint.conditionals(answer, answer != self.spec.mask_id)
        logits = torch.full((len(ids), n + 1, v + 3), IMPOSSIBLE, dtype=torch.float64)
        logits = logits.to(ids.device)
        logits[:, :n, :v] = distribution.log().clamp(min=IMPOSSIBLE)
        if self.jitter:
            logits[:, :n, :v] += self.jitter * self._noise(row)
        logits[:, n, self.spec.eos_id] = 0.0  # every position outside the answer
        slot = plan.pos.gather(1, plan.head) - self.prompt_length  # [B, R]
        slot = torch.where((slot >= 0) & (slot < n), slot, n)
        return logits.gather(1, slot[..., None].expand(-1, -1, v + 3))

    def _noise(self, row: Tensor) -> Tensor:
        """[B, n, v] standard normal; `row` [B, L] holds prompt and answer."""
        slot = torch.arange(self.joint.positions, device=row.device)[:, None]
        symbol = torch.arange(self.joint.symbols, device=row.device)
        content = (token[:, None, None] for token in row.T)
        normal: Tensor = torch.special.ndtri(uniform(seed_key(self.seed), *content, slot, symbol))
        return normal
