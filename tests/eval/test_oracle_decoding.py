"""Rules decoding with a perfect model, through the engine: measured accuracies and forwards are the
closed forms, and the sets that a theorem covers are those of one-by-one decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval import closed_forms as forms
from dllm.eval.oracle import Joint, Oracle
from dllm.output import Output
from dllm.samplers.candidates import Candidates
from dllm.samplers.fastdllm import Factor, ThresholdRule
from dllm.samplers.frechet import Frechet
from dllm.samplers.rule import CommitRule, commits
from tests.eval.references import greedy_accuracy, quota_groups

ROWS = 500
CASES = 800
JITTER = 1e-3  # breaks ties, and moves no confidence by more than 1e-3


def decode(joint: Joint, sampler: str, *, jitter: float = 0.0, **options: object) -> list[Output]:
    """ROWS answers, one batch; every row has its own prompt, hence its own noise."""
    size = math.ceil(math.log(ROWS, max(2, joint.symbols)))
    oracle = Oracle(joint, jitter=jitter, prompt_length=size)
    config = DecodeConfig(
        sampler=sampler, block_length=None, max_new_tokens=joint.positions, **options
    )
    return Engine(oracle).generate(oracle.prompts(ROWS), config)


def accuracy(joint: Joint, outputs: list[Output]) -> float:
    answers = torch.tensor([output.token_ids for output in outputs])
    return float(joint.contains(answers).double().mean())


def agrees(measured: float, expected: float) -> bool:
    """Within 4 standard errors; exactly, where the outcome is certain."""
    return abs(measured - expected) <= 4 * math.sqrt(expected * (1 - expected) / ROWS)


TASKS = [
    ("copy", 5),
    ("shuffle", 6),
    ("replace_random", 6),
    ("insert_random", 5),
    ("remove_random", 6),
]


@pytest.mark.parametrize(
    ("task", "n", "per_step"),
    [
        *((task, n, k) for task, n in TASKS for k in (2, 3, forms.positions(task, n))),
        ("shuffle", 5, 1),
        ("shuffle", 5, 2),  # groups 2, 2, 1
        ("replace_random", 5, 2),
    ],
)
def test_sampling_a_fixed_number_a_step_reaches_the_closed_form(task, n, per_step):
    joint = getattr(Joint, task)(n)
    steps = math.ceil(joint.positions / per_step)
    outputs = decode(joint, f"quota:steps={steps},remasking=random", temperature=1.0, seed=n)
    groups = quota_groups(joint.positions, steps)
    assert {output.nfe for output in outputs} == {len(groups)}
    assert agrees(accuracy(joint, outputs), forms.accuracy(task, n, groups))


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_a_count_is_what_every_step_commits(k):
    outputs = decode(Joint.copy(7), f"quota:count={k}", history=True)
    sizes = {tuple(len(commit.positions) for commit in output.history) for output in outputs}
    assert sizes == {(*[min(k, 7)] * (7 // min(k, 7)), *([7 % k] if k < 7 and 7 % k else []))}


@pytest.mark.parametrize("remasking", ["random", "low_confidence"])
@pytest.mark.parametrize(
    ("task", "n", "steps"),
    [
        ("shuffle", 5, 3),
        ("shuffle", 4, 1),
        ("replace_random", 5, 3),  # groups 2, 2, 1
        ("replace_random", 6, 3),  # groups 2, 2, 2
        ("replace_random", 6, 2),
        ("copy", 5, 1),
    ],
)
def test_greedy_with_random_ties_reaches_the_closed_form(task, n, steps, remasking):
    joint = getattr(Joint, task)(n)
    sampler = f"quota:steps={steps},remasking={remasking}"
    outputs = decode(joint, sampler, jitter=JITTER)
    expected = greedy_accuracy(task, n, quota_groups(n, steps))
    assert agrees(accuracy(joint, outputs), expected)


@pytest.mark.parametrize("task", ["shuffle", "replace_random"])
def test_exact_ties_broken_alike_in_every_slot_are_always_wrong(task):
    """Why the oracle has jitter: the closed form would be 0.3125 and 0.5."""
    joint = getattr(Joint, task)(6)
    assert accuracy(joint, decode(joint, "quota:steps=3")) == 0


@pytest.mark.parametrize(
    ("task", "sampler", "groups"),
    [
        # all open slots look alike: m of them have confidence 1/m in a shuffle, and 1 - 1/m until
        # the new item stands in replace_random, which argmax puts off until two are left
        ("shuffle", "threshold:threshold=0.6", (1,) * 6),
        ("shuffle", "threshold:threshold=0.4", (1, 1, 1, 1, 2)),
        ("replace_random", "threshold:threshold=0.9", (1,) * 6),
        ("replace_random", "threshold:threshold=0.8", (6,)),
        # the largest j with (j + 1)(1 - confidence) < factor
        ("shuffle", "factor:factor=0.7", (1,) * 6),
        ("shuffle", "factor:factor=1.45", (1,) * 6),
        ("shuffle", "factor:factor=1.6", (1, 1, 1, 1, 2)),
        ("shuffle", "factor:factor=1.9", (1, 1, 1, 1, 2)),
        ("replace_random", "factor:factor=0.7", (3, 1, 1, 1)),
        ("shuffle", "frechet:delta=0", (1,) * 6),
        ("replace_random", "frechet:delta=0.3", (3, 1, 1, 1)),
        # floor(bound / entropy) + 1 slots of entropy ln m
        ("shuffle", "eb:bound=0.6", (1,) * 6),
        ("shuffle", "eb:bound=0.8", (1, 1, 1, 1, 2)),
        ("shuffle", "eb:bound=1.2", (1, 1, 1, 2, 1)),
        ("shuffle", "eb:bound=4", (3, 3)),
    ],
)
def test_adaptive_rules_switch_where_their_inequality_says(task, sampler, groups):
    joint = getattr(Joint, task)(6)
    outputs = decode(joint, sampler, jitter=JITTER, history=True)
    for output in outputs:
        assert output.history is not None
        assert tuple(len(commit.positions) for commit in output.history) == groups
    assert agrees(accuracy(joint, outputs), greedy_accuracy(task, 6, groups))


@pytest.mark.parametrize("factor", [0.7, 1.9])
def test_the_copied_slip_of_the_factor_rule_halves_the_accuracy_of_shuffle(factor):
    joint = Joint.shuffle(6)
    outputs = decode(joint, f"factor:factor={factor},compat=true", jitter=JITTER)
    assert agrees(accuracy(joint, outputs), 0.5)


def test_parallel_decoding_is_lossless_in_sets_only():
    """Fréchet takes slots 0 and 2 at once. One by one, slot 1 overtakes slot 2 and turns it."""
    mass = np.zeros((2, 2, 2))
    mass[0] = [[0.2304, 0.2816], [0.2656, 0.0224]]
    mass[1] = [[0.03, 0.038], [0.084, 0.048]]
    engine = Engine(Oracle(Joint.table(mass)))
    config = DecodeConfig(max_new_tokens=3, block_length=None, history=True)
    parallel = engine.generate([[]], config, sampler="frechet:delta=0")[0]
    assert [commit.positions for commit in parallel.history] == [[0, 2], [1]]
    assert parallel.token_ids == [0, 1, 0]
    assert engine.generate([[]], config, sampler="quota")[0].token_ids == [0, 0, 1]


def adversarial(rng: np.random.Generator) -> Joint:
    """A planted answer, and rivals that differ from it in one slot, in some or in all, each with
    its own share; the rest is spiky noise.
    """
    n = int(rng.integers(3, 8))
    v = 2 if n == 7 else int(rng.integers(2, 4))
    mass = rng.exponential(size=(v,) * n) ** 3
    mass *= rng.choice([0.02, 0.1, 0.4]) / mass.sum()
    planted = rng.integers(0, v, n)
    other = (planted + rng.integers(1, v, n)) % v
    if tight := rng.random() < 0.3:  # the rivals in one slot are all there is, and nearly alike
        mass *= 0.05
    mass[tuple(planted)] += 0 if tight else rng.choice([0.0, 0.1, 0.4, 1.0])
    lone = rng.dirichlet(np.full(n, 200.0 if tight else rng.choice([0.5, 20.0])))
    lone *= 1 if tight else rng.choice([0.0, 0.3, 1.0])
    for slot in range(n):
        rival = planted.copy()
        rival[slot] = other[slot]
        mass[tuple(rival)] += lone[slot]
    for share in () if tight else rng.choice([0.0, 0.1, 0.3], 3):
        mass[tuple(np.where(rng.random(n) < rng.choice([0.5, 1.0]), other, planted))] += share
    return Joint.table(mass)


@cache
def cases() -> list[tuple[Joint, Tensor, Tensor]]:
    """(joint, answers [B, n], known [B, n]): patterns that sampling one by one can reach."""
    rng, found = np.random.default_rng(7), []
    for _ in range(250):
        joint = adversarial(rng)
        distribution = joint.log_mass.exp().numpy()
        drawn = rng.choice(len(distribution), 12, p=distribution / distribution.sum())
        known = torch.from_numpy(rng.random((12, joint.positions)) < rng.uniform(0, 0.6, (12, 1)))
        known[0] = False
        known[known.all(1), 0] = False
        found.append((joint, joint.support[torch.from_numpy(drawn)], known))
    return found


def view_of(distribution: Tensor, known: Tensor) -> Candidates:
    """Candidates of the distributions [B, n, v] of all positions; known ones are padding."""
    best, token = distribution.max(-1)
    rest = distribution.scatter(-1, token[..., None], 0.0).sum(-1)
    rows, n = known.shape
    zero, all_ = torch.zeros(rows, dtype=torch.long), torch.full((rows,), n)
    return Candidates(
        pos=torch.arange(n).expand(rows, n),
        valid=~known,
        token=token,
        conf=best.float(),
        log1m=rest.log().float(),
        ends=torch.zeros_like(known),
        start=zero,
        end=all_,
        window_masked=(~known).sum(1),
        window_step=zero,
        step=zero,
        prompt=zero,
        length=all_,
        row=torch.arange(rows),
        masked=(~known).sum(1),
        fillable=all_,
        key=torch.arange(rows),
        width=n,
    )


def sets(rule: CommitRule) -> Iterator[tuple[Joint, Tensor, Tensor, Tensor, Tensor]]:
    """(joint, answer [n], known [n], committed [n], tokens [n]) where several slots go at once."""
    for joint, answers, known in cases():
        view = view_of(joint.conditionals(answers, known), known)
        chosen = commits(view, rule.select(view))
        for b in (chosen.sum(1) > 1).nonzero()[:, 0].tolist():
            yield joint, answers[b], known[b], chosen[b], view.token[b]


def every_order_agrees(
    joint: Joint, answer: Tensor, known: Tensor, chosen: Tensor, token: Tensor
) -> bool:
    """Whether one-by-one greedy decoding of the chosen slots gives `token` there in every order:
    whatever part of them is known already, the likeliest symbol of each of the others is its token.
    """
    slots = chosen.nonzero()[:, 0]
    part = torch.arange(2 ** len(slots) - 1)[:, None] >> torch.arange(len(slots)) & 1
    told = known.repeat(len(part), 1)
    told[:, slots] = part.bool()
    distribution = joint.conditionals(torch.where(chosen, token, answer).expand_as(told), told)
    return bool((told[:, slots] | (distribution.argmax(-1) == token)[:, slots]).all())


@pytest.mark.parametrize("rule", [Factor(1.0), Factor(0.75), Frechet(0.0), Frechet(0.25)], ids=repr)
def test_a_set_committed_at_once_is_what_one_by_one_decoding_of_it_gives(rule):
    found = [every_order_agrees(*case) for case in islice(sets(rule), CASES)]
    assert len(found) == CASES
    assert all(found)


@pytest.mark.parametrize(
    "rule", [ThresholdRule(0.75), Factor(1.9), Factor(1.0, compat=True)], ids=repr
)
def test_rules_without_the_theorem_commit_other_sets(rule):
    found = [every_order_agrees(*case) for case in islice(sets(rule), CASES)]
    assert len(found) - sum(found) > 5
