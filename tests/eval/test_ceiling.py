"""The chance of a perfect model for given commits: closed forms, a second count, and the engine."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval import closed_forms as forms
from dllm.eval.ceiling import chance
from dllm.eval.oracle import Joint, Oracle
from dllm.output import Output
from tests.eval.references import greedy_accuracy

RANDOM = ("replace_random", "insert_random", "remove_random")
TEMPERATURES = (0.0, 0.5, 1.0, 1.7)

Sets = list[list[int]]


def groupings(total: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as group sizes in order."""
    if total == 0:
        yield ()
    for size in range(1, total + 1):
        yield from ((size, *rest) for rest in groupings(total - size))


def partitions(groups: Sequence[int], items: Sequence[int]) -> Iterator[Sets]:
    """All ways to put `items` into sets of the sizes `groups`."""
    if not groups:
        yield []
        return
    for first in itertools.combinations(items, groups[0]):
        rest = [item for item in items if item not in first]
        yield from ([list(first), *more] for more in partitions(groups[1:], rest))


def tempered(distribution: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        likeliest = (distribution > distribution.amax(-1, keepdim=True) - 1e-9).double()
        return likeliest / likeliest.sum(-1, keepdim=True)
    return (distribution.log() / temperature).softmax(-1)


def summed(joint: Joint, sets: Sets, temperature: float) -> float:
    """The probabilities of the right answers, each along its one path, as the oracle has them."""
    known = torch.zeros_like(joint.support, dtype=torch.bool)
    chances = torch.ones(len(joint.support), dtype=torch.float64)
    for drawn in sets:
        distribution = tempered(joint.conditionals(joint.support, known), temperature)
        own = distribution.gather(-1, joint.support[..., None])[..., 0]
        chances *= own[:, drawn].prod(-1)
        known[:, drawn] = True
    return float(chances.sum())


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, int, Sets]:
    """(form, n, sets) of any form whose answers can be walked through."""
    form = draw(st.sampled_from((*RANDOM, "shuffle", "latin_square", "copy")))
    n = draw(st.integers(2, 5 if form != "latin_square" else 3))
    items = draw(st.permutations(range(forms.positions(form, n))))
    cuts = draw(st.sets(st.integers(1, max(1, len(items) - 1))))
    bounds = sorted({0, len(items), *cuts})
    return form, n, [items[a:b] for a, b in itertools.pairwise(bounds)]


@given(cases(), st.sampled_from(TEMPERATURES))
def test_the_chance_is_the_sum_over_right_answers(case, temperature):
    form, n, sets = case
    graded = 1 - 1 / math.factorial(n) if form == "shuffle" else 1
    expected = summed(getattr(Joint, form)(n), sets, temperature) * graded
    found = chance(form, n, sets, temperature)
    assert found == pytest.approx(expected, rel=1e-9)
    assert 0 <= found <= 1


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_squares_of_order_four_are_counted_too(temperature):
    squares = Joint.latin_square(4)
    for sets in ([list(range(16))], [[0, 5, 10, 15], [1, 2, 3, 4, 6, 7], [8, 9, 11, 12, 13, 14]]):
        expected = summed(squares, sets, temperature)
        assert chance("latin_square", 4, sets, temperature) == pytest.approx(expected, rel=1e-9)


@given(cases(), st.sampled_from(TEMPERATURES), st.randoms(use_true_random=False))
def test_one_by_one_in_any_order_is_always_right(case, temperature, random):
    form, n, _ = case
    order = [
        [item] for item in random.sample(range(forms.positions(form, n)), forms.positions(form, n))
    ]
    graded = 1 - 1 / math.factorial(n) if form == "shuffle" else 1
    assert chance(form, n, order, temperature) == pytest.approx(graded)


def test_rounding_never_makes_more_than_certain():
    order = [[slot] for slot in (1, 4, 2, 8, 7, 0, 5, 6, 3)]  # adds up to 1 + 2**-52
    assert chance("insert_random", 8, order) <= 1


@given(cases(), st.data())
def test_sampling_never_gets_worse_where_a_set_is_split(case, data):
    """At temperature 1. Below it may, see the next test."""
    form, n, sets = case
    at = data.draw(st.integers(0, len(sets) - 1))
    cut = data.draw(st.integers(0, len(sets[at]) - 1))
    halves = [half for half in (sets[at][:cut], sets[at][cut:]) if half]
    finer = [*sets[:at], *halves, *sets[at + 1 :]]
    assert chance(form, n, finer) >= chance(form, n, sets) - 1e-12


def test_greedy_decoding_may_get_worse_where_a_set_is_split():
    """Items a b c: at once, slots 0, 1 and 3 say a, b and c, which leaves slot 2 to the new item.
    Once slot 3 has said c, all that slot 1 may hold is equally likely.
    """
    assert chance("insert_random", 3, [[0, 1, 3], [2]], 0) == 1
    assert chance("insert_random", 3, [[3], [0, 1], [2]], 0) == pytest.approx(2 / 3)


