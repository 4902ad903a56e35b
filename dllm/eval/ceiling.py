"""Ceilings: the chance of a perfect model with the very commits that a run made (derived).

What a run loses splits at this number: 1 - chance is lost by committing dependent items together,
chance - score by the model. Exact, by walking through the right answers; no torch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain

from dllm.eval.closed_forms import ONE_ANSWER, accuracy, answers, positions

Answer = tuple[int, ...]
Sets = tuple[tuple[int, ...], ...]

LARGEST_SQUARE = 4  # order of the squares that are walked through: 576, of order 5 161,280


def chance(
    form: str, n: int, sets: Sequence[Sequence[int]], temperature: float = 1.0
) -> float | None:
    """Probability of a right answer when every decision draws one of `sets` of items (0, 1, ...).

    The items of a set are drawn independently, each from its true distribution given the sets
    before it, at `temperature` (0: the likeliest symbol, ties broken at random in every item).
    form, n: a task of `closed_forms`; a shuffle has to change the order. None for latin squares
    above order 4. Raises ValueError unless `sets` hold every item of the answer once.
    """
    size = positions(form, n)
    placed = sorted(chain(*sets))
    if not all(sets) or len(placed) != size or placed != list(range(size)):
        raise ValueError(
            f"sets={[list(items) for items in sets]}: expected non-empty sets that hold each of "
            f"the {size} items of {form} n={n} once"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature}: expected a finite number of at least 0")
    if form in ONE_ANSWER:
        return 1.0
    if form == "shuffle":  # the same at every temperature: all that is left is equally likely
        changed = 1 - 1 / math.factorial(n)
        return accuracy(form, n, [len(items) for items in sets]) * changed
    if form == "latin_square" and n > LARGEST_SQUARE:
        return None
    return _chance(form, n, tuple(tuple(sorted(items)) for items in sets), float(temperature))


@lru_cache(maxsize=2**16)
def _chance(form: str, n: int, sets: Sets, temperature: float) -> float:
    return min(1.0, _right(_support(form, n), sets, temperature))  # rounding may pass 1


@cache
def _support(form: str, n: int) -> list[Answer]:
    return list(answers(form, n))


def _right(support: list[Answer], sets: Sets, temperature: float) -> float:
    """Probability that drawing `sets` ends in `support`, the right answers that are still open."""
    if len(support) == 1:
        return 1.0
    drawn, *later = sets
    distributions = [
        _tempered(Counter(answer[i] for answer in support), temperature) for i in drawn
    ]
    agreeing: defaultdict[Answer, list[Answer]] = defaultdict(list)
    for answer in support:
        agreeing[tuple(answer[i] for i in drawn)].append(answer)
    total = 0.0
    for symbols, open_ in agreeing.items():
        weight = math.prod(
            distribution[symbol]
            for distribution, symbol in zip(distributions, symbols, strict=True)
        )
        if weight:
            total += weight * _right(open_, tuple(later), temperature)
    return total


def _tempered(counts: Counter[int], temperature: float) -> dict[int, float]:
    """The distribution of a symbol that `counts` of the equally likely answers have, at
    `temperature`.
    """
    most = max(counts.values())
    if temperature:
        weights = {symbol: (c / most) ** (1 / temperature) for symbol, c in counts.items()}
    else:
        weights = {symbol: float(c == most) for symbol, c in counts.items()}
    total = sum(weights.values())
    return {symbol: weight / total for symbol, weight in weights.items()}
