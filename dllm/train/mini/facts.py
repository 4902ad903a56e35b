"""Short facts about people and things: to JSON, table, CSV and back, extracted, asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dllm.eval.tasks.datasets.structured import capital, keys_of
from dllm.train.mini.dialogue import Dialogue, Turn, ask, pick, sloppy
from dllm.train.mini.words import WordSource

Record = dict[str, str]

PEOPLE = ("{name} is {age} years old", "{name} is a {job}", "{name} lives in {city}",
          "{name} likes {food}", "{name} is {age} and lives in {city}",
          "{name} is a {job} in {city}", "{name} is {age} years old and likes {food}",
          "{name}, a {job}, is {age} years old",
          "{name} is a {job}, {age} years old and lives in {city}",
          "{name} is {age}, lives in {city} and likes {food}",
          "{name} from {city} is a {job} and likes {food}", "{name} ({age}) lives in {city}",
          "{name} is from {city}", "{name} has a {pet}", "{name} works as a {job} in {city}",
          "{name} is {age} and has a {pet}")  # fmt: skip
THINGS = ("the {item} costs {price} dollars", "the {item} is {color} and costs {price} dollars",
          "the {item} is {color}", "the {item} from {city} is {color} and costs {price} dollars",
          "the {color} {item} costs {price} dollars",
          "the {item} costs {price} dollars and is from {city}")  # fmt: skip
KINDS: dict[str, Callable[[WordSource], str]] = {
    "name": WordSource.name,
    "city": WordSource.city,
    **dict.fromkeys(("job", "food", "pet", "item", "color"), WordSource.word),
    "age": lambda words: str(words.number(1, 99)),
    "price": lambda words: str(words.number(1, 999)),
}
NUMBERS = ("age", "price")

JSON = ("Turn into JSON", "Write as JSON", "Make JSON", "Convert to JSON", "Write as a JSON object",
        "Give this as JSON", "JSON", "Turn this sentence into JSON")  # fmt: skip
TABLE = ("Make a table", "Turn into a markdown table", "Write as a table", "Give this as a table",
         "Put this into a table", "Table")  # fmt: skip
CSV = ("Turn into CSV", "Write as CSV", "Make CSV", "Convert to CSV", "Give this as CSV", "CSV")
PAIRS = ("Write as key: value lines", "Turn into key: value pairs", "Write one fact per line",
         "List the keys and values")  # fmt: skip


def records(words: WordSource, sentence: str, count: int) -> list[Record]:
    """`count` records of a sentence's keys, told apart by the first one."""
    first, *others = keys_of(sentence)
    subjects = words.different(lambda: KINDS[first](words), count)
    return [{first: subject} | {key: KINDS[key](words) for key in others} for subject in subjects]


def told(rng: random.Random, sentence: str, found: Sequence[Record]) -> str:
    """The records as text."""
    clauses = [sentence.format(**record) for record in found]
    join = rng.choice(("; ", ". ", ".\n"))
    if join != "; ":
        clauses = [capital(clause) for clause in clauses]
    text = join.join(clauses)
    return (capital(text) if rng.random() < 0.9 else text) + ("." if rng.random() < 0.8 else "")


def _json_value(key: str, value: str) -> str:
    return value if key in NUMBERS else f'"{value}"'


def as_json(found: Sequence[Record]) -> str:
    """An object, or a list of objects a line each."""
    objects = [
        "{"
        + ", ".join(f'"{key}": {_json_value(key, value)}' for key, value in record.items())
        + "}"
        for record in found
    ]
    return objects[0] if len(objects) == 1 else "[" + ",\n ".join(objects) + "]"


