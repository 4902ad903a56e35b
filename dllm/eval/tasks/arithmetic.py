"""Word problems of 1 to 4 steps; the answer shows one calculation per line, then the result."""

from __future__ import annotations

import random
import re

from dllm.eval.tasks.base import Example, Task

NAMES = tuple(
    "Ada Ali Ana Ben Eva Finn Gus Ida Ivan Jack Kim Lena Leo Mia Nina Noah Omar Pia Rosa Sam Tom "
    "Uma Vera Zoe".split()
)
THINGS = tuple(
    "apples balls books cards coins cookies cups eggs keys marbles nuts pens plums shells stamps "
    "stones".split()
)
LARGEST = 99  # every intermediate result is a whole number from 1 to this

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


def _operand(rng: random.Random, value: int, op: str) -> int | None:
    """An operand that keeps the result between 1 and LARGEST, or None where there is none."""
    if op == "+":
        top = min(30, LARGEST - value)
        return rng.randint(1, top) if top >= 1 else None
    if op == "-":
        return rng.randint(1, min(30, value - 1)) if value >= 2 else None
    top = min(5, LARGEST // value)
    return rng.randint(2, top) if top >= 2 else None


def make(rng: random.Random, size: int) -> Example:
    name, who = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    value = rng.randint(2, 40)
    text = [rng.choice(OPENINGS).format(name=name, n=value, thing=thing)]
    lines = []
    while len(lines) < size:
        op = rng.choice("++--*")
        n = _operand(rng, value, op)
        if n is None:
            continue
        sentence = rng.choice(SENTENCES[op]).format(n=n, who=who)
        text.append(f"{name} {sentence}.")
        result = value + n if op == "+" else value - n if op == "-" else value * n
        lines.append(f"{value} {op} {n} = {result}")
        value = result
    text.append(rng.choice(QUESTIONS).format(name=name, thing=thing))
    lines.append(f"Answer: {value}")
    return Example("word_problem", " ".join(text), "\n".join(lines), {"result": value})


def grade(example: Example, reply: str) -> str:
    """Every line must be the right calculation; the reason says where the first fault lies."""
    if reply.strip() == example.answer:
        return "ok"
    final = re.search(r"Answer: (\d+)\s*$", reply)
    if final is None:
        return "parse"
    return "arithmetic" if int(final[1]) != example.facts["result"] else "steps"


TASKS: tuple[Task, ...] = (
    Task("word_problem", "word problems", sizes=(1, 2, 3, 4), make=make, grade=grade),
)
