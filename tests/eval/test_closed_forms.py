"""The closed forms: values of the published tables, and agreement with counting on the joint."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from dllm.eval import closed_forms as forms
from dllm.eval.oracle import Joint

RANDOM = ("shuffle", "replace_random", "insert_random", "remove_random")
KNOWN = ("copy", *RANDOM)


@cache
def joint_of(task: str, n: int) -> Joint:
    return getattr(Joint, task)(n)


def compositions(total: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as groups in order."""
    if total == 0:
        return [()]
    return [(s, *rest) for s in range(1, total + 1) for rest in compositions(total - s)]


def distribution(support: Sequence[tuple[int, ...]], slot: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for answer in support:
        found[answer[slot]] = found.get(answer[slot], 0.0) + 1 / len(support)
    return found


def entropy(probabilities: Sequence[float]) -> float:
    return -sum(p * math.log2(p) for p in probabilities)


def enumerated(joint: Joint, groups: tuple[int, ...]) -> tuple[float, float]:
    """(accuracy at temperature 1, loss in bits), the mean over the sets of positions of each step,
    by walking through every outcome that stays in the support.
    """

    @cache
    def walk(support: tuple[tuple[int, ...], ...], open_: tuple[int, ...], at: int) -> float:
        if at == len(groups):
            return 1.0
        total, count = 0.0, math.comb(len(open_), groups[at])
        for chosen in itertools.combinations(open_, groups[at]):
            distributions = [distribution(support, slot) for slot in chosen]
            rest = tuple(slot for slot in open_ if slot not in chosen)
            for tokens in {tuple(answer[s] for s in chosen) for answer in support}:
                p = math.prod(one[token] for one, token in zip(distributions, tokens, strict=True))
                fits = tuple(a for a in support if tuple(a[s] for s in chosen) == tokens)
                total += p * walk(fits, rest, at + 1) / count
        return total

    @cache
    def loss(support: tuple[tuple[int, ...], ...], open_: tuple[int, ...], at: int) -> float:
        if at == len(groups):
            return 0.0
        total, count = 0.0, math.comb(len(open_), groups[at])
        for chosen in itertools.combinations(open_, groups[at]):
            rest = tuple(slot for slot in open_ if slot not in chosen)
            parts = [tuple(answer[s] for s in chosen) for answer in support]
            shares = {tokens: parts.count(tokens) / len(parts) for tokens in parts}
            alone = sum(entropy(list(distribution(support, slot).values())) for slot in chosen)
            total += (alone - entropy(list(shares.values()))) / count
            for tokens, share in shares.items():
                fits = tuple(a for a, p in zip(support, parts, strict=True) if p == tokens)
                total += share * loss(fits, rest, at + 1) / count
        return total

    support = tuple(map(tuple, joint.support.tolist()))
    every = tuple(range(joint.positions))
    return walk(support, every, 0), loss(support, every, 0)


@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("replace_random", (1.169925, 1.245112, 1.287712, 1.315172)),
        ("shuffle", (2.169925, 3.415037, 4.702750, 6.017922)),
        ("insert_random", (2.622556, 3.385757, 4.136637, 4.880043)),
        ("remove_random", (0.251629, 0.622556, 1.063829, 1.551674)),
        ("sort", (0, 0, 0, 0)),
    ],
)
def test_total_correlation_of_the_published_table(task, values):
    found = [forms.correlation_bits(task, n) for n in (3, 4, 5, 6)]
    assert found == pytest.approx(values, abs=5e-7)


def test_total_correlation_of_latin_squares():
    assert forms.correlation_bits("latin_square", 4) == pytest.approx(32 - math.log2(576))
    assert forms.accuracy("latin_square", 4, [16]) == pytest.approx(1.34e-7, rel=2e-3)
    assert forms.accuracy("latin_square", 4, [1] * 16) == 1
    for order in (1, 2, 3):
        assert forms.LATIN_SQUARES[order] == len(Joint.latin_square(order).support)


def test_answers_fill_the_slots_and_are_counted():
    counts = {"shuffle": 6, "replace_random": 3, "insert_random": 4, "remove_random": 3}
    for task in forms.TASKS:
        found = set(forms.answers(task, 3))
        assert {len(answer) for answer in found} == {forms.positions(task, 3)}
        assert len(found) == {"latin_square": 12, **counts}.get(task, 1)


