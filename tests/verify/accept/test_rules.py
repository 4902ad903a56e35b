"""Every rule gives the target's own distribution, by enumeration of all it draws; wrong ones do
not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.verify.accept.rules import GreedyAcceptance, Match
from dllm.verify.accept.sampled import BlockVerification, Ratio, minus, normalised
from dllm.verify.research.kseq import KSeq
from dllm.verify.research.lossy import Relaxed, Typical
from dllm.verify.research.rsd import Rsd
from dllm.verify.rng import TorchRng
from dllm.verify.tree import Distribution, Draw, Tree
from tests.verify.exact import Table, chained, distribution_of, image, tv
from tests.verify.rounds import World, root_of

EXACT = 1e-12
BIASED = 1e-2


def draws_of(distribution: Distribution, count: int, kind: str, rng) -> tuple[int, ...]:
    """`count` draws from a distribution: "iid", or "distinct" ones without replacement."""
    tokens: list[int] = []
    for _ in range(count):
        left = distribution if kind == "iid" else distribution.without(tokens)
        if len(left.tokens):
            tokens.append(int(left.tokens[rng.choice(torch.from_numpy(left.probs))]))
    return tuple(tokens)


@dataclass
class Wild:
    """Trees of random shape: at each node some fixed children and, at some, the depth's draws."""

    world: World
    draws: int
    kind: str

    def __call__(self, text, lattice, rng) -> Tree:
        shape = np.random.default_rng([self.world.seed, 7, len(text), *text])
        tree, level = Tree.root(root_of(text)), [0]
        for depth in range(self.world.columns):
            sampled = shape.random() < 0.8
            tokens = (
                draws_of(lattice.distribution(depth), self.draws, self.kind, rng) if sampled else ()
            )
            below = []
            for node in level:
                if tokens and shape.random() < 0.8:
                    tree.draws[node] = Draw(lattice.distribution(depth), tokens)
                    below += [tree.add(node, token, 0.5, "drawn") for token in tokens]
                if shape.random() < 0.5:
                    below.append(tree.add(node, int(shape.integers(3)), 0.5, "fixed"))
            level = list(dict.fromkeys(below))
        return tree


WILD = [
    (Match(), 1, "iid"),
    (Ratio(), 1, "iid"),
    (Ratio(), 2, "distinct"),
    (Rsd(), 1, "iid"),
    (Rsd(), 2, "distinct"),
    (KSeq(), 1, "iid"),
    (KSeq(), 2, "iid"),
    (BlockVerification(), 1, "iid"),
    (BlockVerification(), 2, "distinct"),
]


@pytest.mark.parametrize(("rule", "draws", "kind"), WILD)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    zeros=st.sampled_from((0.0, 0.4)),
    width=st.integers(1, 3),
    eos=st.sampled_from(((), (2,))),
)
def test_any_tree_gives_the_distribution_of_the_target(rule, draws, kind, seed, zeros, width, eos):
    """Fixed children, drawn children, nodes with neither; distributions cut and sharpened;
    impossible tokens; ends of the text inside a round.
    """
    world = World(seed, zeros=zeros, width=width, eos=eos, sharp=2.0)
    distribution = world.distribution(rule, Wild(world, draws, kind))
    assert tv(distribution, world.truth()) < EXACT


def chain(text, tokens, distributions=()) -> Tree:
    """A chain; distributions: what each token is said to be drawn from."""
    tree = Tree.root(root_of(text))
    for node, token in enumerate(tokens):
        tree.add(node, token, 0.5, "test")
    tree.draws = {
        node: Draw(distribution, (tokens[node],)) for node, distribution in enumerate(distributions)
    }
    return tree


def distributions_of(lattice) -> list[Distribution]:
    return [lattice.distribution(depth) for depth in range(len(lattice))]


def sampled(lattice, rng) -> list[int]:
    return [draws_of(distribution, 1, "iid", rng)[0] for distribution in distributions_of(lattice)]


def claimed_argmax(text, lattice, rng) -> Tree:
    """The likeliest path, said to be drawn from the marginals."""
    return chain(text, lattice.tokens[:, 0].tolist(), distributions_of(lattice))


def claimed_conditional(text, lattice, rng) -> Tree:
    """The likeliest path, said to be drawn from a left-to-right distribution of the drafter."""
    tokens = lattice.tokens[:, 0].tolist()
    drafter = Table(5, 3)
    distributions = [
        Distribution(np.arange(3), np.array(drafter.probs((*text, *tokens[:depth]))))
        for depth in range(len(tokens))
    ]
    return chain(text, tokens, distributions)


def not_renormalised(text, lattice, rng) -> Tree:
    """Drawn from the cut distribution, tested with what it was before the cut."""
    distributions = [
        Distribution(lattice.tokens[i], np.exp(lattice.logp[i])) for i in range(len(lattice))
    ]
    return chain(text, sampled(lattice, rng), distributions)


