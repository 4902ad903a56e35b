"""Drawn trees: with each rule that they name the text is the target's; their shapes are planned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.registry import SpecError
from dllm.verify import components as parts
from dllm.verify.draft.construct import (
    GreedyPlusOne,
    SampledChain,
)
from dllm.verify.draft.lattice import Branch, Lattice
from dllm.verify.research.kseq import KSeqTree
from dllm.verify.research.rsd import RsdTree
from dllm.verify.sources.memory import Memory
from dllm.verify.tree import Tree
from tests.verify.exact import distribution_of, lattice_of, tv
from tests.verify.rounds import WORLDS, World

EXACT = 1e-12
RULES = {name: parts.RULES.build(name) for name in parts.RULES}
SEARCHES = [
    SampledChain(),
    SampledChain(confidence=0.6),
    RsdTree(widths=(2, 1)),
    RsdTree(widths=(2, 2)),
    KSeqTree(chains=2),
    GreedyPlusOne(),
    GreedyPlusOne(tops=2),
]
PAIRS = [(search, name) for search in SEARCHES for name in search.accepts]


def test_they_are_searches_that_draw():
    assert all(search.samples for search in SEARCHES)
    assert {name for _, name in PAIRS} == {"match", "ratio", "block", "rsd", "kseq"}


@pytest.mark.parametrize(("search", "name"), PAIRS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(drafts=st.integers(1, 6), honest=st.booleans(), world=st.fixed_dictionaries(WORLDS))
def test_the_text_is_the_targets(search, name, drafts, honest, world):
    """Several rounds until three tokens are out, or the text ends."""
    world = World(drafts=drafts, honest=honest, **world)
    distribution = world.distribution(RULES[name], world.grown(search))
    assert tv(distribution, world.truth()) < EXACT


@pytest.mark.parametrize("search", [KSeqTree(chains=3), RsdTree(widths=(3,))])
def test_three_draws(search):
    world = World(3, columns=1, drafts=3, length=2, width=3)
    assert (
        tv(world.distribution(RULES[search.accepts[0]], world.grown(search)), world.truth()) < EXACT
    )


@pytest.mark.parametrize("name", ["ratio", "block"])
def test_a_chain_may_be_cut_to_a_size(name):
    """A size that was not chosen by what was drawn, as the room that is left."""
    world = World(5, columns=3)
    grow = world.grown(SampledChain())
    distribution = world.distribution(
        RULES[name], lambda text, lattice, rng: grow(text, lattice, rng).cut(2)
    )
    assert tv(distribution, world.truth()) < EXACT


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
@pytest.mark.parametrize("changes", [{}, {"eos": (2,), "drafts": 2, "branches": True}])
def test_the_rest_of_a_draft_may_be_drawn_from_again(seed, search, name, changes):
    """Tail reuse: columns behind those that are committed, new draws from them."""
    world = World(seed, columns=3, **changes)
    assert tv(world.reusing(RULES[name], world.grown(search)), world.truth()) < EXACT


# -- shapes ----------------------------------------------------------------------------------------


def trees(search, lattice: Lattice, drafts: int, branches=()) -> list[Tree]:
    """Every tree that can come out."""
    memory = Memory([Fixed(branches)])
    grown: list[Tree] = []
    distribution_of(lambda rng: grown.append(search.grow(9, lattice, memory, drafts, rng)))
    return grown


class Fixed:
    name = "fixed"

    def __init__(self, branches) -> None:
        self.all = branches

    def branches(self, depth: int) -> list[Branch]:
        return [Branch(x.tokens[:depth], x.weights[:depth], x.source) for x in self.all]


def four_columns(eos=()) -> Lattice:
    columns = np.array(
        [[0.5, 0.3, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.2, 0.2, 0.5, 0.1], [0.4, 0.1, 0.1, 0.4]]
    )
    return lattice_of(columns, 3, eos)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("drafts", [0, 1, 3, 6])
def test_whatever_is_drawn(search, drafts):
    """Heaviest first, weights never rise, at most so many nodes, and as many with every draw."""
    grown = trees(search, four_columns(), drafts)
    assert len({tree.drafts for tree in grown}) == 1 or isinstance(search, KSeqTree)
    for tree in grown:
        assert tree.drafts <= drafts
        assert tree.weights == sorted(tree.weights, reverse=True)
        assert all(tree.weights[i] <= tree.weights[tree.parents[i]] for i in range(1, len(tree)))
        for node, draw in tree.draws.items():
            assert all(tree.child(node, token) is not None for token in draw.tokens)
            assert all(draw.distribution.prob(token) > 0 for token in draw.tokens)
            assert draw.distribution.probs.sum() == pytest.approx(1)


@pytest.mark.parametrize("search", SEARCHES)
def test_nothing_stands_behind_an_end_token(search):
    branches = [Branch((1, 0, 3, 2), (0.9, 0.9, 0.9, 0.9), "copy")]
    for tree in trees(search, four_columns(eos=(3, 0)), 9, branches):
        ends = [node for node in range(1, len(tree)) if tree.tokens[node] in (3, 0)]
        assert not any(tree.children(node) for node in ends)
        assert not tree.draws.keys() & set(ends)


def test_the_root_may_be_an_end_token():
    lattice = four_columns(eos=(9,))
    assert all(tree.drafts == 3 for tree in trees(SampledChain(), lattice, 3))


@pytest.mark.parametrize("search", SEARCHES)
def test_without_a_draft_the_branches_remain(search):
    branch = Branch((4, 5, 6), (0.9, 0.8, 0.7), "copy")
    [tree] = trees(search, Lattice.empty(), 2, [branch])
    assert (tree.tokens, tree.parents, tree.draws) == ([9, 4, 5], [-1, 0, 1], {})
    assert tree.weights == pytest.approx([1, 0.9, 0.72])
    assert tree.sources == ["root", "copy", "copy"]
    assert [tree.drafts for tree in trees(search, Lattice.empty(), 4)] == [0]
    empty = Lattice.empty()
    [tree] = trees(search, Lattice(empty.tokens, empty.logp, branches=(branch,)), 2)
    assert tree.tokens == [9, 4, 5]


def test_a_branch_stands_beside_the_draws_and_merges_with_them():
    branches = [Branch((1, 2), (0.4, 0.9), "copy")]
    grown = trees(SampledChain(), four_columns(), 9, branches)
    beside = [tree for tree in grown if tree.draws[0].tokens != (1,)]
    merged = [tree for tree in grown if tree.draws[0].tokens == (1,)]
    assert beside
    assert merged
    assert all(tree.child(0, 1) is not None for tree in grown)
    assert {tree.drafts for tree in beside} == {6}
    assert {tree.drafts for tree in merged} == {4, 5}  # 4: the next token is that of the draw too


def test_the_heavier_of_branches_and_draws_come_first():
    for weight, sources in ((0.95, ["copy", "lattice"]), (0.85, ["lattice", "copy"])):
        branches = [Branch((7, 8), (weight, 0.5), "copy")]
        for tree in trees(SampledChain(), four_columns(), 2, branches):
            assert tree.sources[1:] == sources


def test_sets_without_replacement_are_shared_by_a_depth():
    for tree in trees(RsdTree(widths=(2, 2, 1)), four_columns(), 10):
        assert tree.depths()[1:] == [1] * 2 + [2] * 4 + [3] * 4
        for depth in range(3):
            here = {tree.draws[n].tokens for n, d in enumerate(tree.depths()) if d == depth}
            assert len(here) == 1
            assert len(set(*here)) == (2, 2, 1)[depth]


def test_a_set_is_no_larger_than_its_distribution():
    lattice = lattice_of(np.array([[1.0, 0, 0], [0.5, 0.5, 0]]), 3)
    for tree in trees(RsdTree(widths=(3,)), lattice, 99):
        assert tree.depths() == [0, 1, 2, 2]


def test_a_set_that_the_budget_cuts_keeps_its_first_draws():
    cut = trees(RsdTree(widths=(3,)), four_columns(), 2)
    distributions = [tree.draws[0].distribution.prob(tree.draws[0].tokens[0]) for tree in cut]
    assert all(len(tree.draws[0].tokens) == 2 for tree in cut)
    assert len(set(distributions)) == 3


def test_chains_that_agree_are_one_path():
    for tree in trees(KSeqTree(chains=2), four_columns(), 4):
        first = tree.draws[0].tokens
        assert len(first) == 2
        counts = {node: len(tree.draws[node].tokens) for node in tree.children(0)}
        assert sum(counts.values()) == 2
        assert len(counts) == len(set(first))


@pytest.mark.parametrize("tops", [0, 1, 2])
def test_the_likeliest_and_one_of_the_rest(tops):
    lattice = four_columns()
    for tree in trees(GreedyPlusOne(tops=tops), lattice, 7):
        for node, draw in tree.draws.items():
            column = lattice.distribution(tree.depths()[node])
            best = column.tokens[:tops].tolist()
            assert not set(best) & set(draw.tokens)
            assert draw.distribution.prob(draw.tokens[0]) == column.without(best).prob(
                draw.tokens[0]
            )
            assert len(draw.tokens) == 1


def test_the_heaviest_nodes_of_all():
    """Against the weights of all nodes that could be: products of tops' and the rest's masses."""
    lattice = four_columns()
    per_depth = [
        (distribution.probs[0] * m, distribution.probs[1:].sum() * m)
        for distribution, m in zip(
            (lattice.distribution(i) for i in range(4)), np.exp(lattice.logp).sum(1)
        )
    ]
    every = [np.prod(x) for n in (1, 2, 3, 4) for x in itertools.product(*per_depth[:n])]
    for tree in trees(GreedyPlusOne(tops=1), lattice, 8):
        assert tree.weights[1:] == pytest.approx(sorted(every, reverse=True)[:8])


def test_a_likeliest_token_that_ends_the_text_costs_one_node():
    for tree in trees(GreedyPlusOne(tops=1), four_columns(eos=(0,)), 3):
        assert tree.depths() == [0, 1, 1, 2]


def test_kept_end_tokens_do_not_hide_the_likeliest():
    lattice = four_columns(eos=(3,))
    tokens = lattice.tokens.copy()
    tokens[:, 1] = -1  # a gap, as pruning leaves before an end token
    logp = np.where(tokens < 0, -np.inf, lattice.logp)
    [tree] = trees(GreedyPlusOne(tops=2), Lattice(tokens, logp), 99)
    first = [tree.tokens[node] for node in tree.children(0)]
    assert first == tokens[0, [0, 2]].tolist()
    assert tree.draws == {}  # nothing is left to draw from


@pytest.mark.parametrize(("confidence", "columns"), [(0, 4), (0.45, 3), (0.55, 0), (1, 0)])
def test_an_unsure_column_ends_the_draft(confidence, columns):
    for tree in trees(SampledChain(confidence=confidence), four_columns(), 9):
        assert tree.drafts == columns


def test_certain_columns_have_the_highest_confidence():
    certain = Lattice(np.full((2, 1), 5), np.zeros((2, 1)))
    [tree] = trees(SampledChain(confidence=1.0), certain, 9)
    assert tree.tokens == [9, 5, 5]


def test_a_column_without_tokens_ends_the_draft():
    lattice = four_columns()
    tokens, logp = lattice.tokens.copy(), lattice.logp.copy()
    tokens[1], logp[1] = -1, -np.inf
    assert all(tree.drafts == 1 for tree in trees(SampledChain(), Lattice(tokens, logp), 9))


class Alike:
    """A target whose distribution at a position is the drafter's marginal there."""

    def __init__(self, columns: np.ndarray) -> None:
        self.columns = torch.from_numpy(columns).log()

    def scores(self, text) -> torch.Tensor:
        return self.columns[len(text)]


