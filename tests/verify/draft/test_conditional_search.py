"""Searches use the conditionals of a drafter with a Markov head."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Argmax, Product
from dllm.verify.research.coupled import Coupled
from dllm.verify.research.cps import Cps
from dllm.verify.rng import TorchRng
from dllm.verify.sources.memory import Memory
from tests.verify.draft.test_construct import SEARCHES
from tests.verify.drafts import Say, all_nodes, check_heaviest, paths
from tests.verify.headed import ROOT, VOCAB, few, grown, heads, memory_of


def kept_distribution(lattice, gamma=1.0):
    """{token: weight} behind a path, from the lattice's own numbers; sharpened within its mass."""

    def own(path):
        depth = len(path)
        if depth == len(lattice):
            return {}
        logp = lattice.logp[0]
        if path:
            logp = lattice.pairs[depth, lattice.tokens[depth - 1].tolist().index(path[-1])]
        probs = {int(t): np.exp(p) for t, p in zip(lattice.tokens[depth], logp) if p > -np.inf}
        total, powers = sum(probs.values()), sum(p**gamma for p in probs.values())
        return {t: min(total, 1) * p**gamma / powers for t, p in probs.items()}

    return own


@few
@given(heads, st.integers(1, 5), st.integers(1, 30), st.sampled_from([0.5, 1.0, 3.0]))
def test_product_and_coupled_take_the_heaviest_nodes_of_the_chain(head, width, drafts, gamma):
    lattice = head.lattice(width, eos=(0,))
    own = kept_distribution(lattice, gamma)
    nodes = all_nodes(lambda path: [(p, t) for t, p in own(path).items()], drafts, (0,))
    for search in (Product(gamma), Coupled(gamma=gamma, order=2)):
        check_heaviest(grown(search, lattice, drafts), nodes, drafts)


@few
@given(heads, st.integers(0, 99), st.sampled_from([1.0, 2.0]))
def test_coupled_corrects_the_chain_by_the_memorys_longer_contexts(head, seed, gamma):
    """g(v | all before) / g(v | u) of a proxy whose longer contexts are another table."""
    rng = np.random.default_rng(seed)
    pair, longer = (rng.dirichlet(np.ones(VOCAB), VOCAB) + 0.05 for _ in range(2))

    class Far(Say):
        def logp(self, context, candidates):
            return np.log(longer[context[-1], candidates])

    head.depth, head.logits, head.banned = 2, np.resize(head.logits, (2, VOCAB)), ()
    lattice, memory = head.lattice(), Memory([Far((), pair)])
    memory.extend([ROOT])
    tree = Coupled(gamma=gamma, order=3, smooth=1e-9).grow(ROOT, lattice, memory, 99, None)
    first, column = kept_distribution(lattice, gamma)(()), lattice.tokens[1]
    for path, weight in zip(paths(tree), tree.weights[1:]):
        expected = first[path[0]]
        if len(path) == 2:
            u, distribution = path[0], kept_distribution(lattice, gamma)(path[:1])
            ratios = {
                v: distribution[v]
                * (longer[u, v] / longer[u, column].sum() / pair[u, v] * pair[u, column].sum())
                ** gamma
                for v in distribution
            }
            expected *= ratios[path[1]] / sum(ratios.values()) * sum(distribution.values())
        assert weight == pytest.approx(expected, rel=1e-5)


@few
@given(heads, st.integers(1, 5), st.integers(0, 99), st.sampled_from([0.0, 0.4, 1.0]))
def test_cps_scores_with_the_conditionals(head, width, seed, lam):
    lattice = head.lattice(width)
    own = kept_distribution(lattice)
    table = np.random.default_rng(seed).dirichlet(np.ones(VOCAB), VOCAB) + 0.01
    search = Cps(beam=10**4, mass=2.0, width=width, lam=lam)
    tree = search.grow(ROOT, lattice, memory_of(table), 9, None)

    def score(path):
        before = (ROOT, *path)
        return sum(
            lam * np.log(own(path[:i])[v]) + (1 - lam) * np.log(table[before[i], v])
            for i, v in enumerate(path)
        )

    candidates = [[int(t) for t in column if t >= 0] for column in lattice.tokens]
    scores = {path: score(path) for path in itertools.product(*candidates)}
    found = tuple(tree.tokens[1:])
    assert scores[found] >= max(scores.values()) - 1e-9
    steps = [own(found[:i])[v] for i, v in enumerate(found)]
    np.testing.assert_allclose(tree.weights[1:], np.cumprod(steps), rtol=1e-5)


def blocked():
    """Token 1 leads nowhere: its row has no candidates."""
    tokens = np.array([[1, 2], [3, 4], [1, 2]])
    pairs = np.log([[[0.7, 0.3]] * 2, [[1e-300, 1e-300], [0.5, 0.4]], [[0.6, 0.4], [0.2, 0.8]]])
    pairs[1, 0] = -np.inf
    return Lattice.chained(tokens, np.log([0.7, 0.3]), pairs)


def test_a_token_that_leads_nowhere_ends_its_path():
    lattice = blocked()
    assert grown(Argmax(), lattice, 9).tokens == [ROOT, 1]
    for search in (Product(), Coupled(), Coupled(gamma=2.0, order=2)):
        tree = grown(search, lattice, 99, np.full((VOCAB, VOCAB), 0.2))
        assert tree.drafts == 2 + 2 + 4
        assert not tree.children(tree.child(0, 1))
    assert grown(Cps(mass=2.0, lam=0.5), lattice, 9).tokens == [ROOT, 1]
    for search in SEARCHES:
        rng = TorchRng(torch.Generator().manual_seed(0))
        for _ in range(20):
            tree = search.grow(ROOT, lattice, Memory(), 9, rng)
            assert tree.child(0, 1) is None or not tree.children(tree.child(0, 1))
