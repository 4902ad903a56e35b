"""What the rules that change the text keep, and what they are asked for."""

import math

import numpy as np
import pytest
import torch

from dllm.registry import SpecError
from dllm.verify.accept.rules import AcceptanceRule
from dllm.verify.accept.sampled import BlockVerification, Ratio
from dllm.verify.components import RULES, rule_of
from dllm.verify.draft.search import Argmax
from dllm.verify.research.kseq import KSeq
from dllm.verify.research.lossy import Relaxed, Typical
from dllm.verify.research.rsd import Rsd
from dllm.verify.tree import Tree
from tests.verify.exact import distribution_of

P = np.array([0.5, 0.3, 0.15, 0.05])


def emitted(rule: AcceptanceRule, children: tuple[int, ...]) -> dict[int, float]:
    """The distribution of what is emitted at a node with these children; the target's is P."""
    tree = Tree.root(0)
    for child in children:
        tree.add(0, child, 0.5, "test")
    scores = torch.from_numpy(P).log()
    return distribution_of(
        lambda rng: rule.walk(tree, lambda node, tokens: scores, rng, bool).tokens[0]
    )


@pytest.mark.parametrize("children", [(0,), (1,), (2,), (3,), (2, 1), (3, 2), ()])
@pytest.mark.parametrize(
    ("rule", "plausible"),
    [
        (Typical(epsilon=0.09, delta=1.0), {0, 1, 2}),
        (Typical(epsilon=1.0, delta=1.0), {0}),  # exp(-H) is 0.32
        (Typical(epsilon=1.0, delta=0.9), {0, 1}),
        (Typical(epsilon=1.0, delta=0.1), {0, 1, 2, 3}),
        (Relaxed(top=1, margin=1.0), {0}),
        (Relaxed(top=2, margin=1.0), {0, 1}),
        (Relaxed(top=9, margin=0.25), {0, 1}),
        (Relaxed(top=9, margin=1.0), {0, 1, 2, 3}),
    ],
)
def test_the_likeliest_plausible_child_is_kept(rule, plausible, children):
    kept = plausible & set(children)
    wanted = {min(kept): 1.0} if kept else dict(enumerate(P))
    assert emitted(rule, children) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("cls", [Typical, Relaxed])
def test_at_temperature_0_the_likeliest_token_is_emitted_where_no_child_is_plausible(cls):
    name = cls.__name__.lower()
    assert emitted(cls(greedy=True), (3,)) == {0: 1.0}
    assert len(emitted(cls(), (3,))) == 4
    for temperature in (0.0, 0.7):
        rule = rule_of(name, Argmax(), temperature=temperature, lossless=False)
        assert rule == cls(greedy=temperature == 0)


def test_the_entropy_of_those_cases():
    assert math.exp((P * np.log(P)).sum()) == pytest.approx(0.3192, abs=1e-4)


def test_only_these_are_lossy():
    assert not Typical().lossless
    assert not Relaxed().lossless
    assert all(rule.lossless for rule in (Ratio(), Rsd(), KSeq(), BlockVerification()))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("typical:epsilon=0", "epsilon=0.0: expected a number above 0 and at most 1"),
        ("typical:delta=1.5", "delta=1.5"),
        ("relaxed:top=0", "top=0: expected a whole number of at least 1"),
        ("relaxed:margin=-0.1", "margin=-0.1: expected a probability"),
        ("relaxed:margin=nan", "margin=nan"),
    ],
)
def test_values_that_mean_nothing(spec, said):
    with pytest.raises(SpecError, match=said):
        RULES.build(spec)
