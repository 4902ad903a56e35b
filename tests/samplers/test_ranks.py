"""The order that rules rank candidates by: scores, ties, padding, and what is remembered of it."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.samplers.candidates import (
    Candidates,
)
from dllm.samplers.fastdllm import ThresholdRule
from dllm.samplers.rule import commits, top
from tests.samplers.views import views


def bare(conf: list, log1m: list, valid: list | None = None) -> Candidates:
    c = torch.tensor(conf)
    fields = {f.name: None for f in dataclasses.fields(Candidates) if f.init}
    pos = torch.arange(c.shape[1]).expand(c.shape)
    ok = torch.ones_like(c, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return Candidates(**fields | {"conf": c, "log1m": torch.tensor(log1m), "pos": pos, "valid": ok})


scores = st.sampled_from([0.0, 0.25, 0.5, 1.0])
pairs = st.lists(st.tuples(scores, scores, st.booleans()), min_size=1, max_size=6)


@given(pairs)
def test_rank_is_lexicographic(rows):
    """By confidence, then by how little is left, log(1 - p), which is never above 0."""
    rows = [(conf, -doubt, valid) for conf, doubt, valid in rows]
    conf, log1m, valid = ([list(column)] for column in zip(*rows))
    found = bare(conf, log1m, valid)
    keys = range(len(rows))
    real = sum(valid[0])  # padding is behind them in whatever order
    by_certainty = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][0], rows[k][1], k))
    assert found.rank()[0].argsort().tolist()[:real] == by_certainty[:real]
    by_score = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][1], k))
    assert found.rank(found.log1m)[0].argsort().tolist()[:real] == by_score[:real]
    count = real // 2
    best = top(found, torch.tensor([count]), found.log1m)[0].nonzero()[:, 0].tolist()
    assert best == sorted(by_score[:count])


floats = st.floats(width=32, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 1.0, 2**-149, -(2**-149)]
)


@given(st.lists(st.tuples(floats, floats, st.booleans()), min_size=1, max_size=9))
def test_all_finite_and_infinite_scores_are_in_order(rows):
    first, second, valid = ([list(column)] for column in zip(*rows))
    found = bare(first, second, valid)
    keys, real = range(len(rows)), sum(valid[0])
    by_one = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][0], k))
    by_two = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][0], -rows[k][1], k))
    for kind in (torch.float32, torch.float64):
        one, two = torch.tensor(first, dtype=kind), torch.tensor(second, dtype=kind)
        for scores, expected in (((one,), by_one), ((one, two), by_two), ((one, one, two), by_two)):
            ranks = found.rank(*scores)[0]
            assert ranks.argsort().tolist()[:real] == expected[:real]
            assert sorted(ranks.tolist()) == [*keys]


def test_many_ties_keep_their_order():
    """Long enough that a sort which is not stable would show."""
    count = 5000
    conf = [[0.25, 0.5] * (count // 2)]
    order = bare(conf, [[0.0] * count]).rank()[0].argsort().tolist()
    assert order == [*range(1, count, 2), *range(0, count, 2)]


def test_padding_ranks_last_and_is_never_taken():
    found = bare([[0.1, 0.9, float("nan")]], [[0.0, -2.0, float("nan")]], [[True, False, False]])
    assert found.rank()[0, 0] == 0
    assert top(found, torch.tensor([3])).tolist() == [[True, False, False]]


def test_rows_rank_apart():
    assert bare([[0.1, 0.2], [0.4, 0.3]], [[0.0, 0.0]] * 2).rank().tolist() == [[1, 0], [0, 1]]


def test_the_threshold_itself_is_enough():
    found = bare([[0.9, 0.8999, 0.95]], [[0.0] * 3])
    assert ThresholdRule(0.9).select(found).commit.tolist() == [[True, False, True]]
    assert ThresholdRule(0.99).select(found).commit.tolist() == [[False, False, False]]
    assert commits(found, ThresholdRule(0.99).select(found)).tolist() == [[False, False, True]]


def order_of(view: Candidates, *scores: torch.Tensor) -> list[list[int]]:
    """Columns of the candidates of each row in plain Python's order, best first."""
    keys = scores or (view.conf, -view.log1m)
    return [
        sorted(row.nonzero()[:, 0].tolist(), key=lambda k: (*(-float(s[b, k]) for s in keys), k))
        for b, row in enumerate(view.valid)
    ]


