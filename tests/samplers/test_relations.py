"""What holds between rules, and of every rule, on random ragged views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.samplers import SAMPLERS
from dllm.samplers.candidates import Candidates
from dllm.samplers.fastdllm import Factor, ThresholdRule
from dllm.samplers.frechet import Frechet
from dllm.samplers.localleap import LocalLeap
from dllm.samplers.rule import CommitRuleBase
from tests.samplers.views import alone, committed, random_view, rows_of, views

# These read a file, or decide by what they kept from earlier steps; their own tests cover them.
ELSEWHERE = {"learn2pd", "scheduler", "pc", "klass", "saber", "fhs"}
VARIANTS = [
    "quota:remasking=random",
    "quota:steps=3",
    "dream:alg=entropy,alg_temp=0.5",
    "dream:alg=topk_margin,steps=4",
    "threshold:threshold=1.0",
    "factor:compat=true",
    "factor:factor=0.001",
    "frechet:delta=1.0",
    "localleap:threshold=1.0,relaxed=1.0,radius=0",
    "entropy:threshold=0.0",
    "eb:bound=0.0,error=margin",
    "eb:error=confidence",
    "hierarchical:low=1.0,high=1.0",
]
SPECS = [*sorted(SAMPLERS.keys() - ELSEWHERE), *VARIANTS]
FACTORS = st.sampled_from([1 / 16, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0])


def rule_of(spec: str) -> CommitRuleBase:
    rule: CommitRuleBase = SAMPLERS.build(spec)
    return rule


def chosen_sets(rule: CommitRuleBase, view: Candidates) -> list[set[int]]:
    """What the rule itself selects in each row: no floor."""
    commit = rule.select(view).commit & view.valid
    return [set(view.pos[b, commit[b]].tolist()) for b in range(len(commit))]


def with_equal_confidences(view: Candidates, conf: list[float]) -> Candidates:
    """Row b has confidence conf[b % len(conf)] everywhere, padding included."""
    some = torch.tensor([conf[b % len(conf)] for b in range(len(view.pos))], dtype=torch.float64)
    c = some[:, None].expand_as(view.pos)
    return replace(view, conf=c.float(), log1m=torch.log1p(-c).float())


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=20)
@given(view=views(most=10))
def test_every_rule_commits_between_one_and_all_candidates(spec, view):
    for positions, row in zip(committed(rule_of(spec), view), rows_of(view)):
        assert 1 <= len(positions) <= len(row)
        assert set(positions) <= {c.pos for c in row}


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=12)
@given(view=views(most=8))
def test_every_rule_decides_for_a_row_as_if_it_were_alone(spec, view):
    rule = rule_of(spec)
    together = committed(rule, view)
    assert together == [committed(rule, alone(view, b))[0] for b in range(len(together))]


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=8)
@given(view=views())
def test_every_rule_takes_a_row_without_candidates_and_leaves_the_others_as_they_are(spec, view):
    rule = rule_of(spec)
    before = committed(rule, view)
    some = view.valid.clone()
    some[0] = False
    assert committed(rule, replace(view, valid=some)) == [[], *before[1:]]


@pytest.mark.parametrize("spec", SPECS)
def test_every_rule_goes_from_left_to_right_where_its_floor_meets_ties(spec):
    """The best by its own score is the first position: constant logits are decoded in order."""
    view = with_equal_confidences(random_view(np.random.default_rng(3), 5, 9), [0.3])
    same = torch.ones_like(view.conf)
    view = replace(view, entropy=same, margin=0.1 * same, best_conf=view.conf)
    score = rule_of(spec).select(view).score
    first = view.rank(*(score or ())) == 0
    assert view.pos[first].tolist() == [row[0].pos for row in rows_of(view)]


@settings(max_examples=100)
@given(views(most=14), st.sampled_from([0.5, 0.75, 0.9, 0.95]), st.floats(0, 1), st.integers(0, 5))
def test_localleap_holds_the_threshold_set(view, kappa, share, radius):
    inner = chosen_sets(ThresholdRule(kappa), view)
    outer = chosen_sets(LocalLeap(kappa, share * kappa, radius), view)
    assert all(a <= b for a, b in zip(inner, outer))


@settings(max_examples=120)
@given(views(most=14), FACTORS)
def test_frechet_holds_the_factor_set(view, f):
    inner, outer = chosen_sets(Factor(f), view), chosen_sets(Frechet(1 - f), view)
    assert all(a <= b for a, b in zip(inner, outer))


@settings(max_examples=120)
@given(views(most=14), FACTORS, st.lists(st.floats(0.01, 0.999999), min_size=1, max_size=4))
def test_frechet_is_the_factor_rule_where_all_confidences_are_equal(view, f, conf):
    view = with_equal_confidences(view, conf)
    assert chosen_sets(Frechet(1 - f), view) == chosen_sets(Factor(f), view)


def test_frechet_fires_more_often_than_factor():
    views_ = [random_view(np.random.default_rng(seed), 8, 14) for seed in range(40)]
    inner, outer = (
        sum(len(s) for view in views_ for s in chosen_sets(rule, view))
        for rule in (Factor(0.75), Frechet(0.25))
    )
    assert outer > inner > 0


@settings(max_examples=100)
@given(views(most=12), FACTORS)
def test_compat_only_ever_adds_the_last_ranked(view, f):
    total = view.valid.sum(1).tolist()
    plain, compat = committed(Factor(f), view), committed(Factor(f, compat=True), view)
    for a, b, n in zip(plain, compat, total):
        assert set(a) <= set(b)
        assert b == a or (len(a), len(b)) == (n - 1, n)
