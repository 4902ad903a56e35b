"""4x4 Latin squares and sudokus with some cells blanked; every puzzle has exactly one solution."""

from __future__ import annotations

import random
from operator import itemgetter

from dllm.eval.closed_forms import answers
from dllm.eval.tasks.base import Sample
from dllm.eval.tasks.datasets.base import GeneratedDataset

Grid = tuple[int, ...]  # the cells row by row; 0 is a blank
Line = tuple[int, ...]  # the cells that must hold four different digits

ROWS: tuple[Line, ...] = tuple(tuple(range(start, start + 4)) for start in (0, 4, 8, 12))
COLUMNS: tuple[Line, ...] = tuple(tuple(range(start, 16, 4)) for start in range(4))
BOXES: tuple[Line, ...] = tuple((c, c + 1, c + 4, c + 5) for c in (0, 2, 8, 10))

LATIN_WORDINGS = (
    "Complete the Latin square with the digits 1 to 4:\n{grid}",
    "Fill the blanks of this Latin square:\n{grid}",
    "{grid}\nComplete this Latin square.",
    "Every row and column holds 1 to 4 once. Fill in:\n{grid}",
)
SUDOKU_WORDINGS = (
    "Solve this sudoku of 4 by 4:\n{grid}",
    "Fill the blanks of this sudoku:\n{grid}",
    "{grid}\nSolve this sudoku.",
    "Every row, column and box holds 1 to 4 once. Fill in:\n{grid}",
)


def keeps(grid: Grid, lines: tuple[Line, ...]) -> bool:
    """Whether no line of a full grid holds a digit twice."""
    return all(len({grid[cell] for cell in line}) == 4 for line in lines)


def latin_squares(order: int) -> tuple[Grid, ...]:
    """All of them with the digits from 1, row by row: 12 of order 3, 576 of order 4."""
    return tuple(tuple(cell + 1 for cell in each) for each in answers("latin_square", order))


LATIN = latin_squares(4)
SUDOKU = tuple(grid for grid in LATIN if keeps(grid, BOXES))


def text(grid: Grid) -> str:
    """Four lines such as `1 _ 3 4`."""
    return "\n".join(" ".join(str(grid[cell] or "_") for cell in row) for row in ROWS)


def is_unique(solution: Grid, blanks: set[int], solutions: tuple[Grid, ...]) -> bool:
    """Whether `solution` is the only one of all `solutions` with its digits outside `blanks`."""
    clues = itemgetter(*(cell for cell in range(16) if cell not in blanks))
    return [clues(other) for other in solutions].count(clues(solution)) == 1


def draw(rng: random.Random, solutions: tuple[Grid, ...], blanks: int) -> tuple[Grid, Grid]:
    """A puzzle with that many blanks, and the one of `solutions` that solves it."""
    solution = rng.choice(solutions)
    chosen = set(rng.sample(range(16), blanks))
    # Only the blanks are drawn again: a new grid too would favour grids with many good blanks.
    while not is_unique(solution, chosen, solutions):
        chosen = set(rng.sample(range(16), blanks))
    return tuple(0 if cell in chosen else solution[cell] for cell in range(16)), solution


def dataset(
    name: str,
    sizes: tuple[int, ...],
    wordings: tuple[str, ...],
    solutions: tuple[Grid, ...],
) -> GeneratedDataset:
    """The puzzles that one of `solutions` completes."""

    def make(rng: random.Random, size: int) -> Sample:
        puzzle, solution = draw(rng, solutions, size)
        prompt = rng.choice(wordings).format(grid=text(puzzle))
        return Sample(prompt, text(solution), {"puzzle": [*puzzle]})

    return GeneratedDataset(name, "puzzles", sizes, make)


DATASETS: tuple[GeneratedDataset, ...] = (
    dataset("latin", (2, 3, 4, 5, 6), LATIN_WORDINGS, LATIN),
    dataset("sudoku", (2, 3, 4, 5, 6, 7), SUDOKU_WORDINGS, SUDOKU),
)