@given(views(), st.integers(0, 3), st.booleans())
def test_the_surest_is_the_candidate_of_rank_0(view, count, asked):
    """Among ties, saturated values and padding; whether the ranks were asked for or not."""
    scores = (view.entropy, view.margin.double(), -view.conf)[:count]
    rank = view.rank(*scores)
    found = (view if asked else dataclasses.replace(view)).surest(*scores)
    assert torch.equal(found, view.valid & (rank == 0))
    order = order_of(view, *scores)
    assert found.nonzero().tolist() == [[b, row[0]] for b, row in enumerate(order)]


@given(
    st.lists(st.tuples(floats, floats, st.booleans()), min_size=1, max_size=9),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_surest_of_any_scores(rows, kind):
    """-0.0 ties with 0.0; a row of padding alone has none."""
    first, second, valid = ([list(column)] for column in zip(*rows))
    scores = torch.tensor(first, dtype=kind), torch.tensor(second, dtype=kind)
    for count in (1, 2):
        found, found_again = (bare(first, second, valid) for _ in range(2))
        rank = found_again.rank(*scores[:count])
        assert torch.equal(found.surest(*scores[:count]), found_again.valid & (rank == 0))
        order = order_of(found, *(score + 0.0 for score in scores[:count]))[0]
        assert found.surest(*scores[:count])[0].nonzero()[:, 0].tolist() == order[:1]


def test_saturated_values_and_zeros_of_both_signs_decide_who_is_surest():
    found = bare([[1.0, 1.0, 1.0, 1.0]], [[-20.0, -30.0, -30.0, -25.0]])
    assert found.surest().tolist() == [[False, True, False, False]]
    found = bare([[0.0, 0.0, 0.0]], [[-0.0, 0.0, -0.0]], [[False, True, True]])
    assert found.surest().tolist() == [[False, True, False]]
    assert found.surest(torch.tensor([[0.0, -0.0, 0.0]])).tolist() == [[False, True, False]]
    nothing = bare([[0.5, 0.9]], [[-1.0, -2.0]], [[False, False]])
    assert not nothing.surest().any()


@given(views())
def test_a_rank_is_worked_out_once_and_never_stale(view):
    scores = view.entropy, view.margin
    for asked in ((), scores[:1], scores):
        assert view.rank(*asked) is view.rank(*asked)
    assert view.rank(*scores) is not view.rank(*scores[::-1])
    fewer = dataclasses.replace(view, valid=view.valid & (view.rank() > 0))
    other = dataclasses.replace(view, conf=1 - view.conf, log1m=view.conf.log())
    for changed in (fewer, other):
        for asked in ((), scores):
            rank, order = changed.rank(*asked), order_of(changed, *asked)
            assert rank is not view.rank(*asked)
            for b, row in enumerate(order):
                assert rank[b, row].tolist() == [*range(len(row))]


def test_scores_that_are_gone_leave_no_rank_to_others():
    """Python gives the id of a tensor that is gone to the next one."""
    found = bare([[0.1, 0.2, 0.3]], [[-1.0] * 3])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]) * 20:
        assert found.rank(-torch.tensor([order]).float())[0].tolist() == order


def test_sorts_are_counted(monkeypatch):
    found, sorts = bare([[0.1, 0.2]], [[-1.0] * 2]), []
    sort = torch.Tensor.argsort
    monkeypatch.setattr(torch.Tensor, "argsort", lambda *a, **k: sorts.append(1) or sort(*a, **k))
    for _ in range(3):
        found.rank()
        found.surest()
    assert len(sorts) == 1
