"""Facts in sentences to structured text: a JSON object, JSON records, a table, a Python function.

The answer repeats what the prompt says in the prompt's order, so that a tiny model can learn the
form and copy the content.
"""

from __future__ import annotations

import ast
import json
import random
import re
import warnings
from collections.abc import Sequence
from string import Formatter
from textwrap import indent
from typing import Any

from dllm.eval.tasks.datasets.base import Example, Task

Record = dict[str, str | int]

WORDS = {
    "name": "Tom Ann Ben Eva Max Lea Sam Ida Leo Mia Jon Zoe Kim Ray Amy Dan Nia Omar Ravi Lina "
    "Hugo Yuki Ines Karl",
    "job": "baker teacher doctor farmer painter singer pilot nurse writer driver gardener cook",
    "city": "Oslo Rome Paris Lima Cairo Delhi Tokyo Berlin Madrid Dublin Vienna Athens Quito Seoul "
    "Boston Lagos",
    "food": "rice soup bread pasta cheese salad pizza honey beans fish cake curry",
    "item": "lamp chair plate clock shirt book cup bag coat ball desk hat",
    "color": "red blue green black white yellow brown pink",
}
VALUES: dict[str, Sequence[str | int]] = {
    **{key: words.split() for key, words in WORDS.items()},
    "age": range(18, 91),
    "price": range(2, 100),
}

SENTENCES = (
    "{name} is {age} years old",
    "{name} is a {job}",
    "{name} lives in {city}",
    "{name} likes {food}",
    "the {item} costs {price} dollars",
    "{name} is {age} and lives in {city}",
    "{name} is a {job} in {city}",
    "{name} is {age} years old and likes {food}",
    "{name}, a {job}, is {age} years old",
    "the {item} is {color} and costs {price} dollars",
    "{name} is a {job}, {age} years old and lives in {city}",
    "{name} is {age}, lives in {city} and likes {food}",
    "{name} from {city} is a {job} and likes {food}",
    "the {item} from {city} is {color} and costs {price} dollars",
)


def keys_of(sentence: str) -> tuple[str, ...]:
    """The keys that a sentence fills, in its order: they are the answer's keys too."""
    return tuple(key for _, key, _, _ in Formatter().parse(sentence) if key)


BY_KEYS = {n: tuple(s for s in SENTENCES if len(keys_of(s)) == n) for n in (2, 3, 4)}

JSON_WORDINGS = (
    "Turn into JSON: {facts}",
    "Write as a JSON object: {facts}",
    "{facts}\nGive this as JSON.",
    "Make JSON of this sentence:\n{facts}",
)
RECORDS_WORDINGS = (
    "Turn into a JSON list: {facts}",
    "Write as a list of JSON objects: {facts}",
    "{facts}\nGive this as a JSON list.",
    "Make JSON records of this:\n{facts}",
)
TABLE_WORDINGS = (
    "Make a table: {facts}",
    "Turn into a markdown table: {facts}",
    "{facts}\nGive this as a table.",
    "Write these facts as a table:\n{facts}",
)
FUNCTION_WORDINGS = (
    "Write a Python function named {name} that {does}.",
    "Define {name}({parameters}) in Python: it {does}.",
    "Write Python code for {name}({parameters}), which {does}.",
    "{name}({parameters}) {does}. Write it in Python.",
)

FUNCTIONS = ("scale", "total", "clip", "shift", "blend", "score", "limit", "grow", "mix", "rate")
PARAMETERS = ("x", "y", "z", "k", "p", "q", "width", "height", "weight", "count")
BODIES = {  # size -> (what it does, its lines); x and y are parameters, n and m numbers
    1: (
        ("multiplies {x} by {n}", "return {x} * {n}"),
        ("divides {x} by {n}", "return {x} / {n}"),
        ("returns {x} plus {n}", "return {x} + {n}"),
        ("returns {x} minus {n}", "return {x} - {n}"),
    ),
    2: (
        ("adds {x} and {y}", "return {x} + {y}"),
        ("multiplies {x} by {y}", "return {x} * {y}"),
        ("returns {x} minus {y}", "return {x} - {y}"),
        ("multiplies {x} by {y} and adds {n}", "return {x} * {y} + {n}"),
        ("adds {x} and {y} and multiplies by {n}", "return ({x} + {y}) * {n}"),
    ),
    3: (
        (
            "returns {n} if {x} is greater than {n}, otherwise {x}",
            "if {x} > {n}:\n    return {n}\nreturn {x}",
        ),
        (
            "returns {m} if {x} is less than {n}, otherwise {x}",
            "if {x} < {n}:\n    return {m}\nreturn {x}",
        ),
        (
            "returns {x} if {x} is greater than {y}, otherwise {y}",
            "if {x} > {y}:\n    return {x}\nreturn {y}",
        ),
        (
            "returns {x} plus {n} if {x} is less than {y}, otherwise {y}",
            "if {x} < {y}:\n    return {x} + {n}\nreturn {y}",
        ),
    ),
}


