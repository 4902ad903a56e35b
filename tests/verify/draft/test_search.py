import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.draft.lattice import Lattice
from dllm.verify.draft.search import Argmax, Product
from dllm.verify.research.coupled import Coupled
from dllm.verify.research.cps import Cps
from tests.verify.drafts import (
    ROOT,
    all_nodes,
    branch_lists,
    check_heaviest,
    check_search,
    check_tree,
    columns_of,
    fused,
    lattice_of,
    lattices,
    memory_of,
)

SEARCHES = st.one_of(
    st.builds(Argmax),
    st.builds(Cps, beam=st.integers(1, 4), mass=st.sampled_from([0.5, 0.8, 1.0])),
    st.builds(Product, gamma=st.sampled_from([0.5, 1.0, 2.0])),
    st.builds(
        Coupled,
        width=st.integers(1, 4),
        gamma=st.sampled_from([0.5, 1.0, 2.0]),
        order=st.sampled_from([2, 3]),
    ),
)


@given(lattices(), branch_lists(), st.integers(0, 25), st.sampled_from([0.5, 1.0, 3.0]))
def test_product(lattice, branches, drafts, gamma):
    columns = columns_of(lattice)

    def own(path):
        column = columns[len(path)] if len(path) < len(columns) else {}
        total, powers = sum(column.values()), sum(p**gamma for p in column.values())
        return {token: total * p**gamma / powers for token, p in column.items()}

    check_search(Product(gamma), own, lattice, branches, drafts)


@given(lattices(), branch_lists(), st.integers(0, 12))
def test_argmax(lattice, branches, drafts):
    columns = columns_of(lattice)
    path = tuple(max(column, key=column.get) for column in columns)

    def own(before):
        depth = len(before)
        if depth >= len(path) or before != path[:depth]:
            return {}
        return {path[depth]: columns[depth][path[depth]]}

    check_search(Argmax(), own, lattice, branches, drafts)


@given(SEARCHES, lattices(), branch_lists(), st.integers(0, 12), st.integers(0, 99))
def test_a_cut_is_the_tree_of_the_smaller_budget(search, lattice, branches, drafts, seed):
    """Where the budget cuts neither the lattice nor the branches in depth."""
    small, large = (
        search.grow(ROOT, lattice, memory_of(branches, seed), n, None) for n in (max(drafts, 6), 40)
    )
    assert large.cut(max(drafts, 6)) == small
    assert search.grow(ROOT, lattice, memory_of(branches, seed), drafts, None).drafts <= drafts


@given(SEARCHES, branch_lists(), st.integers(0, 12))
def test_branches_alone_are_enough(search, branches, drafts):
    tree = search.grow(ROOT, Lattice.empty([1]), memory_of(branches), drafts, None)
    check_tree(tree, [1])
    nodes = all_nodes(fused(lambda path: {}, branches), 6, [1])
    check_heaviest(tree, nodes, drafts)


@given(SEARCHES, branch_lists(), branch_lists(), st.integers(0, 12))
def test_branches_of_the_lattice_count_as_those_of_the_memory(search, some, more, drafts):
    columns = lattice_of([{1: 0.5, 2: 0.2}, {3: 0.9}])
    lattice = dataclasses.replace(columns, branches=tuple(more))
    trees = [
        search.grow(ROOT, lattice, memory_of(some), drafts, None),
        search.grow(ROOT, columns, memory_of([*some, *more]), drafts, None),
    ]
    assert trees[0] == trees[1]


@given(SEARCHES, st.integers(0, 9))
def test_a_lattice_ends_where_a_column_is_empty(search, drafts):
    whole = lattice_of([{1: 0.5, 2: 0.2}, {3: 0.9}])
    broken = lattice_of([{1: 0.5, 2: 0.2}, {3: 0.9}, {}, {4: 1.0}])
    for seed in (None, 5):
        assert search.grow(ROOT, broken, memory_of(seed=seed), drafts, None) == search.grow(
            ROOT, whole, memory_of(seed=seed), drafts, None
        )


@given(SEARCHES)
def test_a_deterministic_search_may_be_cut(search):
    assert not search.samples
    assert search.accepts == ("match",)


def test_a_search_leaves_the_lattice_as_it_is():
    lattice = lattice_of([{1: 0.5, 0: 0.2}, {3: 0.9}], eos=[0])
    for search in (Argmax(), Cps(), Product(2.0), Coupled(gamma=2.0, order=3)):
        tokens, logp = lattice.tokens.copy(), lattice.logp.copy()
        search.grow(ROOT, lattice, memory_of(seed=1), 9, None)
        assert (lattice.tokens == tokens).all()
        assert (lattice.logp == logp).all()


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        (Cps, {"beam": 0}, "beam=0: expected a whole number of at least 1"),
        (Cps, {"width": 0}, "width=0: expected a whole number of at least 1"),
        (Cps, {"mass": 0.0}, "mass=0.0: expected a number above 0"),
        (Cps, {"lam": -0.1}, "lam=-0.1: expected a number from 0 to 1"),
        (Product, {"gamma": 0.0}, "gamma=0.0: expected a number above 0"),
        (Coupled, {"gamma": float("nan")}, "gamma=nan: expected a number above 0"),
        (Coupled, {"width": 0}, "width=0: expected a whole number of at least 1"),
        (Coupled, {"sweeps": 0}, "sweeps=0: expected a whole number of at least 1"),
        (Coupled, {"order": 4}, "order=4: expected 2 or 3"),
        (Coupled, {"smooth": 0.0}, "smooth=0.0: expected a number above 0 and at most 1"),
    ],
)
def test_an_option_out_of_range(part, options, message):
    with pytest.raises(ValueError, match=message):
        part(**options)
