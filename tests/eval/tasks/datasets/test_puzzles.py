"""Puzzles are drawn evenly and have one solution by brute force; every broken rule has its name."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks.datasets.puzzles import DATASETS, LATIN, SUDOKU
from dllm.eval.tasks.puzzles import LATIN_RULES, SUDOKU_RULES, grid_reason
from tests.eval.tasks.datasets.test_seeds import draws

TOKEN = re.compile(r" {4}| ?[A-Za-z]+| ?[0-9]|\n| ?[^A-Za-z0-9\s]|\s")
LATIN_TASK, SUDOKU_TASK = DATASETS
RULES = {LATIN_TASK: LATIN_RULES, SUDOKU_TASK: SUDOKU_RULES}

each_task = pytest.mark.parametrize("task", DATASETS, ids=lambda task: task.name)


def judged(dataset, sample, reply):
    return grid_reason(sample.facts["puzzle"], reply, RULES[dataset])


def solve(cells, boxed):
    """All completions of 16 digits (0: blank), cell by cell; shares nothing with the module."""
    if 0 not in cells:
        return [cells]
    at = cells.index(0)
    row, column = divmod(at, 4)

    def sees(other):
        r, c = divmod(other, 4)
        in_box = boxed and (r // 2, c // 2) == (row // 2, column // 2)
        return r == row or c == column or in_box

    seen = {cells[other] for other in range(16) if sees(other)}
    return [
        grid
        for digit in (1, 2, 3, 4)
        if digit not in seen
        for grid in solve([*cells[:at], digit, *cells[at + 1 :]], boxed)
    ]


def test_all_squares_are_known():
    assert len(LATIN) == 576
    assert len(SUDOKU) == 288
    assert sorted(map(list, LATIN)) == solve([0] * 16, boxed=False)
    assert sorted(map(list, SUDOKU)) == solve([0] * 16, boxed=True)


@each_task
def test_gold_is_ok_and_the_only_solution_of_the_grid_in_the_prompt(task):
    for turn, example in enumerate(draws(task)):
        assert judged(task, example, example.answer) == "ok"
        shown = re.search(r"[1-4_]( [1-4_]){3}(\n[1-4_]( [1-4_]){3}){3}", example.prompt).group()
        cells = [int(cell) for cell in shown.replace("_", "0").split()]
        assert cells == example.facts["puzzle"]
        assert cells.count(0) == task.sizes[turn % len(task.sizes)]
        solutions = solve(cells, boxed=task is SUDOKU_TASK)
        assert solutions == [[int(digit) for digit in example.answer.split()]]


@each_task
def test_short_enough(task):
    for example in draws(task, 1000):
        prompt, answer = TOKEN.findall(example.prompt), TOKEN.findall(example.answer)
        assert "".join(prompt) == example.prompt
        assert len(answer) == 16 + 3
        assert len(prompt) + len(answer) <= 260


def test_squares_are_uniform_even_where_blanks_are_often_redrawn():
    size, per_square = max(LATIN_TASK.sizes), 12
    rng = random.Random(0)
    made = (LATIN_TASK.make(rng, size) for _ in range(576 * per_square))
    counts = Counter(example.answer for example in made)
    assert len(counts) == 576
    chi_square = sum((n - per_square) ** 2 / per_square for n in counts.values())
    assert abs(chi_square - 575) < 4 * (2 * 575) ** 0.5  # its mean, and four deviations


@each_task
@given(seed=st.integers(0, 2**32), data=st.data())
def test_any_changed_digit_is_found(task, seed, data):
    [example] = draws(task, 1, seed)
    at = data.draw(st.integers(0, 15))
    old = example.answer[2 * at]
    new = data.draw(st.sampled_from(sorted(set("1234") - {old})))
    reply = example.answer[: 2 * at] + new + example.answer[2 * at + 1 :]
    assert judged(task, example, reply) == ("clue" if example.facts["puzzle"][at] else "row")


@pytest.mark.parametrize(
    ("task", "grid", "reason"),
    [
        (LATIN_TASK, "1 2 3 3\n2 1 4 4\n3 4 1 2\n4 3 2 1", "row"),
        (LATIN_TASK, "1 2 3 4\n1 2 3 4\n3 4 1 2\n4 3 2 1", "column"),
        (LATIN_TASK, "1 2 3 4\n2 3 4 1\n3 4 1 2\n4 1 2 3", "ok"),
        (SUDOKU_TASK, "1 2 3 4\n2 3 4 1\n3 4 1 2\n4 1 2 3", "box"),
        (SUDOKU_TASK, "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1", "ok"),
    ],
)
def test_every_rule_has_its_reason(task, grid, reason):
    [example] = draws(task, 1)
    example.facts["puzzle"] = [0] * 16
    assert judged(task, example, grid) == reason


@each_task
def test_what_is_no_grid_does_not_parse(task):
    for example in draws(task, 60):
        gold = example.answer
        assert judged(task, example, f"\n{gold}\n ") == "ok"  # space around it is no fault
        cut = [gold[:end] for end in range(len(gold))]
        chatty = [f"Sure:\n{gold}", f"{gold}\nDone.", f"```\n{gold}\n```", f"{gold}\n{gold}"]
        loose = [gold.replace(" ", ""), gold.replace("\n", " "), gold.replace(" ", "  ")]
        outside = [gold.replace("4", "5"), gold.replace("1", "_"), example.prompt]
        for reply in (*cut, *chatty, *loose, *outside):
            assert judged(task, example, reply) == "parse", reply