def test_replace_random_tends_to_one_in_e():
    assert forms.correlation_bits("replace_random", 10**6) == pytest.approx(math.log2(math.e))
    assert forms.accuracy("replace_random", 10**6, [10**6]) == pytest.approx(1 / math.e)


@pytest.mark.parametrize(
    ("task", "n", "groups", "value"),
    [
        ("shuffle", 6, (2, 2, 2), 0.3125),
        ("shuffle", 6, (3, 3), 0.123457),
        ("shuffle", 6, (6,), 0.015432),
        ("shuffle", 5, (2, 2, 1), 0.533333),
        ("replace_random", 6, (2, 2, 2), 0.733507),
        ("replace_random", 6, (3, 3), 0.604424),
        ("replace_random", 6, (6,), 0.401878),
        ("replace_random", 5, (2, 2, 1), 0.888889),
        ("insert_random", 6, (7,), 2**6 * math.factorial(6) / 7**7),
        ("remove_random", 6, (5,), 2**5 * math.factorial(5) / 6**5),
        ("reverse", 6, (6,), 1.0),
    ],
)
def test_accuracy_of_the_published_table(task, n, groups, value):
    assert forms.accuracy(task, n, groups) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("task", KNOWN)
def test_every_grouping_agrees_with_enumeration(task):
    for n in (2, 3, 4):
        joint = joint_of(task, n)
        assert joint.positions == forms.positions(task, n)
        for groups in compositions(joint.positions):
            accuracy, loss = enumerated(joint, groups)
            assert forms.accuracy(task, n, groups) == pytest.approx(accuracy), (n, groups)
            if len(groups) == 1:
                assert forms.correlation_bits(task, n) == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("task", ["insert_random", "remove_random"])
@pytest.mark.parametrize("groups", [(4, 1, 1, 2), (2, 3, 3), (1, 7)])
def test_larger_groupings_of_insert_and_remove_agree_with_enumeration(task, groups):
    n = sum(groups) - 1 if task == "insert_random" else sum(groups) + 1
    assert forms.accuracy(task, n, groups) == pytest.approx(
        enumerated(joint_of(task, n), groups)[0]
    )


@pytest.mark.parametrize("task", KNOWN)
def test_one_by_one_is_always_right(task):
    for n in (2, 7, 12):
        assert forms.accuracy(task, n, [1] * forms.positions(task, n)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forms.accuracy("juggle", 3, [3]), "task='juggle': expected one of copy"),
        (lambda: forms.accuracy("shuffle", 3, [2, 2]), r"groups=\(2, 2\): expected .* sum to 3"),
        (lambda: forms.accuracy("copy", 3, [3, 0]), r"groups=\(3, 0\)"),
        (lambda: forms.accuracy("latin_square", 4, [8, 8]), "expected one step, or one by one"),
        (lambda: forms.accuracy("latin_square", 6, [36]), "n=6"),
        (lambda: forms.positions("copy", 0), "n=0"),
    ],
)
def test_what_is_not_known_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_likelihood_estimator_has_the_mean_of_the_true_likelihood():
    """LLaDA's estimator: mask exactly l of L tokens, sum their losses, times L / l, l uniform."""
    for task, nats in (("shuffle", math.log(math.factorial(5))), ("replace_random", math.log(5))):
        joint = joint_of(task, 5)
        answer = joint.support[:1]
        draws: dict[int, list[float]] = {}
        for hidden in list(itertools.product((False, True), repeat=5))[1:]:
            masked = torch.tensor([hidden])
            own = joint.conditionals(answer, ~masked).gather(2, answer[..., None])[..., 0]
            draws.setdefault(sum(hidden), []).append(-float(own.log()[masked].sum()))
        means = [5 / size * sum(draws[size]) / len(draws[size]) for size in range(1, 6)]
        assert sum(means) / 5 == pytest.approx(nats)
        if task == "shuffle":  # no variance given l
            for size, losses in draws.items():
                assert losses == pytest.approx([size * math.log(size)] * len(losses))