def capital(clause: str) -> str:
    return clause[0].upper() + clause[1:]


def draw(rng: random.Random, sentence: str, count: int) -> tuple[str, list[Record]]:
    """Text that says `sentence` of `count` subjects, and what it says; no subject comes twice."""
    subject, *others = keys_of(sentence)
    records: list[Record] = [
        {subject: first} | {key: rng.choice(VALUES[key]) for key in others}
        for first in rng.sample(VALUES[subject], count)
    ]
    clauses = [sentence.format(**record) for record in records]
    join = rng.choice(("; ", ". ", ".\n"))
    if join != "; ":
        clauses = [capital(clause) for clause in clauses]
    return capital(join.join(clauses)) + ".", records


def read_json(reply: str) -> Any:
    """The value of a JSON text; ValueError if it is none or an object holds a key twice."""

    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    try:
        return json.loads(reply, object_pairs_hook=without_twins)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def grade_records(gold: list[Any], given: list[Any]) -> str:
    if not all(isinstance(record, dict) for record in given):
        return "parse"
    if len(given) != len(gold):
        return "rows"
    if any(want.keys() != record.keys() for want, record in zip(gold, given)):
        return "keys"
    same = all(
        type(record[key]) is type(value) and record[key] == value  # to ==, 1 is 1.0 and true
        for want, record in zip(gold, given)
        for key, value in want.items()
    )
    return "ok" if same else "values"


def make_json(rng: random.Random, size: int) -> Example:
    facts, [record] = draw(rng, rng.choice(BY_KEYS[size]), 1)
    return Example("json", rng.choice(JSON_WORDINGS).format(facts=facts), json.dumps(record))


def grade_json(example: Example, reply: str) -> str:
    try:
        return grade_records([json.loads(example.answer)], [read_json(reply)])
    except ValueError:
        return "parse"


def make_records(rng: random.Random, size: int) -> Example:
    facts, records = draw(rng, rng.choice(BY_KEYS[2] + BY_KEYS[3]), size)
    answer = "[" + ",\n ".join(json.dumps(record) for record in records) + "]"
    return Example("records", rng.choice(RECORDS_WORDINGS).format(facts=facts), answer)


def grade_list(example: Example, reply: str) -> str:
    try:
        given = read_json(reply)
    except ValueError:
        return "parse"
    return grade_records(json.loads(example.answer), given) if isinstance(given, list) else "parse"


def make_table(rng: random.Random, size: int) -> Example:
    sentence = rng.choice(SENTENCES)
    facts, records = draw(rng, sentence, size)
    keys = keys_of(sentence)
    rows = [keys, ["---"] * len(keys), *(record.values() for record in records)]
    answer = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    return Example("table", rng.choice(TABLE_WORDINGS).format(facts=facts), answer)


def cells(table: str) -> list[list[str]] | None:
    """Header and rows of a markdown table without its rule; None if the text is no table."""
    lines = [line.strip() for line in table.strip().split("\n")]
    if not all(len(line) > 1 and line[0] == line[-1] == "|" for line in lines):
        return None
    header, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    if not rows or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[0]):
        return None
    return [header, *rows[1:]] if len(header) == len(rows[0]) else None


def grade_table(example: Example, reply: str) -> str:
    gold, given = cells(example.answer), cells(reply)
    if gold is None or given is None:
        return "parse"
    if given[0] != gold[0]:
        return "header"
    if len(given) != len(gold):
        return "rows"
    return "ok" if given == gold else "cells"


def make_function(rng: random.Random, size: int) -> Example:
    does, body = rng.choice(BODIES[size])
    x, y = rng.sample(PARAMETERS, 2)
    n, m = rng.sample(range(2, 100), 2)
    names = {"x": x, "y": y, "n": n, "m": m}
    name = rng.choice(FUNCTIONS)
    parameters = f"{x}, {y}" if "{y}" in does else x
    prompt = rng.choice(FUNCTION_WORDINGS).format(
        name=name, parameters=parameters, does=does.format(**names)
    )
    code = f"def {name}({parameters}):\n" + indent(body.format(**names), "    ")
    return Example("function", prompt, code)


def tree(code: str) -> str:
    """The syntax tree as text, free of layout and comments; the code never runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser remarks on text such as `9if x`
        return ast.dump(ast.parse(code))


def grade_function(example: Example, reply: str) -> str:
    try:
        given = tree(reply.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "parse"
    return "ok" if given == tree(example.answer) else "tree"


TASKS: tuple[Task, ...] = (
    Task("json", "structured", (2, 3, 4), make_json, grade_json),
    Task("records", "structured", (1, 2, 3), make_records, grade_list),
    Task("table", "structured", (1, 2, 3, 4, 5, 6), make_table, grade_table),
    Task("function", "structured", (1, 2, 3), make_function, grade_function),
)
