"""Facts in sentences to structured text: a JSON object, JSON records, a table, a Python function.

The answer repeats what the prompt says in the prompt's order, so that a tiny model can learn the
form and copy the content.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from string import Formatter
from textwrap import indent

from dllm.eval.tasks.base import Sample
from dllm.eval.tasks.datasets.base import GeneratedDataset

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


def make_json(rng: random.Random, size: int) -> Sample:
    facts, [record] = draw(rng, rng.choice(BY_KEYS[size]), 1)
    return Sample(rng.choice(JSON_WORDINGS).format(facts=facts), json.dumps(record))


def make_records(rng: random.Random, size: int) -> Sample:
    facts, records = draw(rng, rng.choice(BY_KEYS[2] + BY_KEYS[3]), size)
    answer = "[" + ",\n ".join(json.dumps(record) for record in records) + "]"
    return Sample(rng.choice(RECORDS_WORDINGS).format(facts=facts), answer)


def make_table(rng: random.Random, size: int) -> Sample:
    sentence = rng.choice(SENTENCES)
    facts, records = draw(rng, sentence, size)
    keys = keys_of(sentence)
    rows = [keys, ["---"] * len(keys), *(record.values() for record in records)]
    answer = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    return Sample(rng.choice(TABLE_WORDINGS).format(facts=facts), answer)


def make_function(rng: random.Random, size: int) -> Sample:
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
    return Sample(prompt, code)


DATASETS: tuple[GeneratedDataset, ...] = (
    GeneratedDataset("json", "structured", (2, 3, 4), make_json),
    GeneratedDataset("records", "structured", (1, 2, 3), make_records),
    GeneratedDataset("table", "structured", (1, 2, 3, 4, 5, 6), make_table),
    GeneratedDataset("function", "structured", (1, 2, 3), make_function),
)
