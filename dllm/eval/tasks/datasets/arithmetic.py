"""Word problems of 1 to 4 steps, whose answer shows one calculation per line, then the result.

Single calculations come as a task of their own: inside a word problem a result stands again in the
next line, so that a masked model mostly learns to copy it.
"""

from __future__ import annotations

import random

from dllm.eval.tasks.base import Sample
from dllm.eval.tasks.datasets.base import GeneratedDataset

NAMES = tuple(
    "Ada Ali Ana Ben Eva Finn Gus Ida Ivan Jack Kim Lena Leo Mia Nina Noah Omar Pia Rosa Sam Tom "
    "Uma Vera Zoe".split()
)
THINGS = tuple(
    "apples balls books cards coins cookies cups eggs keys marbles nuts pens plums shells stamps "
    "stones".split()
)
LARGEST = 20  # every intermediate result is a whole number from 1 to this
OPERANDS = {"+": 9, "-": 9, "*": 3}  # the largest operand by operation

# Sentences by operation; {n} is the operand, {who} another person.
SENTENCES: dict[str, tuple[str, ...]] = {
    "+": (
        "buys {n} more",
        "finds {n} more",
        "gets {n} from {who}",
        "wins {n}",
        "picks up {n} more",
    ),
    "-": ("gives {n} to {who}", "loses {n}", "sells {n}", "throws away {n}", "gives away {n}"),
    "*": ("then has {n} times as many", "makes that {n} times as many"),
}
OPENINGS = ("{name} has {n} {thing}.", "{name} starts with {n} {thing}.")
QUESTIONS = (
    "How many {thing} does {name} have now?",
    "How many {thing} are there in the end?",
    "How many {thing} does that make?",
)

CALCULATIONS = ("What is {sum}?", "Calculate {sum}.", "{sum} = ?", "How much is {sum}?")


def _operand(rng: random.Random, value: int, op: str) -> int | None:
    """An operand that keeps the result between 1 and LARGEST, or None where there is none."""
    limit = {"+": LARGEST - value, "-": value - 1, "*": LARGEST // value}[op]
    least, most = 2 if op == "*" else 1, min(OPERANDS[op], limit)
    return rng.randint(least, most) if least <= most else None


def _result(value: int, op: str, n: int) -> int:
    return value + n if op == "+" else value - n if op == "-" else value * n


def make_word_problem(rng: random.Random, size: int) -> Sample:
    name, who = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    value = rng.randint(2, 15)
    text = [rng.choice(OPENINGS).format(name=name, n=value, thing=thing)]
    lines: list[str] = []
    while len(lines) < size:
        op = rng.choice("++--*")
        n = _operand(rng, value, op)
        if n is None:
            continue
        sentence = rng.choice(SENTENCES[op]).format(n=n, who=who)
        text.append(f"{name} {sentence}.")
        lines.append(f"{value} {op} {n} = {_result(value, op, n)}")
        value = _result(value, op, n)
    text.append(rng.choice(QUESTIONS).format(name=name, thing=thing))
    lines.append(f"Answer: {value}")
    return Sample(" ".join(text), "\n".join(lines), {"result": value})


def make_calculation(rng: random.Random, size: int) -> Sample:
    """One calculation on a number of `size` digits."""
    while True:
        value = rng.randint(1, 9) if size == 1 else rng.randint(10, LARGEST)
        op = rng.choice("++--*")
        n = _operand(rng, value, op)
        if n is not None:
            sum_ = f"{value} {op} {n}"
            prompt = rng.choice(CALCULATIONS).format(sum=sum_)
            return Sample(prompt, f"{sum_} = {_result(value, op, n)}")


DATASETS: tuple[GeneratedDataset, ...] = (
    GeneratedDataset("word_problem", "word problems", (1, 2, 3, 4), make_word_problem),
    GeneratedDataset("calculation", "calculation", (1, 2), make_calculation),
)
