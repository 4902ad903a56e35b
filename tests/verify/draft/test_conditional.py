"""The lattice of a drafter with a Markov head is what the whole vocabulary gives."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.draft.conditional import lattices
from dllm.verify.draft.construct import SampledChain
from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Argmax, Product
from dllm.verify.research.coupled import Coupled
from dllm.verify.research.cps import Cps
from tests.verify.drafts import all_nodes, paths
from tests.verify.headed import ROOT, VOCAB, Head, few, grown, heads, memory_of

# -- the lattice -----------------------------------------------------------------------------------


@few
@given(heads, st.integers(1, 7))
def test_pairs_are_the_conditionals_of_the_whole_vocabulary(head, width):
    lattice = head.lattice(width)
    assert len(lattice) == head.depth
    first = np.where(lattice.tokens[0] < 0, 0, head.distribution(())[lattice.tokens[0]])
    np.testing.assert_allclose(np.exp(lattice.logp[0]), first, rtol=1e-4)
    for i in range(1, head.depth):
        for u, v in itertools.product(range(lattice.tokens.shape[1]), repeat=2):
            before, token = lattice.tokens[i - 1, u], lattice.tokens[i, v]
            if min(before, token) >= 0:
                distribution = head.distribution((*[0] * (i - 1), int(before)))
                assert np.exp(lattice.pairs[i, u, v]) == pytest.approx(
                    distribution[token], rel=1e-4
                )
    for column in lattice.tokens:
        kept = column[column >= 0].tolist()
        assert len(set(kept)) == len(kept) == min(width, VOCAB - len(head.banned))
        assert not set(kept) & set(head.banned)


@few
@given(heads)
def test_a_whole_vocabulary_has_the_chains_marginals_the_likeliest_first(head):
    lattice, distribution = head.lattice(), {(): 1.0}
    for i in range(head.depth):
        distribution = {
            (*x, v): m * p for x, m in distribution.items() for p, v in head.conditional(x)
        }
        marginal = np.zeros(VOCAB)
        for path, mass in distribution.items():
            marginal[path[-1]] += mass
        known = lattice.tokens[i] >= 0
        found = np.exp(lattice.logp[i][known])
        np.testing.assert_allclose(found, marginal[lattice.tokens[i][known]], rtol=1e-4)
        assert (np.diff(lattice.logp[i][known]) <= 0).all()


@few
@given(heads, st.integers(2, 6), st.sampled_from([(), (0,)]))
def test_it_has_the_heaviest_nodes_of_the_whole_vocabulary(head, width, eos):
    """Though each column keeps only a few of its tokens: as many nodes as those, less one."""
    tree = grown(Product(), head.lattice(width, eos), width - 1)
    nodes = all_nodes(head.conditional, head.depth, eos)
    assert tree.drafts == min(width - 1, len(nodes))
    given = [nodes[path] for path in paths(tree)]
    np.testing.assert_allclose(tree.weights[1:], given, rtol=1e-4)
    np.testing.assert_allclose(given, sorted(nodes.values())[::-1][: width - 1], rtol=1e-4)


@few
@given(heads, st.integers(1, 6), st.integers(1, 5))
def test_argmax_is_the_greedy_path_of_the_whole_vocabulary(head, width, drafts):
    tree = grown(Argmax(), head.lattice(width), drafts)
    path = head.greedy()[:drafts]
    assert tuple(tree.tokens[1:]) == path
    steps = [head.distribution(path[:i])[token] for i, token in enumerate(path)]
    np.testing.assert_allclose(tree.weights[1:], np.cumprod(steps), rtol=1e-4)


def candidates_of(first, rows, width=2, eos=()):
    """The second column's candidates of a chain given by its distributions {token: probability}."""

    def column(distribution):
        return torch.tensor([distribution.get(v, 1e-9) for v in range(VOCAB)]).log()

    table = torch.stack([column(rows.get(u, {})) for u in range(VOCAB)])
    logits = torch.stack([column(first), torch.zeros(VOCAB)])[None]

    def bias(prev):
        return torch.where((prev == ROOT)[..., None], 0.0, table[prev])

    [lattice] = lattices(bias, logits, [ROOT], [2], width, eos=eos)
    return {int(token) for token in lattice.tokens[1]}


