"""How often the rules keep a draft, against closed forms and optima; and very small numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from dllm.verify.accept.sampled import (
    BlockVerification,
    Ratio,
    normalised,
    share,
)
from dllm.verify.research.kseq import KSeq, any_of, smallest_rho
from dllm.verify.research.rsd import Rsd
from dllm.verify.rng import TorchRng
from dllm.verify.tree import Distribution, Draw, Tree
from tests.verify.accept.test_rules import chain, distributions_of, draws_of, sampled
from tests.verify.exact import distribution_of, image, tv
from tests.verify.rounds import World


def pair(seed: int, vocab: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A target's and a drafter's distribution, sometimes with impossible tokens."""
    rng = np.random.default_rng(seed)
    distributions = rng.dirichlet(np.full(vocab, 0.7), 2)
    distributions[rng.random((2, vocab)) < 0.15] = 0
    distributions[:, seed % vocab] += 0.05
    p, q = distributions / distributions.sum(1, keepdims=True)
    return p, q


def at_one_node(rule, p, q, kind: str, count: int, tops=()) -> tuple[dict[int, float], float]:
    """The exact distribution of the emitted token, and the probability that it is a child."""
    scores, distribution = torch.from_numpy(p).log(), Distribution(np.flatnonzero(q), q[q > 0])

    def program(rng) -> tuple[int, bool]:
        draw = Draw(
            distribution.without(tops), draws_of(distribution.without(tops), count, kind, rng)
        )
        token = rule.emit(scores, draw, rng)
        return token, token in (*tops, *draw.tokens)

    both = distribution_of(program)
    return image(both, lambda x: x[0]), image(both, lambda x: x[1]).get(True, 0.0)


def optimum(p: np.ndarray, q: np.ndarray, count: int) -> float:
    """The most that any rule keeps of `count` independent drafts: 1 + min over H, all subsets."""
    sets = itertools.product((False, True), repeat=len(p))
    return 1 + min(p[list(h)].sum() - q[list(h)].sum() ** count for h in sets)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_kseq_keeps_nearly_as_much_as_is_possible(seed, count):
    p, q = pair(seed)
    distribution, kept = at_one_node(KSeq(), p, q, "iid", count)
    best = optimum(p, q, count)
    assert tv(distribution, dict(enumerate(p))) < 1e-12
    assert (1 - 1 / math.e) * best - 1e-12 <= kept <= best + 1e-12
    if count == 1:
        assert kept == pytest.approx(np.minimum(p, q).sum(), abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_rsd_keeps_at_least_what_one_test_keeps(seed):
    p, q = pair(seed)
    distribution, kept = at_one_node(Rsd(), p, q, "distinct", 2)
    assert tv(distribution, dict(enumerate(p))) < 1e-12
    _, first = at_one_node(Ratio(), p, q, "distinct", 2)  # the second draw is only looked up
    _, alone = at_one_node(Ratio(), p, q, "distinct", 1)
    assert alone == pytest.approx(np.minimum(p, q).sum(), abs=1e-12)
    assert kept >= first - 1e-12
    assert first >= alone - 1e-12


def test_rsd_keeps_more_than_one_test_somewhere():
    gains = []
    for seed in range(8):
        p, q = pair(seed)
        kept = [at_one_node(rule, p, q, "distinct", 2)[1] for rule in (Rsd(), Ratio())]
        gains.append(kept[0] - kept[1])
    assert max(gains) > 0.01


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 2])
def test_fixed_likeliest_tokens_and_one_draw(seed, count):
    """Kept: p(tops) + sum min(p, q'), the optimum for that distribution of drafts."""
    p, q = pair(seed)
    tops = np.argsort(-q)[:count].tolist()
    rest = np.where(np.isin(np.arange(4), tops), 0, q)
    if not rest.sum():
        pytest.skip("nothing to draw from")
    distribution, kept = at_one_node(Ratio(), p, q, "iid", 1, tops)
    assert tv(distribution, dict(enumerate(p))) < 1e-12
    wanted = p[tops].sum() + np.minimum(p, rest / rest.sum()).sum()
    assert kept == pytest.approx(wanted, abs=1e-12)