def as_table(found: Sequence[Record]) -> str:
    keys = list(found[0])
    lines = [keys, ["---"] * len(keys), *([record[key] for key in keys] for record in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_csv(found: Sequence[Record]) -> str:
    return "\n".join(",".join(line) for line in (list(found[0]), *(r.values() for r in found)))


def as_pairs(found: Sequence[Record]) -> str:
    return "\n".join(f"{key}: {value}" for record in found for key, value in record.items())


FORMS = {"json": (JSON, as_json), "table": (TABLE, as_table), "csv": (CSV, as_csv),
         "pairs": (PAIRS, as_pairs)}  # fmt: skip
THEN = {
    "json": ("make it JSON", "now as JSON", "as JSON", "turn it into JSON"),
    "table": ("make it a table", "now as a table", "as a table", "put it into a table"),
    "csv": ("make it CSV", "now as CSV", "as CSV", "turn it into CSV"),
    "pairs": ("as key: value lines", "one fact per line"),
}


def make(
    words: WordSource,
    forms: Sequence[str],
    count: Sequence[int] = (1, 2, 3),
    turns: int = 1,
) -> Dialogue:
    """Facts in one of the `forms`, told in sentences or another form; further turns change it."""
    rng = words.rng
    form = rng.choice(forms)
    sentence = rng.choice(PEOPLE if rng.random() < 0.7 else THINGS)
    size = 1 if form == "pairs" else rng.choice(count)
    if size > 1 or form in ("table", "csv"):
        while len(keys_of(sentence)) < 2:
            sentence = rng.choice(PEOPLE if rng.random() < 0.7 else THINGS)
    found = records(words, sentence, size)
    source = told(rng, sentence, found)
    if rng.random() < 0.25:
        other = rng.choice(
            [each for each in FORMS if each != form and (each != "pairs" or size == 1)]
        )
        source = FORMS[other][1](found)
    wordings, write = FORMS[form]
    said: list[Turn] = [(ask(rng, pick(rng, wordings), source, write(found)), write(found))]
    for _ in range(turns - 1):
        if rng.random() < 0.5:
            form = rng.choice(
                [each for each in FORMS if each != form and (each != "pairs" or size == 1)]
            )
            text = pick(rng, THEN[form])
        else:
            record = rng.choice(found)
            first, *others = record
            if not others:
                break
            key = rng.choice(others)
            record[key] = KINDS[key](words)
            text = pick(rng, ("Change the {k} of {s} to {v}", "the {k} of {s} is {v}",
                              "set the {k} of {s} to {v}")
                        if size > 1 else ("Change the {k} to {v}", "Set {k} to {v}",
                                          "the {k} is {v}"),
                        k=key, s=record[first], v=record[key])  # fmt: skip
        answer = FORMS[form][1](found)
        said.append((sloppy(rng, text, f"{said} {answer}"), answer))
    return Dialogue(form if len(said) == 1 else "fact turns", tuple(said))


ABOUT = {
    "city": ("Where does {s} live?", "Which city does {s} live in?"), "age": ("How old is {s}?",),
    "job": ("What is the job of {s}?", "What does {s} do?"), "food": ("What does {s} like?",),
    "pet": ("Which pet does {s} have?", "What does {s} have?"),
    "price": ("How much does the {s} cost?", "What does the {s} cost?"),
    "color": ("Which color is the {s}?", "What color is the {s}?"),
}  # fmt: skip


def make_question(words: WordSource) -> Dialogue:
    """A question about one of two or three facts that stand before it."""
    rng = words.rng
    count = rng.choice((1, 2, 2, 3))
    if rng.random() < 0.5:
        things = words.different(words.word, count)
        keys = words.different(words.word, count if rng.random() < 0.5 else 1) * count
        values = [words.word() if rng.random() < 0.7 else str(words.number(1, 999)) for _ in things]
        facts = [f"The {k} of the {t} is {v}" for k, t, v in zip(keys, things, values)]
        at = rng.randrange(count)
        question = f"What is the {keys[at]} of the {things[at]}?"
        answer = values[at]
    else:
        sentence = rng.choice([each for each in (*PEOPLE, *THINGS) if len(keys_of(each)) > 1
                               and not each.startswith("the {color}")])  # fmt: skip
        found = records(words, sentence, count)
        facts = [capital(sentence.format(**record)) for record in found]
        record, key = rng.choice(found), rng.choice(keys_of(sentence)[1:])
        subject, answer = record[keys_of(sentence)[0]], record[key]
        general = (
            ("What is the {k} of {s}?",) if "name" in record else ("What is the {k} of the {s}?",)
        )
        wordings = (*ABOUT[key], *general)
        if key == "city" and "name" not in record:
            wordings = ("Where is the {s} from?",)
        question = pick(rng, wordings, k=key, s=subject)
    text = ". ".join(facts) + "."
    prompt = f"{text} {question}" if rng.random() < 0.8 else f"{question} {text}"
    return Dialogue("question", ((prompt, answer),))


def make_extraction(words: WordSource) -> Dialogue:
    """The names, cities or numbers of a text, in its order."""
    rng = words.rng
    kind = rng.choice(("names", "numbers", "cities"))
    key = {"names": "name", "numbers": "age", "cities": "city"}[kind]
    sentences = [each for each in PEOPLE if key in keys_of(each)]
    chosen = [rng.choice(sentences) for _ in range(rng.choice((1, 2, 2, 3)))]
    found = [records(words, sentence, 1)[0] for sentence in chosen]
    text = ". ".join(sentence.format(**record) for sentence, record in zip(chosen, found)) + "."
    wordings = ("Extract the {k}", "List the {k}", "Which {k} are in this text", "Find the {k}",
                "Which {k} are mentioned", "Get all {k}")  # fmt: skip
    answer = ", ".join(record[key] for record in found)
    return Dialogue("extract", ((ask(rng, pick(rng, wordings, k=kind), text, answer), answer),))


TEMPLATES = ("Dear {name}, welcome to {city}!", "Hello {name}, your {item} costs {price} dollars.",
             "{name} ordered a {item} for {price} dollars.",
             "Dear {name}, your {item} is ready in {city}.",
             "My name is {name}, I am {age} years old and I live in {city}.",
             "{name} is a {job} from {city}.", "The {color} {item} is for {name}.")  # fmt: skip


def make_template(words: WordSource) -> Dialogue:
    """A template with places in braces, and what goes there."""
    rng = words.rng
    template = rng.choice(TEMPLATES)
    values = {key: KINDS[key](words) for key in keys_of(template)}
    given = list(values.items())
    rng.shuffle(given)
    filled = ", ".join(f"{key}{rng.choice(('=', ' = ', ': '))}{value}" for key, value in given)
    said = pick(
        rng, ("Fill in the template", "Fill in", "Complete the template", "Use the template")
    )
    prompt = f"{sloppy(rng, said)}: {template}\n{filled}"
    return Dialogue("template", ((prompt, template.format(**values)),))