@pytest.mark.parametrize(
    ("search", "drafts"),
    [(SampledChain(), 3), (RsdTree(widths=(2, 1)), 4), (KSeqTree(), 4), (GreedyPlusOne(), 5)],
)
def test_weights_add_up_to_the_accepted_drafts(search, drafts):
    """Where the target's distributions are the marginals the sum of weights is E[accepted],
    exactly.
    """
    world = World(2, vocab=4, columns=3, width=3, length=9, drafts=drafts)
    lattice = world.lattice(())
    rng = np.random.default_rng([2, 99, 0])
    world.target = Alike(np.vstack([rng.dirichlet(np.ones(4), 3), np.full((1, 4), 0.25)]))

    rule = RULES["ratio" if search == SampledChain() else search.accepts[0]]

    def program(rng) -> int:
        tree = world.grown(search)((), lattice, rng)
        return len(world.walk(rule, (), tree, rng).nodes) - 1

    weights = [slot.weight for slot, _ in zip(search.plan(lattice, 3), range(drafts))]
    expected = sum(count * mass for count, mass in distribution_of(program).items())
    assert expected == pytest.approx(sum(weights), abs=1e-6)  # the lattice is fp32


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sample:confidence=1.5", "confidence=1.5: expected a probability from 0 to 1"),
        ("rsd:widths=0+2", r"widths=0\+2: expected whole numbers of at least 1"),
        ("rsd:confidence=-1", "confidence=-1.0"),
        ("kseq:chains=0", "chains=0: expected a whole number of at least 1"),
        ("greedy-plus-one:tops=-1", "tops=-1: expected a whole number of at least 0"),
    ],
)
def test_values_that_mean_nothing(spec, said):
    with pytest.raises(SpecError, match=said):
        parts.SEARCHES.build(spec)


def test_parts_by_name():
    assert parts.SEARCHES.build("rsd:widths=3+2") == RsdTree(widths=(3, 2))
    assert parts.SEARCHES.build("sample:confidence=0.5") == SampledChain(0.5)
