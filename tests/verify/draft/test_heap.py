import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.draft.heap import BranchNode, JointNode, fuse, heaviest_tree, trie
from dllm.verify.draft.lattice import Branch
from tests.verify.drafts import all_nodes, branch_lists, check_heaviest, check_tree, paths


def table(seed: int, depth: int, vocabulary: int = 3):
    """A random conditional distribution over tokens, as a function of all tokens before; coarse:
    ties.
    """

    def conditional(path):
        rng = np.random.default_rng([seed, len(path), *path])
        parts = rng.integers(0, 4, vocabulary)
        return [(int(part) / 4, token) for token, part in enumerate(parts) if part]

    def expand(path):
        if len(path) == depth:
            return []
        steps = [(w, t, "x", (*path, t)) for w, t in conditional(path)]
        return sorted(steps, key=lambda step: -step[0])

    return conditional, expand


@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([(), (1,), (0, 2)]))
def test_the_tree_is_the_heaviest_nodes(seed, drafts, eos):
    conditional, expand = table(seed, 4)
    tree = heaviest_tree(9, expand, (), drafts, eos)
    assert tree.tokens[0] == 9
    check_tree(tree, eos)
    check_heaviest(tree, all_nodes(conditional, 4, eos), drafts)


@given(st.integers(0, 10**6), st.integers(0, 20))
def test_a_cut_is_the_tree_of_the_smaller_budget(seed, drafts):
    _, expand = table(seed, 4)
    small, large = (heaviest_tree(9, expand, (), n) for n in (drafts, 30))
    assert large.cut(drafts) == small


def test_among_equals_the_earlier_step_comes_first():
    tree = heaviest_tree(9, lambda path: [(1.0, 5, "a", path), (1.0, 2, "b", path)], (), 4)
    assert paths(tree) == [(5,), (2,), (5, 5), (2, 5)]
    assert tree.sources == ["root", "a", "b", "a", "a"]


def test_steps_of_equal_weight_keep_the_order_they_are_given_in():
    steps = [(0.5, 5, "a", ()), (0.5, 2, "a", ()), (0.5, 7, "a", ())]
    assert heaviest_tree(9, lambda state: steps, (), 3).tokens[1:] == [5, 2, 7]


@given(branch_lists())
def test_a_trie_holds_the_branches_and_nothing_else(branches):
    known = {}
    for branch in branches:
        for i, weight in enumerate(branch.weights):
            prefix = branch.tokens[: i + 1]
            known[prefix] = max(known.get(prefix, 0), weight)

    def visit(node, path):
        steps = node.steps()
        assert [step[0] for step in steps] == sorted((step[0] for step in steps), reverse=True)
        for weight, token, source, below in steps:
            assert known.pop((*path, token)) == weight
            assert any(
                b.source == source
                and b.tokens[: len(path) + 1] == (*path, token)
                and b.weights[len(path)] == weight
                for b in branches
            )
            visit(below, (*path, token))

    visit(trie(branches), ())
    assert not known


def test_nothing_hangs_behind_a_token_that_never_comes():
    root = trie([Branch((1, 2), (0.0, 0.5), "a"), Branch((3, 4, 5), (0.5, 0.0, 0.5), "a")])
    (step,) = root.steps()
    assert step[:3] == (0.5, 3, "a")
    assert step[3].steps() == []


@given(st.integers(0, 10**6), branch_lists(vocabulary=3), st.integers(0, 30))
def test_two_views_are_one_tree(seed, branches, drafts):
    """Against an enumeration that asks both views about the whole path each time."""
    conditional, expand = table(seed, 3)

    def from_table(path):
        inside = all(
            any(token == t for _, t in conditional(path[:i])) for i, token in enumerate(path)
        )
        return {t: w for w, t in conditional(path)} if inside and len(path) < 3 else {}

    def from_branches(path):
        weights = {}
        for branch in branches:
            if branch.tokens[: len(path)] == path and len(branch.tokens) > len(path):
                token, weight = branch.tokens[len(path)], branch.weights[len(path)]
                weights[token] = max(weights.get(token, 0), weight)
        return weights

    def both(path):
        ours, theirs = from_table(path), from_branches(path)
        return [
            (ours.get(t, 0) + theirs.get(t, 0) - ours.get(t, 0) * theirs.get(t, 0), t)
            for t in {*ours, *theirs}
        ]

    tree = heaviest_tree(9, fuse(expand, BranchNode.steps), JointNode((), trie(branches)), drafts)
    check_tree(tree)
    check_heaviest(tree, all_nodes(both, 5), drafts)
    for path, source in zip(paths(tree), tree.sources[1:]):
        names = {"x"} if path[-1] in from_table(path[:-1]) else set()
        if path[-1] in from_branches(path[:-1]):
            names |= {b.source for b in branches if b.tokens[: len(path)] == path} & set(
                source.split("+")
            )
        assert set(source.split("+")) == names


@pytest.mark.parametrize("drafts", [0, 3])
def test_without_steps_the_tree_is_its_root(drafts):
    assert heaviest_tree(9, lambda state: (), (), drafts).tokens == [9]