def test_the_greedy_token_is_kept_though_many_paths_are_likelier():
    rows = {0: {0: 0.24, **dict.fromkeys(range(1, VOCAB), 0.19)}, 1: {1: 0.9}, 2: {2: 0.9}}
    assert candidates_of({0: 0.4, 1: 0.35, 2: 0.25}, rows) == {0, 1}


def test_what_is_likely_behind_an_unlikely_token_is_not_kept():
    rows = {0: {0: 0.6, 1: 0.4}, 1: {2: 0.95}}
    assert candidates_of({0: 0.98, 1: 0.02}, rows) == {0, 1}


def test_what_is_likely_behind_an_end_takes_no_place():
    rows = {0: {0: 0.5, 1: 0.45}, 1: {2: 0.6, 4: 0.4}}
    assert candidates_of({0: 0.6, 1: 0.4}, rows) == {0, 1}
    assert candidates_of({0: 0.6, 1: 0.4}, rows, eos=(0,)) == {0, 2}


@pytest.mark.parametrize("seed", range(40))
def test_narrow_columns_keep_what_counts(seed):
    """The same, where two or three candidates of five have to do."""
    for width, eos in itertools.product((2, 3), ((), (0, 1))):
        head = Head(seed, depth=4, size=4.0)
        lattice = head.lattice(width, eos)
        nodes = all_nodes(head.conditional, head.depth, eos)
        tree = grown(Product(), lattice, width - 1)
        best = sorted(nodes.values())[::-1][: width - 1]
        np.testing.assert_allclose(tree.weights[1:], best, rtol=1e-4)
        path = head.greedy()
        end = next((i for i, token in enumerate(path) if token in eos), len(path))
        assert lattice.first_end() == end
        assert tuple(grown(Argmax(), lattice, 9).tokens[1:]) == path[: end + 1]


def test_a_columns_distribution_is_the_mean_over_the_candidates_before():
    lattice = Head(1, depth=3).lattice(2)
    for i in (1, 2):
        before, rows = np.exp(lattice.logp[i - 1]), np.exp(lattice.pairs[i])
        mean = (before[0] * rows[0] + before[1] * rows[1]) / (before[0] + before[1])
        np.testing.assert_allclose(np.exp(lattice.logp[i]), mean)


@few
@given(heads, st.sampled_from([(), (0,), (2, 4)]))
def test_the_first_end_is_that_of_the_greedy_path(head, eos):
    path = head.greedy()
    expected = next((i for i, token in enumerate(path) if token in eos), len(path))
    assert head.lattice(2, eos).first_end() == expected


@few
@given(heads, st.integers(1, 6))
def test_a_head_that_is_not_trained_changes_nothing(head, width):
    head.biases[:] = 0
    options = {"temperature": head.temperature, "banned": head.banned}
    plain = Lattice.of(torch.from_numpy(head.logits), width, **options)
    lattice = head.lattice(width)
    np.testing.assert_array_equal(lattice.tokens, plain.tokens)
    for search in (Argmax(), Product(), Product(2.0), Cps()):
        ours, theirs = (search.grow(ROOT, x, memory_of(), 9, None) for x in (lattice, plain))
        assert ours.tokens == theirs.tokens
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-5)


@few
@given(st.lists(heads, min_size=2, max_size=3), st.integers(1, 5))
def test_a_row_of_a_batch_is_as_alone(rows, width):
    rows = [Head(i, row.depth) for i, row in enumerate(rows)]
    deepest = max(row.depth for row in rows)
    logits = np.full((len(rows), deepest, VOCAB), 7.0)
    for i, row in enumerate(rows):
        logits[i, : row.depth] = row.logits
    depths, last = [row.depth for row in rows], [ROOT + i % 2 for i in range(len(rows))]
    table = torch.from_numpy(rows[0].biases)
    together = lattices(lambda prev: table[prev], torch.from_numpy(logits), last, depths, width)
    for i, row in enumerate(rows):
        own = torch.from_numpy(row.logits)[None]
        [alone] = lattices(lambda prev: table[prev], own, [last[i]], [row.depth], width)
        np.testing.assert_array_equal(together[i].tokens, alone.tokens)
        np.testing.assert_array_equal(together[i].pairs, alone.pairs)


