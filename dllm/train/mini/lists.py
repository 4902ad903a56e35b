"""What can be asked of a list, at once or turn by turn: each operation has one right answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dllm.train.mini.dialogue import Dialogue, Turn, ask, pick, sloppy
from dllm.train.mini.words import WordSource

Items = list[str]
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
            "tenth", "eleventh", "twelfth")  # fmt: skip
SEPARATORS = {
    "semicolons": "; ", "a semicolon": "; ", "dashes": " - ", "slashes": " / ", "spaces": " ",
    "plus signs": " + ", "a plus sign": " + ", "the word and": " and ", "the word or": " or ",
    "line breaks": "\n", "stars": " * ", "commas": ", ",
}  # fmt: skip


@dataclass(frozen=True)
class ListRequest:
    """An operation on a list: instruction with the list, instruction on what was just said, the
    text of the answer, and the list that stands from now on (None: the one before).
    """

    first: str
    then: str
    answer: str
    items: Items | None


def commas(items: Sequence[str]) -> str:
    return ", ".join(items)


def _copy(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    first = pick(rng, ("Copy the list", "Repeat the list", "Write the list again", "Copy",
                       "Say the same items", "Repeat these words", "Copy this list",
                       "Write down this list", "Repeat after me"))  # fmt: skip
    return ListRequest(first, pick(rng, ("say it again", "Repeat it", "once more", "Copy it")),
                 commas(items), items)  # fmt: skip


def _reverse(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    first = pick(rng, ("Reverse the list", "Write the list backwards", "Reverse",
                       "Reverse this list", "List the items in reverse order",
                       "Turn the list around", "Reverse the order of",
                       "Put these in reverse order"))  # fmt: skip
    then = pick(rng, ("now reverse it", "Reverse it", "and backwards", "Turn it around",
                      "Now backwards", "reverse the list", "in reverse order"))  # fmt: skip
    found = items[::-1]
    return ListRequest(first, then, commas(found), found)


def _sort(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    down = rng.random() < 0.2
    if all(item.isdigit() for item in items):
        found = sorted(items, key=int, reverse=down)
        first = pick(rng, ("Sort from largest to smallest", "Sort the numbers in descending order",
                           "Sort descending") if down else
                     ("Sort the numbers", "Sort from smallest to largest", "Sort the list", "Sort",
                      "Sort the numbers in ascending order", "Order these numbers"))  # fmt: skip
        then = pick(rng, ("from largest to smallest", "sort it in descending order") if down else
                    ("now sort it", "Sort it", "from smallest to largest",
                     "sort them"))  # fmt: skip
    else:
        found = sorted(items, key=str.lower, reverse=down)
        first = pick(rng, ("Sort the list from z to a", "Sort in descending order",
                           "Sort the words from z to a") if down else
                     ("Sort the list", "Sort the items alphabetically", "Sort", "Sort this list",
                      "Put the list in alphabetical order", "Order the items from a to z",
                      "Sort these words", "Alphabetize", "Sort alphabetically"))  # fmt: skip
        then = pick(rng, ("from z to a", "sort it from z to a") if down else
                    ("now sort it", "Sort it", "sort them", "in alphabetical order",
                     "now alphabetically", "Sort the list"))  # fmt: skip
    return ListRequest(first, then, commas(found), found)


def _replace(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    i, new = rng.randrange(len(items)), _another(words, items)
    first = pick(rng, ("Replace item {i} with {x}", "Change item {i} to {x}",
                       "Swap item {i} for {x}", "Put {x} in place of item {i}",
                       "Replace the {nth} item with {x}", "Replace {old} with {x}",
                       "Change {old} to {x}"),
                 i=i + 1, x=new, nth=ORDINALS[i], old=items[i])  # fmt: skip
    found = [*items[:i], new, *items[i + 1 :]]
    if items.count(items[i]) > 1 and items[i] in first:
        found = [new if item == items[i] else item for item in items]
    return ListRequest(first, first, commas(found), found)


def _insert(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    i, new = rng.randrange(len(items) + 1), _another(words, items)
    if rng.random() < 0.4:
        i = len(items)
        first = pick(rng, ("Add {x}", "Append {x}", "Add {x} at the end", "Add {x} to the list",
                           "Put {x} at the end"), x=new)  # fmt: skip
    elif i == 0 and rng.random() < 0.5:
        first = pick(rng, ("Put {x} first", "Insert {x} at the start", "Add {x} at the beginning"),
                     x=new)  # fmt: skip
    else:
        i = min(i, len(ORDINALS) - 1)
        first = pick(rng, ("Insert {x} at position {i}", "Add {x} as item {i}",
                           "Put {x} at position {i}", "Insert {x} as item {i}"),
                     i=i + 1, x=new)  # fmt: skip
    found = [*items[:i], new, *items[i:]]
    return ListRequest(first, first, commas(found), found)


def _remove(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    i = rng.randrange(len(items))
    first = pick(rng, ("Remove item {i}", "Delete item {i}", "Drop item {i}", "Leave out item {i}",
                       "Remove the {nth} item", "Delete the {nth} item", "Remove {x}", "Delete {x}",
                       "Take out {x}", "Remove {x} from the list"),
                 i=i + 1, nth=ORDINALS[i], x=items[i])  # fmt: skip
    found = [*items[:i], *items[i + 1 :]]
    if items.count(items[i]) > 1 and items[i] in first:
        found = [item for item in items if item != items[i]]
    return ListRequest(first, first, commas(found), found)


def _nth(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    i = rng.randrange(len(items))
    which, at = (ORDINALS[i], i) if rng.random() < 0.75 else ("last", len(items) - 1)
    first = pick(rng, ("What is the {w} item", "Give the {w} item", "the {w} word of",
                       "Which item is {w}", "What is the {w} item in the list", "Take the {w} item",
                       "Item {n} of", "Which is item {n}"), w=which, n=at + 1)  # fmt: skip
    then = pick(rng, ("what is the {w} item?", "the {w} one?", "give me the {w} item",
                      "which is item {n}?"), w=which, n=at + 1)  # fmt: skip
    return ListRequest(first, then, items[at], None)


def _count(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    first = pick(rng, ("Count the items", "How many items are there",
                       "How many words are in the list", "How many items are in this list",
                       "Count these", "Count"))  # fmt: skip
    then = pick(rng, ("how many items are there?", "count them", "how many?", "Count the items"))
    return ListRequest(first, then, str(len(items)), None)


def _unique(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    first = pick(rng, ("Remove duplicates", "Remove the duplicates from the list",
                       "Keep each item once", "Remove repeated items", "Remove double items",
                       "Deduplicate"))  # fmt: skip
    then = pick(rng, ("remove the duplicates", "now without duplicates", "keep each item once"))
    found = list(dict.fromkeys(items))
    return ListRequest(first, then, commas(found), found)


def _case(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    make, first, then = rng.choice((
        (str.upper, ("Write in upper case", "Make upper case", "Convert to upper case",
                     "Write in capital letters", "Turn into uppercase", "Uppercase"),
         ("now in upper case", "make it upper case", "in capital letters", "uppercase")),
        (str.lower, ("Write in lower case", "Make lower case", "Convert to lower case",
                     "Write in small letters", "Turn into lowercase", "Lowercase"),
         ("now in lower case", "make it lower case", "in small letters", "lowercase")),
        (_titled, ("Capitalize the words", "Capitalize each item",
                   "Start each word with a capital letter", "Capitalize"),
         ("now capitalize the words", "capitalize it", "capitalize each word")),
    ))  # fmt: skip
    found = [make(item) for item in items]
    return ListRequest(pick(rng, first), pick(rng, then), commas(found), found)


def _titled(text: str) -> str:
    return " ".join(word.capitalize() for word in text.split(" "))


def _join(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    name, sign = rng.choice(list(SEPARATORS.items()))
    first = pick(rng, ("Join the items with {s}", "Separate the items with {s}", "Join with {s}",
                       "Write the list with {s} between the items", "Use {s} instead of commas"),
                 s=name)  # fmt: skip
    then = pick(rng, ("join it with {s}", "now with {s}", "separate them with {s}",
                      "use {s} instead of commas"), s=name)  # fmt: skip
    return ListRequest(first, then, sign.join(items), None)


def _lines(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    if rng.random() < 0.5:
        first = pick(rng, ("Number the items", "Make a numbered list", "Write as a numbered list"))
        then = pick(rng, ("number them", "make it a numbered list", "as a numbered list"))
        return ListRequest(
            first, then, "\n".join(f"{i}. {x}" for i, x in enumerate(items, 1)), None
        )
    first = pick(rng, ("Make a bullet list", "Write as a bullet list", "Turn into bullet points"))
    then = pick(rng, ("as a bullet list", "make it a bullet list", "with bullet points"))
    return ListRequest(first, then, "\n".join(f"- {item}" for item in items), None)


def _json(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    first = pick(rng, ("Turn into a JSON array", "Write as a JSON list", "Make it a JSON array",
                       "Convert the list to JSON", "Give this list as JSON"))  # fmt: skip
    then = pick(rng, ("make it JSON", "as JSON", "now as a JSON array", "turn it into JSON"))
    shown = [item if item.isdigit() else f'"{item}"' for item in items]
    return ListRequest(first, then, f"[{commas(shown)}]", None)


def _shuffle(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    first = pick(rng, ("Shuffle the list", "Put the list in a random order", "Mix up the items",
                       "Shuffle", "Write the items in any new order"))  # fmt: skip
    found = rng.sample(items, len(items))
    return ListRequest(first, first, commas(found), found)


def _at_random(words: WordSource, items: Items) -> ListRequest:
    rng = words.rng
    i, new = rng.randrange(len(items)), _another(words, items)
    first, found = rng.choice((
        (("Replace a random item with {x}", "Change any one item to {x}",
          "Put {x} in place of a random item", "Swap a random item for {x}"),
         [*items[:i], new, *items[i + 1 :]]),
        (("Insert {x} at a random position", "Add {x} anywhere", "Put {x} at any position",
          "Insert {x} somewhere"), [*items[:i], new, *items[i:]]),
        (("Remove a random item", "Delete any one item", "Drop a random item",
          "Leave out any one item"), [*items[:i], *items[i + 1 :]]),
    ))  # fmt: skip
    said = pick(rng, first, x=new)
    return ListRequest(said, said, commas(found), found)


Operation = Callable[[WordSource, Items], ListRequest]
OPERATIONS: dict[str, Operation] = {
    "copy": _copy, "reverse": _reverse, "sort": _sort, "replace": _replace, "insert": _insert,
    "remove": _remove, "nth": _nth, "count": _count, "unique": _unique, "case": _case,
    "join": _join, "lines": _lines, "array": _json, "shuffle": _shuffle, "random": _at_random,
}  # fmt: skip


def _another(words: WordSource, items: Items) -> str:
    while True:
        new = str(words.number(1, 999)) if items[0].isdigit() else words.word()
        if new not in items:
            return new


def draw_items(words: WordSource, name: str, sizes: Sequence[int]) -> Items:
    """Items for an operation: different words, numbers, or phrases of two words."""
    rng = words.rng
    count = rng.choice(sizes)
    kind = rng.choices(("words", "numbers", "phrases"), weights=(8, 2, 1))[0]
    if kind == "numbers" and name != "case":
        most = 999 if count <= 8 else 99
        items = words.different(lambda: words.number(1, most), count)
    elif kind == "phrases" and count <= 5 and name != "sort":
        items = words.different(lambda: f"{words.word()} {words.word()}", count)
    else:
        style = rng.random()

        def word() -> str:
            text = words.word()
            while count > 7 and len(text) > 7:
                text = words.word()
            return text.capitalize() if style < 0.1 else words.cased(text) if style < 0.2 else text

        items = words.different(word, count)
        if len({item.lower() for item in items}) < count:
            return draw_items(words, name, sizes)
    if name == "unique":
        for _ in range(rng.randint(1, 3)):
            items.insert(rng.randrange(len(items) + 1), rng.choice(items))
    return items


def shown(rng: random.Random, items: Items) -> str:
    """A list as people type it."""
    sign = rng.choices((", ", ",", "; ", "\n", " "), weights=(82, 4, 4, 5, 5))[0]
    if sign == " " and any(" " in item for item in items):
        sign = ", "
    text = sign.join(items)
    if sign == ", " and rng.random() < 0.04 and len(items) > 2:
        text = f"{', '.join(items[:-1])} and {items[-1]}"
    return text


def make(words: WordSource, names: Sequence[str], sizes: Sequence[int], turns: int = 1) -> Dialogue:
    """A conversation of `turns` turns on a list, its first operation one of `names`."""
    rng = words.rng
    name = rng.choice(names)
    items = draw_items(words, name, sizes)
    asked = OPERATIONS[name](words, items)
    said: list[Turn] = [(ask(rng, asked.first, shown(rng, items), asked.answer), asked.answer)]
    task = name
    for _ in range(turns - 1):
        items = items if asked.items is None else asked.items
        if not items:
            break
        name = rng.choice([each for each in OPERATIONS if each not in ("copy", "random")])
        if name == "case" and all(item.isdigit() for item in items):
            continue
        asked = OPERATIONS[name](words, items)
        kept = f"{said} {asked.answer}"
        said.append((sloppy(rng, asked.then, kept) + rng.choice(("", "", ".")), asked.answer))
    return Dialogue(task if len(said) == 1 else "list turns", tuple(said))
