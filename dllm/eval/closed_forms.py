"""Accuracies of a perfect model that decodes several tokens at once: exact values, by counting.

Source: ParallelBench (arXiv 2510.04767), section 4 and appendix A, for `copy`, `replace_random` in
one step and `shuffle`. Functions and tasks marked (derived) are ours, checked by enumeration.

n is the number of items given; a group is the number of positions that one step commits. Positions
are committed in uniformly random order, in `shuffle`, `replace_random` and `copy` the order does
not matter. Answers are judged as a member of the task's set, also the shuffle that changes nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

ONE_ANSWER = ("copy", "reverse", "sort", "replace_index", "insert_index", "remove_index")
TASKS = (
    *ONE_ANSWER,
    "shuffle",
    "replace_random",
    "insert_random",
    "remove_random",
    "latin_square",
)
LATIN_SQUARES = {1: 1, 2: 2, 3: 12, 4: 576, 5: 161280}  # by order


def positions(task: str, n: int) -> int:
    """Positions of the answer to a task of `n` items (latin_square: of order `n`)."""
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(TASKS)}")
    if n < 1:
        raise ValueError(f"n={n}: expected at least one item")
    if task == "latin_square":
        return n * n
    return n + task.startswith("insert") - task.startswith("remove")


def answers(task: str, n: int) -> Iterable[tuple[int, ...]]:
    """All right answers, which are equally likely. Items are 0 .. n - 1 in input order and a new
    one is n; tasks with one answer have 0, 1, ...; the rows of a square are one behind the other.
    """
    places = range(positions(task, n))
    items = tuple(range(n))
    match task:
        case "shuffle":
            return itertools.permutations(items)
        case "replace_random":
            return ((*items[:i], n, *items[i + 1 :]) for i in places)
        case "insert_random":
            return ((*items[:i], n, *items[i:]) for i in places)
        case "remove_random":
            return ((*items[:i], *items[i + 1 :]) for i in items)
        case "latin_square":
            return _squares(n)
    return [tuple(places)]


def correlation_bits(task: str, n: int) -> float:
    """Conditional total correlation C(Y|X) in bits: the least KL of decoding all in one step.

    insert_random, remove_random and latin_square are derived.
    """
    positions(task, n)
    match task:
        case "shuffle":
            return n * math.log2(n) - math.log2(math.factorial(n))
        case "replace_random":
            return (n - 1) * math.log2(n / (n - 1)) if n > 1 else 0.0
        case "insert_random":
            m = n + 1
            return sum(_bits(1 / m, i / m, (n - i) / m) for i in range(m)) - math.log2(m)
        case "remove_random":
            return sum(_bits(i / n, 1 - i / n) for i in range(1, n)) - math.log2(n)
        case "latin_square":
            return n * n * math.log2(n) - math.log2(_latin_squares(n))
    return 0.0


def accuracy(task: str, n: int, groups: Sequence[int]) -> float:
    """Probability that sampling at temperature 1 gives a right answer.

    replace_random in more than one step, insert_random, remove_random and latin_square are derived.
    latin_square is known in one step or one by one; ValueError for other groups.
    """
    steps = _steps(task, n, groups)
    if task in ONE_ANSWER:
        return 1.0
    if task == "shuffle":
        return math.prod(math.perm(m, s) / math.pow(m, s) for s, m in steps)
    if task == "replace_random":
        total, not_yet = 0.0, 1.0
        for s, m in steps:
            total += not_yet * s / m * ((m - 1) / m) ** (s - 1)
            not_yet *= ((m - 1) / m) ** s
        return total
    if task == "latin_square":
        if 1 < len(steps) < n * n:
            raise ValueError(f"groups={tuple(groups)}: expected one step, or one by one")
        return _latin_squares(n) / math.pow(n, n * n) if len(steps) == 1 else 1.0
    split = _split_insert if task == "insert_random" else _split_remove
    return _search(split, n + 1 if task == "insert_random" else n, tuple(steps))


def _steps(task: str, n: int, groups: Sequence[int]) -> list[tuple[int, int]]:
    """(group, positions left before it) of every step; ValueError unless the groups fit."""
    left = positions(task, n)
    if sum(groups) != left or any(s < 1 for s in groups):
        raise ValueError(f"groups={tuple(groups)}: expected positive numbers that sum to {left}")
    found = []
    for s in groups:
        found.append((s, left))
        left -= s
    return found


# Insert and remove at random: what is known of the place is an interval of `width` places, and
# every group of committed positions shrinks it to one side of each position. With `width` places an
# insertion has `width` open positions, a removal one less; all other positions are certain.
# split(width)[h][w] = sum over the sets of h open positions, of the probability that their draws
# agree and leave w places.
Split = Callable[[int], list[dict[int, float]]]


def _search(split: Split, width: int, steps: tuple[tuple[int, int], ...]) -> float:
    """Probability of a right answer with `width` places left and `steps` to come."""

    @cache
    def right(width: int, at: int) -> float:
        if at == len(steps):
            return 1.0
        s, m = steps[at]
        ways = split(width)
        certain = m - (len(ways) - 1)
        return sum(
            # h of the s committed positions are open ones, whose sets are summed in `ways`
            math.comb(certain, s - h)
            / math.comb(m, s)
            * sum(weight * right(left, at + 1) for left, weight in ways[h].items())
            for h in range(min(s, len(ways) - 1) + 1)
            if s - h <= certain
        )

    return right(width, 0)


@cache
def _split_insert(width: int) -> list[dict[int, float]]:
    """Open positions 0 .. width - 1; position j is the place, or says it is later or earlier."""
    later = [(width - 1 - j) / width for j in range(width)]
    earlier = [j / width for j in range(width)]
    found: list[dict[int, float]] = [{} for _ in range(width + 1)]
    for j in range(width):
        _add(found, 1, [0.0, 1 / width], _sets(later[:j]), _sets(earlier[j + 1 :]))
    for lo in range(width):
        for hi in range(lo, width):
            _add(found, hi - lo + 1, _closed(later[:lo]), _closed(earlier[hi + 1 :][::-1]))
    return found


@cache
def _split_remove(width: int) -> list[dict[int, float]]:
    """Open positions 0 .. width - 2; position j says: the place is behind j, or at j or before."""
    later = [(width - 1 - j) / width for j in range(width - 1)]
    earlier = [(j + 1) / width for j in range(width - 1)]
    found: list[dict[int, float]] = [{} for _ in range(width)]
    for lo in range(width):
        for hi in range(lo, width):  # the places left; positions lo .. hi - 1 stay open
            _add(found, hi - lo + 1, _closed(later[:lo]), _closed(earlier[hi:][::-1]))
    return found


def _sets(weights: Sequence[float]) -> list[float]:
    """Elementary symmetric polynomials: entry k sums the products of every k of `weights`."""
    found = [1.0]
    for weight in weights:
        found = [a + weight * b for a, b in zip([*found, 0.0], [0.0, *found], strict=True)]
    return found


def _closed(weights: Sequence[float]) -> list[float]:
    """`_sets` with the last of `weights` taken: next to the interval (none at the end)."""
    if not weights:
        return [1.0]
    return [0.0, *(weights[-1] * product for product in _sets(weights[:-1]))]


def _add(found: list[dict[int, float]], left: int, *polynomials: list[float]) -> None:
    """Add the product of `polynomials` to the ways that leave `left` places."""
    product = [1.0]
    for polynomial in polynomials:
        longer = [0.0] * (len(product) + len(polynomial) - 1)
        for i, a in enumerate(product):
            for j, b in enumerate(polynomial):
                longer[i + j] += a * b
        product = longer
    for h, weight in enumerate(product):
        if weight:
            found[h][left] = found[h].get(left, 0.0) + weight


def _bits(*distribution: float) -> float:
    """Entropy in bits."""
    return -sum(p * math.log2(p) for p in distribution if p > 0)


def _squares(order: int) -> list[tuple[int, ...]]:
    """All latin squares, built row by row."""
    squares: list[tuple[int, ...]] = [()]
    for _ in range(order):
        squares = [
            (*square, *row)
            for square in squares
            for row in itertools.permutations(range(order))
            if all(row[column] not in square[column::order] for column in range(order))
        ]
    return squares


def _latin_squares(order: int) -> int:
    if order not in LATIN_SQUARES:
        raise ValueError(f"n={order}: latin squares are counted for n in {list(LATIN_SQUARES)}")
    return LATIN_SQUARES[order]