# -- what becomes of a lattice ---------------------------------------------------------------------


@few
@given(heads, st.integers(2, 5), st.data())
def test_what_is_left_starts_behind_the_token_that_came(head, width, data):
    lattice = head.lattice(width)
    count = data.draw(st.integers(1, head.depth))
    came = int(data.draw(st.sampled_from([t for t in lattice.tokens[count - 1] if t >= 0])))
    left = lattice.shift(count, came)
    assert len(left) == head.depth - count
    if len(left):
        distribution = head.distribution((*[0] * (count - 1), came))
        known = left.tokens[0] >= 0
        found = np.exp(left.logp[0][known])
        np.testing.assert_allclose(found, distribution[left.tokens[0][known]], rtol=1e-4)
        assert (np.diff(left.logp[0][known]) <= 0).all()
    for i in range(1, len(left)):
        for u in left.tokens[i - 1][left.tokens[i - 1] >= 0]:
            one, other = (
                left.distribution_behind(i, int(u)),
                lattice.distribution_behind(count + i, int(u)),
            )
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.probs, other.probs)


@few
@given(heads)
def test_behind_a_token_that_is_no_candidate_it_is_the_mean(head):
    lattice = head.lattice(2)
    for last in (9, None):
        left = lattice.shift(1, last)
        np.testing.assert_allclose(left.logp[:1], lattice.logp[1:2])
    np.testing.assert_array_equal(lattice.shift(0).logp[0], lattice.logp[0])


@few
@given(heads, st.integers(0, 4), st.sampled_from([VOCAB, 3]))
def test_checked_keeps_the_pairs_of_what_it_keeps(head, depth, vocab):
    lattice = head.lattice()
    checked = lattice.checked(vocab, depth)
    assert len(checked) == len(checked.pairs) <= depth
    for i in range(1, len(checked)):
        for u, v in itertools.product(range(lattice.tokens.shape[1]), repeat=2):
            gone = not 0 <= lattice.tokens[i, v] < vocab
            expected = -np.inf if gone else lattice.pairs[i, u, v]
            assert checked.pairs[i, u, v] == expected


def test_pairs_of_no_token_are_none():
    lattice = Head(0).lattice()
    tokens, logp = lattice.tokens.copy(), lattice.logp.copy()
    tokens[1, 2], logp[1, 2] = -1, -np.inf
    checked = replace(lattice, tokens=tokens, logp=logp).checked(VOCAB, 9)
    assert (checked.pairs[1, :, 2] == -np.inf).all()


def test_pairs_that_are_no_distribution_are_none():
    lattice = Head(0).lattice()
    pairs = lattice.pairs.copy()
    pairs[1, 0, 0], pairs[1, 1, 0] = np.nan, 4.0
    checked = replace(lattice, pairs=pairs).checked(VOCAB, 9)
    assert checked.pairs[1, 0, 0] == -np.inf
    assert checked.pairs[1, 1, 0] == 0
    for search in (Argmax(), Product(), Coupled(), Cps(), SampledChain()):
        tree = search.grow(ROOT, checked, memory_of(), 9, _First())
        assert tree.weights == sorted(tree.weights, reverse=True)
        assert max(tree.weights) <= 1


class _First:
    """The first of what may come."""

    def choice(self, probs):
        return int((probs > 0).nonzero()[0])


def test_pruning_and_narrowing_take_the_pairs_along():
    lattice = Head(4).lattice()
    narrow = lattice.narrow(2)
    np.testing.assert_array_equal(narrow.pairs, lattice.pairs[:, :2, :2])
    pruned = lattice.prune(0.6)
    out = pruned.tokens < 0
    assert out.any()
    assert (pruned.pairs.swapaxes(1, 2)[out] == -np.inf).all()
    kept = np.broadcast_to(~out[:, None], lattice.pairs.shape)
    np.testing.assert_array_equal(pruned.pairs[kept], lattice.pairs[kept])
