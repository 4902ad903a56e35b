"""Latin squares to write, of which any will do, and sudokus of 4 by 4 with one solution.

The tasks are those of ParallelBench (arXiv 2510.04767, section 4); questions, generators and
graders are our own. Squares are uniform among all of them, and every sudoku is proven unique.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from string import ascii_uppercase, digits
from typing import ClassVar, Literal

from dllm.eval.tasks.base import Grade, Sample, Span, TaskBase
from dllm.eval.tasks.datasets import DATASETS, draw_held_out, puzzles
from dllm.eval.tasks.options import ask, check_shots, check_sizes

SYMBOLS = ascii_uppercase + digits
SUDOKU = DATASETS["sudoku"]
LATIN_RULES = {"row": puzzles.ROWS, "column": puzzles.COLUMNS}
SUDOKU_RULES = LATIN_RULES | {"box": puzzles.BOXES}
SOLVED = re.compile(r"[1-4]( [1-4]){3}(\n[1-4]( [1-4]){3}){3}")
CELL = re.compile(r"""[^\s,;|()\[\]{}"'`*]+""")
LATIN_QUESTION = """\
Write a Latin square of {n} rows and {n} columns with these {n} symbols: {symbols}
Every row and every column must hold each symbol exactly once. Any such square is right.
Answer with the square only: {n} lines of {n} symbols, separated by single spaces."""
SUDOKU_QUESTION = """\
Solve this sudoku of 4 rows and 4 columns, in which each _ is a blank:
{grid}
Every row, every column and each of the four boxes of 2 by 2 must hold 1, 2, 3 and 4 exactly once.
Answer with the full grid only: 4 lines of 4 digits, separated by single spaces."""


def cell_spans(reply: str, n: int, symbols: Collection[str]) -> list[Span]:
    """Spans of the n * n cells of the last n rows in `reply`; [] where it has fewer rows.

    A row is a line, or what stands before a "]", that consists of n single letters or digits with
    blanks, commas, bars, brackets or quotes between them, or of n of `symbols` in one word.
    """
    rows = []
    for line in re.finditer(r"[^\n\]]+", reply):
        words = [word.span() for word in CELL.finditer(reply, *line.span())]
        if len(words) == 1 and set(reply[slice(*words[0])]) <= set(symbols):
            words = [(at, at + 1) for at in range(*words[0])]
        if len(words) == n and all(b - a == 1 and reply[a].isalnum() for a, b in words):
            rows.append(words)
    return [span for row in rows[-n:] for span in row] if len(rows) >= n else []


def grid_text(cells: Sequence[str], n: int) -> str:
    return "\n".join(" ".join(cells[at : at + n]) for at in range(0, len(cells), n))


def read_grid(reply: str) -> str:
    """The last grid of 4 by 4 in `reply` as the bundled model's families write it; else ""."""
    return grid_text([reply[slice(*span)] for span in cell_spans(reply, 4, "1234")], 4)


def grid_reason(
    puzzle: Sequence[int], answer: str, rules: Mapping[str, tuple[puzzles.Line, ...]]
) -> str:
    """The reason code of an answer to a puzzle of 4 by 4 (0: blank): its clues first, then `rules`,
    each with the lines that hold four different digits.
    """
    if not SOLVED.fullmatch(answer.strip()):
        return "parse"
    grid = tuple(map(int, answer.split()))
    if any(clue not in (0, digit) for clue, digit in zip(puzzle, grid)):
        return "clue"
    return next((code for code, lines in rules.items() if not puzzles.keeps(grid, lines)), "ok")


@cache
def latin_squares(n: int) -> tuple[tuple[int, ...], ...]:
    return puzzles.latin_squares(n)