def stops_at_unlikely(text, lattice, rng) -> Tree:
    """Stops before the first drawn token that is unlikely: it looks at the token it admits."""
    tokens, distributions = sampled(lattice, rng), distributions_of(lattice)
    n = next((i for i, x in enumerate(tokens) if distributions[i].prob(x) < 0.4), len(tokens))
    return chain(text, tokens[:n], distributions[:n])


def stops_at_unsure(text, lattice, rng) -> Tree:
    """Stops before the first column of high entropy: it looks at marginals alone."""
    tokens, distributions = sampled(lattice, rng), distributions_of(lattice)
    entropies = [
        -(distribution.probs * np.log(distribution.probs)).sum() for distribution in distributions
    ]
    n = next((i for i, entropy in enumerate(entropies) if entropy > 0.9), len(tokens))
    return chain(text, tokens[:n], distributions[:n])


def best_of(text, lattice, rng) -> Tree:
    """Of two drawn chains that which the drafter finds more likely, said to be just drawn."""
    distributions = distributions_of(lattice)
    pair = sampled(lattice, rng), sampled(lattice, rng)
    best = max(
        pair,
        key=lambda path: np.prod(
            [distribution.prob(x) for distribution, x in zip(distributions, path)]
        ),
    )
    return chain(text, best, distributions)


def beams(text, lattice) -> dict[tuple[int, ...], float]:
    """The three heaviest paths by marginals and a left-to-right distribution, with normalised
    weights.
    """
    distributions, proxy, scored = distributions_of(lattice), Table(6, 3), {}
    for path in itertools.product(range(3), repeat=len(distributions)):
        steps = [
            (distribution.prob(x), proxy.probs((*text, *path[:i]))[x])
            for i, (distribution, x) in enumerate(zip(distributions, path))
        ]
        scored[path] = float(np.prod(steps))
    kept = sorted(scored, key=lambda path: -scored[path])[:3]
    return {path: scored[path] / sum(scored[p] for p in kept) for path in kept}


def from_beams(text, lattice, rng) -> Tree:
    """A path drawn from a beam's posterior, said to be drawn from the marginals."""
    weights = beams(text, lattice)
    path = list(weights)[rng.choice(torch.tensor(list(weights.values()), dtype=torch.float64))]
    return chain(text, path, distributions_of(lattice))


def from_beams_conditional(text, lattice, rng) -> Tree:
    """The same with the distribution that each token of the path had, given those before it."""
    tree, weights = from_beams(text, lattice, rng), beams(text, lattice)
    for depth in range(len(lattice)):
        seen = tree.tokens[1 : depth + 1]
        mass = np.zeros(3)
        for path, weight in weights.items():
            if list(path[:depth]) == seen:
                mass[path[depth]] += weight
        distribution = Distribution(np.arange(3), mass / mass.sum())
        tree.draws[depth] = Draw(distribution, (tree.tokens[depth + 1],))
    return tree


def two_distinct(text, lattice, rng) -> Tree:
    tree, distribution = Tree.root(root_of(text)), lattice.distribution(0)
    tree.draws[0] = Draw(distribution, draws_of(distribution, 2, "distinct", rng))
    for token in tree.draws[0].tokens:
        tree.add(0, token, 0.5, "test")
    return tree


class RsdUnnormalised(Rsd):
    """The mutant that takes a drawn token out of q and leaves the rest as it is."""

    def spend(self, p, draw, rng):
        tokens, probs = draw.distribution.tokens, draw.distribution.probs.copy()
        for token in draw.tokens:
            q = Distribution(tokens, probs)
            if rng.flip(min(1.0, float(p[token]) / q.prob(token))):
                return token
            p = normalised(minus(p, q), p)
            probs = np.where(tokens == token, 0.0, probs)
        return rng.choice(p)


class SubtractsOne(Ratio):
    """The mutant whose residual loses q at the drafted token only."""

    def spend(self, p, draw, rng):
        token = draw.tokens[0]
        if rng.flip(min(1.0, float(p[token]) / draw.distribution.prob(token))):
            return token
        p = p.clone()
        p[token] = 0
        return rng.choice(p / p.sum())


def just_sampled(text, lattice, rng) -> Tree:
    return chain(text, sampled(lattice, rng), distributions_of(lattice))


WRONG = [
    (Ratio(), claimed_argmax),
    (BlockVerification(), claimed_argmax),
    (Ratio(), claimed_conditional),
    (Ratio(), not_renormalised),
    (Ratio(), stops_at_unlikely),
    (BlockVerification(), stops_at_unlikely),
    (Ratio(), best_of),
    (Ratio(), from_beams),
    (BlockVerification(), from_beams),
    (RsdUnnormalised(), two_distinct),
    (SubtractsOne(), just_sampled),
    (Typical(), claimed_argmax),
    (Relaxed(margin=0.3), claimed_argmax),
]


