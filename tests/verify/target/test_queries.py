"""The layout of a pass against a second way to say who sees whom."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.target.queries import lay_out
from dllm.verify.tree import Tree


@st.composite
def batches(draw):
    rows = draw(st.integers(1, 3))
    waiting = [draw(st.lists(st.integers(0, 9), max_size=4)) for _ in range(rows)]
    trees = []
    for _ in range(rows):
        tree = Tree.root(draw(st.integers(0, 9)))
        for _ in range(draw(st.integers(0, 5))):
            tree.add(draw(st.integers(0, len(tree) - 1)), draw(st.integers(0, 9)), 0.5, "test")
        trees.append(tree)
    lengths = np.array([draw(st.integers(0, 50)) for _ in range(rows)])
    return lengths, waiting, trees


def texts_behind(queries, row):
    """For each query the (position, token) pairs it sees, by the mask alone."""
    size = queries.tokens.shape[1]
    cells = [(int(queries.pos[row, i]), int(queries.tokens[row, i])) for i in range(size)]
    return [[cells[j] for j in range(size) if not queries.hidden[row, i, j]] for i in range(size)]


@given(batches())
def test_every_query_sees_its_own_path(batch):
    lengths, waiting, trees = batch
    queries = lay_out(lengths, waiting, trees)
    assert queries.width == max(len(tree) for tree in trees)
    root = queries.tokens.shape[1] - queries.width
    assert root == max(len(ids) for ids in waiting)
    for row, (start, ids, tree) in enumerate(zip(lengths, waiting, trees)):
        seen = texts_behind(queries, row)
        used = set()
        for node in range(len(tree)):
            path = [*ids, tree.tokens[0], *(tree.tokens[step] for step in tree.path(node))]
            assert seen[root + node] == [(start + i, token) for i, token in enumerate(path)]
            used.add(root + node)
        for index in range(len(ids)):
            column = root - len(ids) + index
            assert seen[column] == [(start + i, ids[i]) for i in range(index + 1)]
            used.add(column)
        for column in set(range(queries.tokens.shape[1])) - used:  # padding
            assert seen[column] == [(0, 0)]
            assert queries.hidden[row, :, column].sum() == queries.tokens.shape[1] - 1


@given(batches())
def test_kept_are_the_waiting_and_the_chosen(batch):
    lengths, waiting, trees = batch
    queries = lay_out(lengths, waiting, trees)
    chosen = [[0, *tree.path(len(tree) - 1)] for tree in trees]
    keep = queries.kept(chosen)
    for row, (ids, tree, nodes) in enumerate(zip(waiting, trees, chosen)):
        assert queries.tokens[row, keep[row]].tolist() == [
            *ids,
            *(tree.tokens[node] for node in nodes),
        ]


@given(batches())
def test_causal_means_chains_of_rows_alike(batch):
    lengths, waiting, trees = batch
    chains = all(tree.parents == list(range(-1, len(tree) - 1)) for tree in trees)
    alike = len({(len(ids), len(tree)) for ids, tree in zip(waiting, trees)}) == 1
    assert lay_out(lengths, waiting, trees).causal == (chains and alike)


def test_without_trees_only_what_waits():
    queries = lay_out(np.array([3, 0]), [[5, 6], [7]])
    assert queries.width == 0
    assert queries.tokens.tolist() == [[5, 6], [0, 7]]
    assert queries.pos.tolist() == [[3, 4], [0, 0]]
    assert queries.kept([[], []]).tolist() == [[True, True], [False, True]]