@dataclass(frozen=True)
class LatinSquare(TaskBase):
    """Any Latin square of n given symbols. shots: example turns before the question."""

    name: ClassVar[str] = "latin_square"
    n: tuple[int, ...] = (3, 4)
    shots: int = 1

    def __post_init__(self) -> None:
        check_sizes(self.n, 3, 4)
        check_shots(self.shots)

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        return ask(lambda rng: self._question(rng, n), rng, self.shots)

    def _question(self, rng: random.Random, n: int) -> Sample:
        symbols = rng.sample(SYMBOLS, n)
        cells = [symbols[cell - 1] for cell in rng.choice(latin_squares(n))]
        prompt = LATIN_QUESTION.format(n=n, symbols=" ".join(symbols))
        return Sample(prompt, grid_text(cells, n), {"symbols": symbols})

    def grade(self, sample: Sample, reply: str) -> Grade:
        cells = [reply[slice(*span)] for span in self.items(sample, reply)]
        reason = _latin_reason(cells, sample.facts["symbols"])
        return Grade.of(reason, strict=reply.strip() == self.write(sample, cells))

    def items(self, sample: Sample, reply: str) -> list[Span]:
        symbols = sample.facts["symbols"]
        return cell_spans(reply, len(symbols), symbols)

    def form(self, n: int) -> tuple[str, int]:
        return "latin_square", n

    def symbols(self, sample: Sample) -> Sequence[str]:
        symbols: list[str] = sample.facts["symbols"]
        return symbols

    def write(self, sample: Sample, words: Sequence[str]) -> str:
        return grid_text(words, len(sample.facts["symbols"]))


def _latin_reason(cells: Sequence[str], symbols: Sequence[str]) -> str:
    n = len(symbols)
    if not cells:
        return "parse"
    if not set(cells) <= set(symbols):
        return "foreign"
    lines = [cells[at * n : at * n + n] for at in range(n)] + [cells[at::n] for at in range(n)]
    return "ok" if all(len(set(line)) == n for line in lines) else "duplicate"


@dataclass(frozen=True)
class Sudoku(TaskBase):
    """A sudoku of 4 by 4 with n blanks, which are its items.

    n: by default 4, 6 and 8, with the short wording 2 to 7. wording: "full" states the rules;
    "short" is a held-out prompt of the bundled model's own form. shots: example turns before the
    question; by default 1, with the short wording 0.
    """

    name: ClassVar[str] = "sudoku"
    n: tuple[int, ...] = ()
    wording: Literal["full", "short"] = "full"
    shots: int | None = None

    def __post_init__(self) -> None:
        full = self.wording == "full"
        if not self.n:
            object.__setattr__(self, "n", (4, 6, 8) if full else SUDOKU.sizes)
        check_sizes(self.n, 1 if full else SUDOKU.sizes[0], 10 if full else SUDOKU.sizes[-1])
        check_shots(self._shots)
        if self._shots and not full:
            raise ValueError(f"shots={self.shots}: wording='short' takes no examples")

    @property
    def _shots(self) -> int:
        return int(self.wording == "full") if self.shots is None else self.shots

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        return ask(lambda rng: self._question(rng, n), rng, self._shots)

    def _question(self, rng: random.Random, n: int) -> Sample:
        if self.wording == "short":
            return draw_held_out(SUDOKU, rng, n)
        puzzle, solution = puzzles.draw(rng, puzzles.SUDOKU, n)
        prompt = SUDOKU_QUESTION.format(grid=puzzles.text(puzzle))
        return Sample(prompt, puzzles.text(solution), {"puzzle": [*puzzle]})

    def grade(self, sample: Sample, reply: str) -> Grade:
        grid = read_grid(reply)
        reason = grid_reason(sample.facts["puzzle"], grid, SUDOKU_RULES)
        return Grade.of(reason, strict=reply.strip() == grid)

    def items(self, sample: Sample, reply: str) -> list[Span]:
        spans = cell_spans(reply, 4, "1234")
        return [span for span, clue in zip(spans, sample.facts["puzzle"]) if not clue]

    def form(self, n: int) -> tuple[str, int]:
        return "copy", n

    def symbols(self, sample: Sample) -> Sequence[str]:
        return [sample.answer[slice(*span)] for span in self.items(sample, sample.answer)]

    def write(self, sample: Sample, words: Sequence[str]) -> str:
        left = iter(words)
        return grid_text([str(clue or next(left)) for clue in sample.facts["puzzle"]], 4)