@pytest.mark.parametrize(("rule", "grow"), WRONG)
def test_the_enumeration_sees_a_wrong_rule(rule, grow):
    world = World(0, width=2 if grow is not_renormalised else 3)
    assert tv(world.distribution(rule, grow), world.truth()) > BIASED


RIGHT = [
    (Match(), claimed_argmax),
    (Match(), stops_at_unlikely),
    (Match(), best_of),
    (Match(), from_beams),
    (Ratio(), just_sampled),
    (BlockVerification(), just_sampled),
    (Rsd(), two_distinct),
    (Ratio(), two_distinct),
    (Ratio(), stops_at_unsure),
    (BlockVerification(), stops_at_unsure),
    (Ratio(), from_beams_conditional),
    (BlockVerification(), from_beams_conditional),
]


@pytest.mark.parametrize(("rule", "grow"), RIGHT)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_right_rule_for_the_same_drafts(rule, grow, seed):
    world = World(seed)
    assert tv(world.distribution(rule, grow), world.truth()) < EXACT


@pytest.mark.parametrize(("rule", "biased"), [(Ratio(), False), (BlockVerification(), True)])
def test_drawn_tokens_behind_a_rejected_one(rule, biased):
    """Block looked at them when it rejected: verified once more they are no draws any longer."""
    world = World(0, columns=3)

    def step(state, rng):
        text, start, tail = state
        if not tail:
            start, tail = len(text), tuple(sampled(world.lattice(text), rng))
        distributions = distributions_of(world.lattice(text[:start]))[len(text) - start :]
        tokens = world.walk(rule, text, chain(text, tail, distributions), rng).tokens
        return text + tuple(tokens), start, tail[len(tokens) :]

    final = chained(step, ((), 0, ()), lambda state: world.done(state[0]))
    distance = tv(image(final, lambda state: state[0]), world.truth())
    assert distance > BIASED if biased else distance < EXACT


def rounds(world: World, rule, grow, rng) -> tuple[int, ...]:
    """A whole text, round after round."""
    text: tuple[int, ...] = ()
    while not world.done(text):
        tree = grow(text, world.lattice(text), rng)
        text += tuple(world.walk(rule, text, tree, rng).tokens)
    return text


@pytest.mark.parametrize("rule", [Ratio(), BlockVerification()])
def test_the_enumeration_of_whole_texts_says_the_same(rule):
    """Without putting rounds together from their distributions."""
    world = World(2, length=2, width=2)
    whole = distribution_of(lambda rng: rounds(world, rule, just_sampled, rng))
    assert tv(whole, world.distribution(rule, just_sampled)) < EXACT
    assert tv(whole, world.truth()) < EXACT


def test_the_enumeration_on_a_program_whose_distribution_is_known():
    """Two coins of 1/4, and a die of three only after two heads."""

    def program(rng) -> str:
        coins = "".join("h" if rng.flip(0.25) else "t" for _ in range(2))
        if coins != "hh":
            return coins
        return coins + str(rng.choice(torch.tensor([0.5, 0.0, 0.5]).double()))

    distribution = distribution_of(program)
    assert distribution == {"tt": 9 / 16, "th": 3 / 16, "ht": 3 / 16, "hh0": 1 / 32, "hh2": 1 / 32}
    assert tv(distribution, {"tt": 1.0}) == 7 / 16


@pytest.mark.parametrize("seed", range(3))
def test_match_emits_the_very_tokens_of_plain_sampling(seed):
    world = World(seed, length=20, columns=4)
    text = rounds(world, Match(), claimed_argmax, TorchRng(torch.Generator().manual_seed(seed)))
    generator, plain = torch.Generator().manual_seed(seed), ()
    while len(plain) < 20:
        probs = torch.softmax(world.target.scores(plain), -1)[None]
        plain += (int(torch.multinomial(probs, 1, generator=generator)),)
    assert text == plain


@pytest.mark.parametrize("seed", range(3))
def test_greedy_emits_the_likeliest_token_the_lowest_of_equals(seed):
    world = World(seed, length=12, columns=4)
    world.target.scores = lambda text: torch.tensor([hash((seed, *text, v)) % 3 for v in range(3)])
    wild = Wild(world, 2, "distinct")
    text = rounds(world, GreedyAcceptance(), wild, TorchRng(torch.Generator().manual_seed(seed)))
    for i, token in enumerate(text):
        scores = world.target.scores(text[:i]).tolist()
        assert token == scores.index(max(scores))
