"""The text of a target whose drafter has a Markov head: each search and rule, enumerated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.verify.draft.construct import GreedyPlusOne, SampledChain
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Argmax, Product
from dllm.verify.research.coupled import Coupled
from dllm.verify.research.cps import Cps
from dllm.verify.research.kseq import KSeqTree
from dllm.verify.research.rsd import RsdTree
from dllm.verify.rng import TorchRng
from dllm.verify.sources.memory import Memory
from dllm.verify.tree import Draw, Tree
from tests.verify.draft.test_conditional_search import kept_distribution
from tests.verify.draft.test_construct import EXACT, RULES, SEARCHES
from tests.verify.exact import tv
from tests.verify.headed import ROOT, Head
from tests.verify.rounds import WORLDS, World

BIASED = 1e-2

FIXED = [Argmax(), Product(), Coupled(), Cps()]
PAIRS = [(search, name) for search in (*SEARCHES, *FIXED) for name in search.accepts]
HEADED = {"markov": 1.5}


@pytest.mark.parametrize(("search", "name"), PAIRS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(drafts=st.integers(1, 4), world=st.fixed_dictionaries(WORLDS))
def test_the_text_is_the_targets(search, name, drafts, world):
    world = World(drafts=drafts, **HEADED, **world)
    assert tv(world.distribution(RULES[name], world.grown(search)), world.truth()) < EXACT


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("search", "name"),
    [
        (SampledChain(), "ratio"),
        (SampledChain(), "block"),
        (RsdTree(widths=(2, 1)), "rsd"),
        (GreedyPlusOne(), "ratio"),
    ],
)
@pytest.mark.parametrize("changes", [{"width": 2}, {"eos": (2,), "drafts": 2, "branches": True}])
def test_the_rest_of_a_draft_may_be_drawn_from_again(seed, search, name, changes):
    world = World(seed, columns=3, **HEADED, **changes)
    assert tv(world.reusing(RULES[name], world.grown(search)), world.truth()) < EXACT


def with_marginals(search):
    """The mutant that draws from the conditionals and tests with the columns' own distributions."""

    def grow(text, lattice, rng) -> Tree:
        tree = search.grow(text[-1] if text else 0, lattice, Memory(), 4, rng)
        depths = tree.depths()
        for node, draw in tree.draws.items():
            tree.draws[node] = Draw(lattice.distribution(depths[node]), draw.tokens)
        return tree

    return grow


@pytest.mark.parametrize(
    ("search", "name"),
    [
        (SampledChain(), "ratio"),
        (SampledChain(), "block"),
        (RsdTree(widths=(2, 2)), "rsd"),
        (KSeqTree(), "kseq"),
    ],
)
def test_the_enumeration_sees_a_test_with_the_marginals(search, name):
    world = World(7, length=2, width=2, markov=3.0)
    assert tv(world.distribution(RULES[name], with_marginals(search)), world.truth()) > BIASED


def cut_at_unlikely(text, lattice, rng) -> Tree:
    """The mutant that looks at the token it admits."""
    tree = SampledChain().grow(text[-1] if text else 0, lattice, Memory(), 4, rng)
    likely = [
        tree.draws[i].distribution.prob(tree.tokens[i + 1]) >= 0.5 for i in range(tree.drafts)
    ]
    cut = tree.cut((*likely, False).index(False))
    return replace(cut, draws={node: draw for node, draw in cut.draws.items() if node < cut.drafts})


@pytest.mark.parametrize("name", ["ratio", "block"])
def test_the_enumeration_sees_a_length_that_looks_at_what_it_admits(name):
    world = World(0, **HEADED)
    assert tv(world.distribution(RULES[name], cut_at_unlikely), world.truth()) > BIASED


def test_an_end_that_is_likely_on_the_whole_does_not_hide_what_follows_elsewhere():
    """Token 0 ends the text and leads column 1, but not behind the likeliest token before it."""
    tokens = np.array([[1, 2], [0, 3], [1, 2]])
    rows = [[[0.6, 0.4]] * 2, [[0.45, 0.55], [1.0, 1e-300]], [[0.5, 0.5], [0.9, 0.1]]]
    lattice = Lattice.chained(tokens, np.log([0.6, 0.4]), np.log(rows), eos=(0,))
    assert lattice.tokens[1, 0] == 0
    rng = TorchRng(torch.Generator().manual_seed(0))
    tree = GreedyPlusOne().grow(ROOT, lattice, Memory(), 9, rng)
    assert tree.tokens[tree.follow([1, 3, 1])[-1]] == 1
    assert len(tree.follow([1, 3, 1])) == 3


def test_the_likeliest_of_a_node_are_those_behind_its_token():
    for seed in range(12):
        lattice = Head(seed).lattice()
        rng = TorchRng(torch.Generator().manual_seed(seed))
        tree = GreedyPlusOne(tops=2).grow(ROOT, lattice, Memory(), 12, rng)
        own = kept_distribution(lattice)
        for node in range(len(tree)):
            distribution = own(tuple(tree.tokens[i] for i in tree.path(node)))
            below = [tree.tokens[child] for child in tree.children(node)]
            fixed = [t for t in below if node not in tree.draws or t not in tree.draws[node].tokens]
            best = sorted(distribution, key=distribution.get, reverse=True)[:2]
            assert set(fixed) == set(best[: len(fixed)])


@pytest.mark.parametrize("search", SEARCHES)
def test_a_draw_is_from_the_distribution_behind_its_node(search):
    """And whether a slot is filled never depends on what is drawn for it."""
    lattice, shapes = Head(7).lattice(), set()
    tops = getattr(search, "tops", 0)
    for seed in range(20):
        rng = TorchRng(torch.Generator().manual_seed(seed))
        tree = search.grow(ROOT, lattice, Memory(), 7, rng)
        shapes.add(tuple(tree.depths()))
        for node, draw in tree.draws.items():
            own = kept_distribution(lattice)(tuple(tree.tokens[i] for i in tree.path(node)))
            best = sorted(own, key=own.get, reverse=True)
            rest = {token: own[token] for token in best[tops:]}
            expected = [
                rest[token] / sum(rest.values()) for token in draw.distribution.tokens.tolist()
            ]
            np.testing.assert_allclose(draw.distribution.probs, expected)
            assert draw.distribution.probs.sum() == pytest.approx(1)
            below = [tree.tokens[child] for child in tree.children(node)]
            assert all(token in best[:tops] or token in draw.tokens for token in below)
            assert tops == 0 or best[0] in below
    assert len(shapes) == 1 or isinstance(search, KSeqTree)
