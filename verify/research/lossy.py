"""Acceptance rules that change the text: they keep drafts that the target only finds plausible.

At each node the most likely plausible child is kept; without one the target alone goes on. There is
no bound on how far the text's distribution goes from the target's, hence `lossless = False`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_positive, check_probability, check_whole
from dllm.verify.accept.rules import Match
from dllm.verify.rng import Rng
from dllm.verify.tree import Tree


@dataclass(frozen=True)
class Lossy(Match):
    """A rule that keeps plausible children; a subclass says which tokens are plausible.

    greedy: where no child is, take the target's likeliest token instead of drawing one (meant for
    temperature 0).
    """

    lossless: ClassVar[bool] = False
    greedy: bool = False

    def least(self, probs: Tensor) -> float:
        """The probability that a token must have to be plausible, given all of them: probs [V]."""
        raise NotImplementedError

    def token(self, tree: Tree, node: int, scores: Tensor, rng: Rng) -> int:
        probs = torch.softmax(scores, -1, dtype=torch.float64)
        drafts = [tree.tokens[child] for child in tree.children(node)]
        best = max(drafts, key=lambda token: float(probs[token]), default=None)
        if best is not None and float(probs[best]) >= self.least(probs):
            return best
        return int(scores.argmax()) if self.greedy else super().token(tree, node, scores, rng)


@dataclass(frozen=True)
class Typical(Lossy):
    """Plausible: a probability of at least min(epsilon, delta exp(-H)), H the distribution's
    entropy.

    Typical acceptance, with the values that Medusa released. greedy: where no token is plausible,
    the target's likeliest is taken, not drawn (at temperature 0).
    """

    paper = "Medusa, arXiv 2401.10774"

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):
            check_positive(name, getattr(self, name), 1)

    def least(self, probs: Tensor) -> float:
        return min(self.epsilon, self.delta * math.exp(-float(torch.special.entr(probs).sum())))


@dataclass(frozen=True)
class Relaxed(Lossy):
    """Plausible: one of the `top` likeliest tokens, at most `margin` less likely than the first.

    Relaxed acceptance of TensorRT-LLM, with the values of its example. greedy: where no token is
    plausible, the target's likeliest is taken, not drawn (at temperature 0).
    """

    top: int = 10
    margin: float = 0.01

    def __post_init__(self) -> None:
        check_whole("top", self.top, 1)
        check_probability("margin", self.margin)

    def least(self, probs: Tensor) -> float:
        best = probs.topk(min(self.top, len(probs))).values
        return max(float(best[-1]), float(best[0]) - self.margin)