def accepted(world: World, rule) -> float:
    """Expected accepted drafts of a chain in the first round."""

    def program(rng) -> int:
        lattice = world.lattice(())
        tree = chain((), sampled(lattice, rng), distributions_of(lattice))
        return len(world.walk(rule, (), tree, rng).nodes) - 1

    return sum(count * mass for count, mass in distribution_of(program).items())


def test_block_keeps_no_less_than_the_ratio_test():
    gains = []
    for seed in range(6):
        world = World(seed, columns=3, length=4, zeros=0.2 * (seed % 2))
        gains.append(accepted(world, BlockVerification()) - accepted(world, Ratio()))
    assert min(gains) > -1e-12
    assert max(gains) > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_block_keeps_what_its_chances_say(seed):
    """E[accepted] = sum over i of E min(1, P_(i-1) p_i / q_i), over all chains there are."""
    world = World(seed, columns=3, length=4)
    distributions, expected = distributions_of(world.lattice(())), 0.0
    for length in (1, 2, 3):
        for path in itertools.product(range(3), repeat=length):
            chance, mass = 1.0, 1.0
            for i, token in enumerate(path):
                q = distributions[i].prob(token)
                chance, mass = min(1.0, chance * world.target.probs(path[:i])[token] / q), mass * q
            expected += mass * chance
    assert accepted(world, BlockVerification()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_smallest_rho_solves_its_equation(count):
    for seed in range(20):
        p, q = pair(seed)
        rho = smallest_rho(p, q, count)
        each = np.minimum(p / rho, q).sum()
        assert 1 <= rho <= count
        assert any_of(each, count) <= rho * each + 1e-15
        if rho > 1 + 1e-9:
            lower = rho * (1 - 1e-9)
            each = np.minimum(p / lower, q).sum()
            assert any_of(each, count) > lower * each - 1e-15


def test_share():
    assert [share(0, 0), share(0, 1), share(1, 0), share(2, 1), share(1, 4)] == [0, 0, 1, 1, 0.25]


def test_nothing_left_by_rounding_falls_back_to_the_distribution_itself():
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert normalised(torch.zeros(2), p) is p


@pytest.mark.parametrize("rule", [Ratio(), Rsd(), KSeq(), BlockVerification()])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0]),  # nothing is ever left
        ([0.0, 0.0, 1.0], [0.5, 0.5, 0.0]),  # no draft can be kept
        ([1.0, 0.0, 0.0], [1e-300, 1 - 1e-16, 0.0]),
        ([1e-300, 1.0, 0.0], [1 - 1e-16, 1e-300, 0.0]),
        ([1 / 3 - 1e-17, 1 / 3, 1 / 3], [1 / 3, 1 / 3 - 1e-17, 1 / 3]),
    ],
)
def test_extreme_distributions(rule, p, q):
    """Finite, normalised, and never a token that the target excludes."""
    p, q = np.array(p), np.array(q)
    scores, distribution = torch.from_numpy(p).log(), Distribution(np.arange(3), q)

    def program(rng) -> int:
        tree = Tree.root(0)
        tree.draws[0] = Draw(distribution, (draw := draws_of(distribution, 1, "iid", rng)))
        tree.add(0, draw[0], 0.5, "test")
        return rule.walk(tree, lambda node, tokens: scores, rng, bool).tokens[0]

    assert tv(distribution_of(program), dict(enumerate(p))) < 1e-12


@pytest.mark.parametrize("rule", [Ratio(), Rsd(), KSeq(), BlockVerification()])
def test_without_a_draw_the_target_is_drawn_from_as_alone(rule):
    """The same number from the same generator as `torch.multinomial` on the target's fp32
    distribution.
    """
    scores = torch.randn(50, generator=torch.Generator().manual_seed(1))
    walk = rule.walk(
        Tree.root(0), lambda node, tokens: scores, TorchRng(torch.Generator().manual_seed(2)), bool
    )
    probs = torch.softmax(scores, -1)[None]
    alone = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(2))
    assert walk.tokens == [int(alone)]