@pytest.mark.parametrize("form", ["copy", "insert_index", *RANDOM])
def test_the_mean_over_all_partitions_is_the_closed_form(form):
    n = 4
    for groups in groupings(forms.positions(form, n)):
        every = list(partitions(groups, range(forms.positions(form, n))))
        found = math.fsum(chance(form, n, sets) for sets in every) / len(every)
        assert found == pytest.approx(forms.accuracy(form, n, groups)), groups


def test_greedy_chances_are_the_closed_forms():
    for n in (2, 3, 5):
        for groups in groupings(n):
            for sets in partitions(groups, range(n)):
                replaced = greedy_accuracy("replace_random", n, groups)
                assert chance("replace_random", n, sets, 0) == pytest.approx(replaced)
                shuffled = greedy_accuracy("shuffle", n, groups)
                changed = 1 - 1 / math.factorial(n)
                assert chance("shuffle", n, sets, 0) == pytest.approx(shuffled * changed)


def test_squares_in_one_step_and_one_by_one_are_the_closed_form():
    for order in (1, 2, 3, 4):
        cells = range(order * order)
        for sets in ([[*cells]], [[cell] for cell in cells]):
            expected = forms.accuracy("latin_square", order, [len(items) for items in sets])
            assert chance("latin_square", order, sets) == pytest.approx(expected)


def decode(joint: Joint, jitter: float, rows: int, **options: object) -> list[Output]:
    size = math.ceil(math.log(rows, joint.symbols))  # a prompt, hence noise, of its own each
    oracle = Oracle(joint, jitter=jitter, prompt_length=size)
    config = DecodeConfig(
        block_length=None, max_new_tokens=joint.positions, history=True, **options
    )
    return Engine(oracle).generate(oracle.prompts(rows), config)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("form", "n", "steps"),
    [
        ("replace_random", 5, 3),
        ("insert_random", 4, 2),
        ("remove_random", 6, 2),
        ("latin_square", 3, 5),
        ("latin_square", 4, 8),
        ("shuffle", 5, 3),
    ],
)
def test_the_engine_reaches_the_mean_chance_of_the_sets_it_committed(form, n, steps, temperature):
    """Random order: which slots go together does not hang on what was drawn."""
    joint = getattr(Joint, form)(n)
    rows = 400 if len(joint.support) < 500 else 120
    sampler = f"quota:steps={steps},remasking=random"
    jitter = 0.0 if temperature else 1e-3
    outputs = decode(joint, jitter, rows, sampler=sampler, temperature=temperature)
    chances = []
    for output in outputs:
        first = min(commit.positions[0] for commit in output.history)
        sets = [[position - first for position in commit.positions] for commit in output.history]
        chances.append(chance(form, n, sets, temperature))
    answers = torch.tensor([output.token_ids for output in outputs])
    right = joint.contains(answers)
    if form == "shuffle":
        right &= (answers != torch.arange(n)).any(1)
    error = math.sqrt(sum(c * (1 - c) for c in chances))
    assert abs(int(right.sum()) - sum(chances)) <= 4 * error + 1e-9


def test_what_is_not_known_is_none_and_what_is_no_task_is_named():
    assert chance("latin_square", 5, [list(range(25))]) is None
    with pytest.raises(ValueError, match="'paint': expected one of copy"):
        chance("paint", 2, [[0, 1]])


@pytest.mark.parametrize("form", ["copy", "shuffle", "replace_random", "latin_square"])
@pytest.mark.parametrize(
    "change",
    [lambda s: s[:-1], lambda s: [*s, []], lambda s: [*s, [0]], lambda s: [*s[:-1], [0]]],
    ids=["missing", "empty", "twice", "another"],
)
def test_sets_that_are_no_partition_are_refused(form, change):
    sets = change([[item] for item in range(forms.positions(form, 5))])
    with pytest.raises(ValueError, match=f"items of {form} n=5 once"):
        chance(form, 5, sets)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        chance("copy", 2, [[0, 1]], temperature)


def test_low_temperatures_are_the_limit():
    sets = [[0, 2, 3], [1, 4]]
    greedy = chance("insert_random", 4, sets, 0)
    assert chance("insert_random", 4, sets, 1e-3) == pytest.approx(greedy)
    assert chance("insert_random", 4, sets, 1e-310) == greedy
    assert 0 < greedy < 1


def test_a_partition_of_a_square_takes_milliseconds_and_a_second_time_nothing():
    sets = [[item, item + 8] for item in range(8)]
    chance("latin_square", 4, [[*range(16)]])
    began = time.process_time()
    first = chance("latin_square", 4, sets, 0.9)
    middle = time.process_time()
    assert chance("latin_square", 4, [pair[::-1] for pair in sets], 0.9) == first
    assert time.process_time() - middle < 1e-3
    assert middle - began < 0.2
