"""Squares are uniform, sudokus have one solution, and every filling of a grid is graded right."""

import itertools
import json
import re
from collections import Counter

import pytest

from dllm.eval.tasks import Sample, draw, task_of
from dllm.eval.tasks.datasets import is_held_out
from dllm.eval.tasks.puzzles import LatinSquare, Sudoku, cell_spans
from dllm.registry import SpecError

LATIN, FULL, SHORT = LatinSquare(), Sudoku(), Sudoku(wording="short")
CELLS = [(task, n) for task in (LATIN, FULL, SHORT) for n in task.n]
each_cell = pytest.mark.parametrize(
    ("task", "n"), CELLS, ids=lambda v: v if isinstance(v, int) else f"{v.name}-{v.shots}"
)


def draws(task, n, count=40, seed=0):
    return [draw(task, n, seed, i) for i in range(count)]


def reason(task, sample, reply):
    grade = task.grade(sample, reply)
    assert grade.score == (grade.reason == "ok")
    assert grade.score or not grade.strict
    return grade.reason


def solutions(grid):
    """How many ways there are to fill the zeros of a 4 by 4 grid; shares nothing with the code."""
    blank = next(((r, c) for r in range(4) for c in range(4) if not grid[r][c]), None)
    if blank is None:
        return 1
    r, c = blank
    box = [(2 * (r // 2) + i, 2 * (c // 2) + j) for i in (0, 1) for j in (0, 1)]
    seen = {*grid[r], *(row[c] for row in grid), *(grid[i][j] for i, j in box)}
    total = 0
    for digit in {1, 2, 3, 4} - seen:
        grid[r][c] = digit
        total += solutions(grid)
    grid[r][c] = 0
    return total


def is_latin(rows, symbols):
    columns = [list(column) for column in zip(*rows)]
    return all(sorted(line) == sorted(symbols) for line in [*rows, *columns])


def rows_of(answer):
    return [line.split(" ") for line in answer.split("\n")]


def upside_down(answer):
    return "\n".join(reversed(answer.split("\n")))


@each_cell
def test_the_gold_is_right_in_every_wrapping_and_strict_in_none(task, n):
    for sample in draws(task, n, 10):
        gold, rows = sample.answer, rows_of(sample.answer)
        assert task.grade(sample, gold).strict
        assert task.grade(sample, f"\n{gold}\n").strict
        wrapped = [
            f"Sure! Here it is:\n{gold}",
            f"```\n{gold}\n```",
            f"{gold}\n\nI hope this helps.",
            gold.replace(" ", ""),
            gold.replace(" ", ", "),
            gold.replace(" ", ","),
            gold.replace(" ", "  "),
            gold.replace("\n", "\n\n"),
            gold.replace("\n", "\r\n"),
            json.dumps(rows),
            str(rows),
            "\n".join(f"| {' | '.join(row)} |" for row in rows),
            "\n".join(["|---" * len(rows) + "|", *(f"**{' '.join(row)}**" for row in rows)]),
            f"First try:\n{upside_down(gold)}\nThe answer:\n{gold}",
        ]
        for reply in wrapped:
            grade = task.grade(sample, reply)
            assert (grade.reason, grade.strict) == ("ok", False), reply


@each_cell
def test_what_is_cut_or_no_grid_does_not_parse(task, n):
    for sample in draws(task, n, 5):
        gold, rows = sample.answer, rows_of(sample.answer)
        cut = [gold[:end] for end in range(len(gold))]
        wide = "\n".join(" ".join([*row, row[0]]) for row in rows)
        loose = [gold.replace("\n", " "), gold.replace(" ", "-"), "\n".join(map("x".join, rows))]
        for reply in (*cut, wide, *loose, "no", "\n\n", gold.replace(" ", "")[:-1]):
            assert reason(task, sample, reply) == "parse", reply


@each_cell
def test_items_are_where_the_answer_says(task, n):
    for sample in draws(task, n, 10):
        words = [sample.answer[a:b] for a, b in task.items(sample, sample.answer)]
        assert task.write(sample, words) == sample.answer
        chatty = f"Here:\n{sample.answer.replace(' ', ' | ')}"
        assert [chatty[a:b] for a, b in task.items(sample, chatty)] == words
        assert task.items(sample, "none") == []
        form, size = task.form(n)
        assert (form, size) == (("latin_square", n) if task is LATIN else ("copy", n))
        assert len(words) == (n * n if task is LATIN else n)


@each_cell
def test_a_sample_is_a_function_of_its_name_size_seed_and_number(task, n):
    options = {} if task is SHORT else {"shots": 2}
    other = type(task)(**({"wording": "short"} if task is SHORT else {}), n=(n,), **options)
    infill = type(task)(**({"wording": "short"} if task is SHORT else {}), surface="infill")
    for i in range(5):
        sample = draw(task, n, 3, i)
        assert draw(infill, n, 3, i) == sample == draw(task, n, 3, i)
        twin = draw(other, n, 3, i)
        assert (twin.prompt, twin.answer, twin.facts) == (
            sample.prompt,
            sample.answer,
            sample.facts,
        )
        assert len(twin.shots) == options.get("shots", 0)
        assert sample.prompt not in dict(twin.shots)
    assert len({sample.prompt for sample in draws(task, n, 20)}) > 15
    assert draw(task, n, 0, 0) != draw(task, n, 1, 0)


@each_cell
def test_samples_survive_json(task, n):
    for sample in draws(task, n, 5):
        back = Sample.from_dict(json.loads(json.dumps(sample.as_dict())))
        assert back == sample
        for reply in (sample.answer, upside_down(sample.answer), sample.answer[::-1], ""):
            assert task.grade(back, reply) == task.grade(sample, reply)
            assert task.items(back, reply) == task.items(sample, reply)


@pytest.mark.parametrize("n", LATIN.n)
def test_squares_are_latin_over_the_symbols_of_the_prompt(n):
    for sample in draws(LATIN, n, 200):
        [shown] = re.findall(rf"these {n} symbols: (.*)", sample.prompt)
        symbols = shown.split(" ")
        assert symbols == sample.facts["symbols"] == list(LATIN.symbols(sample))
        assert len(set(symbols)) == n
        assert re.fullmatch("[A-Z0-9]*", "".join(symbols))
        assert is_latin(rows_of(sample.answer), symbols)
        [(question, answer)] = sample.shots
        [other] = re.findall(r"symbols: (.*)", question)
        assert is_latin(rows_of(answer), other.split(" "))


def test_every_filling_of_a_square_of_three_is_graded_right():
    sample = draw(LATIN, 3, 0, 0)
    symbols = sample.facts["symbols"]
    counts = Counter()
    for cells in itertools.product(symbols, repeat=9):
        rows = [list(cells[at : at + 3]) for at in (0, 3, 6)]
        want = "ok" if is_latin(rows, symbols) else "duplicate"
        grade = LATIN.grade(sample, "\n".join(map(" ".join, rows)))
        assert (grade.reason, grade.strict) == (want, want == "ok")
        counts[want] += 1
    assert counts == {"ok": 12, "duplicate": 3**9 - 12}


def test_every_pair_of_rows_from_a_right_square_of_four_is_graded_right():
    sample = draw(LATIN, 4, 0, 0)
    symbols = sample.facts["symbols"]
    first, second, *_ = rows_of(sample.answer)
    rights = 0
    for third, fourth in itertools.product(itertools.permutations(symbols), repeat=2):
        rows = [first, second, list(third), list(fourth)]
        right = is_latin(rows, symbols)
        want = "ok" if right else "duplicate"
        assert reason(LATIN, sample, "\n".join(map(" ".join, rows))) == want
        rights += right
    assert rights in (2, 4)


@pytest.mark.parametrize("n", LATIN.n)
def test_a_foreign_symbol_is_found_before_a_double_one(n):
    for sample in draws(LATIN, n, 10):
        foreign = next(symbol for symbol in "ABCDEF" if symbol not in sample.facts["symbols"])
        for at in range(0, len(sample.answer), 2):
            reply = sample.answer[:at] + foreign + sample.answer[at + 1 :]
            assert reason(LATIN, sample, reply) == "foreign"
        assert reason(LATIN, sample, sample.answer.lower() + " ") in ("foreign", "ok")
        lower = sample.answer.replace(sample.answer[0], "a")
        assert reason(LATIN, sample, lower) == "foreign"


def test_squares_of_three_are_uniform_up_to_the_names_of_symbols():
    count = 6000
    patterns = Counter()
    for sample in draws(LatinSquare(shots=0), 3, count):
        place = sample.facts["symbols"].index
        patterns[tuple(place(symbol) for symbol in sample.answer.split())] += 1
    assert len(patterns) == 12
    assert chi_square(patterns, 12) < 31.3  # 11 degrees of freedom, p = 0.001


def test_squares_of_four_are_uniform():
    patterns, firsts = Counter(), Counter()
    for sample in draws(LatinSquare(shots=0), 4, 576 * 10):
        place = sample.facts["symbols"].index
        cells = tuple(place(symbol) for symbol in sample.answer.split())
        patterns[cells] += 1
        firsts[cells[:4]] += 1
    assert len(patterns) == 576
    assert chi_square(patterns, 576) < 575 + 4 * (2 * 575) ** 0.5
    assert chi_square(firsts, 24) < 23 + 4 * (2 * 23) ** 0.5


def chi_square(counts, kinds):
    expected = counts.total() / kinds
    return sum((n - expected) ** 2 / expected for n in counts.values())


def test_the_symbols_are_drawn_evenly():
    counts = Counter(s for sample in draws(LATIN, 4, 1800) for s in sample.facts["symbols"])
    assert len(counts) == 36
    assert chi_square(counts, 36) < 35 + 4 * (2 * 35) ** 0.5


@pytest.mark.parametrize(
    ("task", "n"), [(FULL, 4), (FULL, 6), (FULL, 8), (Sudoku(n=(10,)), 10), (SHORT, 2), (SHORT, 7)]
)
def test_the_puzzle_in_the_prompt_has_the_gold_as_its_one_solution(task, n):
    for sample in draws(task, n, 60):
        shown = re.search(r"[1-4_]( [1-4_]){3}(\n[1-4_]( [1-4_]){3}){3}", sample.prompt).group()
        grid = [[int(c) for c in row.split(" ")] for row in shown.replace("_", "0").split("\n")]
        assert [clue for row in grid for clue in row] == sample.facts["puzzle"]
        assert sample.facts["puzzle"].count(0) == n
        assert solutions(grid) == 1
        gold = [[int(digit) for digit in row] for row in rows_of(sample.answer)]
        lines = [*gold, *zip(*gold)]
        boxes = [gold[r][c : c + 2] + gold[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2)]
        assert all(sorted(line) == [1, 2, 3, 4] for line in [*lines, *boxes])
        digits = [digit for row in gold for digit in row]
        assert all(clue in (0, digit) for clue, digit in zip(sample.facts["puzzle"], digits))
        assert len(sample.shots) == (0 if task is SHORT else 1)


@pytest.mark.parametrize("n", [4, 6])
def test_of_all_fillings_of_the_blanks_one_is_right(n):
    sample = draw(FULL, n, 0, 0)
    counts = Counter(
        reason(FULL, sample, FULL.write(sample, words))
        for words in itertools.product("1234", repeat=n)
    )
    assert counts.keys() <= {"ok", "row", "column", "box"}
    assert counts["ok"] == 1


def test_the_reasons_of_a_wrong_sudoku():
    sample = Sample("", "", {"puzzle": [1, *[0] * 15]})
    cases = {
        "ok": "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1",
        "clue": "2 1 3 4\n3 4 1 2\n1 2 4 3\n4 3 2 1",
        "row": "1 2 3 3\n3 4 1 2\n2 1 4 3\n4 3 2 1",
        "column": "1 2 3 4\n1 2 3 4\n2 1 4 3\n4 3 2 1",
        "box": "1 2 3 4\n2 3 4 1\n3 4 1 2\n4 1 2 3",
        "parse": "1 2 3 5\n3 4 1 2\n2 1 4 3\n5 3 2 1",
    }
    for want, grid in cases.items():
        assert reason(FULL, sample, grid) == want
        assert reason(FULL, sample, f"So:\n{grid.replace(' ', '')}") == want


def test_a_puzzle_written_again_before_the_answer_does_no_harm():
    for sample in draws(FULL, 6, 20):
        echo = sample.prompt.partition("\n")[2]
        assert reason(FULL, sample, f"{echo}\n{sample.answer}") == "ok"
        assert reason(FULL, sample, echo) == "parse"


def test_blanks_are_spread_over_the_whole_grid():
    counts = Counter(
        at
        for sample in draws(Sudoku(shots=0), 4, 1600)
        for at, clue in enumerate(sample.facts["puzzle"])
        if not clue
    )
    assert len(counts) == 16
    assert chi_square(counts, 16) < 15 + 4 * (2 * 15) ** 0.5


def test_the_short_wording_holds_back_what_the_model_was_trained_on():
    for n in SHORT.n:
        assert all(is_held_out(sample.prompt) for sample in draws(SHORT, n, 20))


def test_a_row_is_a_line_of_single_symbols():
    text = "The grid of A B C:\nA B C\nBCA I see\nB C A\nCAB\n"
    spans = cell_spans(text, 3, "ABC")
    assert "".join(text[a:b] for a, b in spans) == "ABCBCACAB"
    assert cell_spans("A B\nB A\nA B", 3, "ABC") == []
    assert cell_spans("yes\nA B C\nB C A\nC A B\nyes", 3, "ABC")[0] == (4, 5)
    assert cell_spans("- - -\n" * 3, 3, "ABC") == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("latin_square:n=5", "n=5: expected different sizes from 3 to 4"),
        ("latin_square:n=3+3", "n=3\\+3: expected different"),
        ("latin_square:n=2", "n=2"),
        ("latin_square:shots=-1", "shots=-1: expected a number of at least 0"),
        ("latin_square:surface=holes", "free | infill"),
        ("sudoku:n=0", "n=0: expected different sizes from 1 to 10"),
        ("sudoku:n=11", "n=11: expected different sizes from 1 to 10"),
        ("sudoku:n=1,wording=short", "from 2 to 7"),
        ("sudoku:n=8,wording=short", "from 2 to 7"),
        ("sudoku:shots=-1", "shots=-1"),
        ("sudoku:wording=short,shots=1", "shots=1: wording='short' takes no examples"),
        ("sudoku:wording=long", "full | short"),
    ],
)
def test_wrong_options_are_refused(spec, says):
    with pytest.raises(SpecError, match=says):
        task_of(spec)


def test_specs():
    assert task_of("sudoku") == FULL == Sudoku(n=(4, 6, 8))
    assert task_of("sudoku:wording=short") == Sudoku(n=(2, 3, 4, 5, 6, 7), wording="short")
    assert task_of("latin_square:n=3,surface=infill") == LatinSquare(n=(3,), surface="infill")
    assert draw(task_of("sudoku:shots=0"), 4, 0, 0).shots == ()
    assert draw(task_of("sudoku:n=1"), 1, 0, 0).facts["puzzle"].count(0) == 1
