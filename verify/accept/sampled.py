"""Acceptance rules for trees with sampled children (see construct.py); none changes the text.

Each spends the draw of the node (which tokens, from which distribution q) on a token of
distribution p, the target's. Deterministic children may stand beside the sampled ones: the token
that comes out is looked up among all of them. Where a node has no draw, a token of the target is
drawn and matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.verify.accept.rules import AcceptedPath, Ended, Match, Scores, follow, go_on
from dllm.verify.rng import Rng
from dllm.verify.tree import Distribution, Draw, Tree


class Sampled(Match):
    """A rule that spends draws; a subclass says how."""

    def emit(self, scores: Tensor, draw: Draw | None, rng: Rng) -> int:
        if draw is None:
            return super().emit(scores, draw, rng)
        return self.spend(distribution(scores), draw, rng)

    def spend(self, p: Tensor, draw: Draw, rng: Rng) -> int:
        """A token of distribution p [V] (fp64) out of the draw and new coins."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ratio(Sampled):
    """Keep the drafted y with probability min(1, p(y)/q(y)), else draw from nrm[p - q]+.

    Speculative sampling. q is the distribution that y really came from: cut and renormalised.
    Further draws of a node count as deterministic children.
    """

    paper = "arXiv 2211.17192; arXiv 2302.01318"

    def spend(self, p: Tensor, draw: Draw, rng: Rng) -> int:
        return one_by_one(p, draw.distribution, draw.tokens[:1], rng)


@dataclass(frozen=True)
class BlockVerification(Match):
    """Block verification: one test of a sampled chain as a whole.

    In expectation it keeps at least as many drafts as `Ratio` does. What it emits behind the kept
    drafts is looked up among fixed children too; from there on tokens are drawn and matched.
    """

    paper = "Block verification, arXiv 2403.10444"

    def walk(self, tree: Tree, scores: Scores, rng: Rng, ended: Ended) -> AcceptedPath:
        nodes = tree.chain()
        drafts = [tree.tokens[node] for node in nodes[1:]]
        end = next((i for i in range(1, len(nodes)) if ended(drafts[:i])), None)
        drafts = drafts[:end]
        distributions, rests, chances = [], [], [1.0]  # chances[i]: that i drafts or more are kept
        for i, token in enumerate(drafts):
            p, q = distribution(scores(nodes[i], drafts[:i])), tree.draws[nodes[i]].distribution
            distributions.append(p)
            rests.append(minus(chances[i] * p, q))
            chances.append(share(chances[i] * float(p[token]), q.prob(token)))
        kept = self.kept(chances, rests, rng)
        if kept == end:
            return AcceptedPath(nodes[:kept], drafts)
        walk = AcceptedPath(nodes[: kept + 1], drafts[:kept])
        if kept < len(drafts):
            walk.tokens.append(rng.choice(normalised(rests[kept], distributions[kept])))
            if not follow(walk, tree, ended):
                return walk
        return go_on(walk, tree, self.emitter(tree, scores, rng), ended)

    def kept(self, chances: Sequence[float], rests: Sequence[Tensor], rng: Rng) -> int:
        """How many drafts stay: the longest prefix whose coin says so."""
        for i in range(len(rests), 0, -1):
            coin = chances[i]
            if i < len(rests):
                rest = float(rests[i].sum())
                coin = share(rest, rest + 1 - chances[i])
            if passes(coin, rng):
                return i
        return 0


def distribution(scores: Tensor) -> Tensor:
    """Logits [V] -> probabilities [V] in fp64."""
    return torch.softmax(scores, -1, dtype=torch.float64)


def one_by_one(p: Tensor, q: Distribution, tokens: Sequence[int], rng: Rng) -> int:
    """A token of distribution p by ratio tests on draws from q without replacement."""
    for token in tokens:
        if passes(share(float(p[token]), q.prob(token)), rng):
            return token
        p = normalised(minus(p, q), p)
        q = q.without([token])
    return rng.choice(p)


def share(part: float, whole: float) -> float:
    """min(1, part / whole), also where `whole` is 0; 0 where `part` is."""
    if part <= 0:
        return 0.0
    return 1.0 if part >= whole else part / whole


def passes(chance: float, rng: Rng) -> bool:
    """A coin, tossed only where it is not certain."""
    return chance >= 1 or (chance > 0 and rng.flip(chance))


def minus(p: Tensor, q: Distribution) -> Tensor:
    """[p - q]+ over all tokens [V]; neither needs to sum to 1."""
    tokens = torch.from_numpy(q.tokens).to(p.device)
    return p.index_add(0, tokens, torch.from_numpy(q.probs).to(p), alpha=-1).clamp(min=0)


def normalised(weights: Tensor, otherwise: Tensor) -> Tensor:
    """Weights [V] to sum 1; `otherwise` where rounding left none of them."""
    total = weights.sum()
    return weights / total if total > 0 else otherwise
