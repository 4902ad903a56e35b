"""List operations: copy, reverse, sort, shuffle; replace, insert, remove by index or at random.

Prompts read "INSTRUCTION: a, b, c"; the answer is the new list, comma-separated. Indices count
from 1.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from dllm.eval.tasks.base import Sample
from dllm.eval.tasks.datasets.base import GeneratedDataset

ITEMS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "fruit": "apple apricot banana cherry fig grape kiwi lemon lime mango melon olive orange "
        "peach pear plum",
        "animals": "bear cat cow crow deer dog duck fox goat hare horse lion mouse owl seal wolf",
        "colours": "amber black blue brown coral cream gold green grey ivory pink purple red "
        "silver white yellow",
        "tools": "axe bolt brush chisel clamp drill file hammer knife ladder nail pliers rope saw "
        "screw wrench",
        "kitchen": "bowl cup fork glass jar kettle lid mug oven pan plate pot sieve spoon tray "
        "whisk",
        "nature": "beach cliff cloud desert forest hill island lake moon ocean rain river sand "
        "snow star wind",
        "music": "bell cello drum flute gong guitar harp horn lute oboe organ piano tuba viola "
        "violin zither",
        "body": "ankle arm back chin ear elbow eye foot hand heart knee leg neck nose thumb toe",
        "clothes": "belt boot cap cloak coat dress glove hat jacket robe scarf shirt shoe skirt "
        "sock vest",
        "vehicles": "barge bike boat bus canoe car ferry jeep plane raft ship sled taxi train tram "
        "van",
    }.items()
}
ALL_ITEMS = tuple(word for words in ITEMS.values() for word in words)
SIZES = (3, 4, 5, 6, 7, 8)


def join(items: list[str]) -> str:
    return ", ".join(items)


def draw(rng: random.Random, count: int) -> list[str]:
    """`count` different items, mostly of one category that has as many."""
    pool = ITEMS[rng.choice(tuple(ITEMS))] if rng.random() < 0.7 else ALL_ITEMS
    return rng.sample(pool if count <= len(pool) else ALL_ITEMS, count)


# Each operation has its own wordings; {i} is a 1-based index and {x} a new item.
WORDINGS: dict[str, tuple[str, ...]] = {
    "copy": ("Copy the list", "Repeat the list", "Write the list again", "Say the same items"),
    "reverse": (
        "Reverse the list",
        "Write the list backwards",
        "List the items in reverse order",
        "Turn the list around",
    ),
    "sort": (
        "Sort the list",
        "Sort the items alphabetically",
        "Put the list in alphabetical order",
        "Order the items from a to z",
    ),
    "shuffle": (
        "Shuffle the list",
        "Put the list in a random order",
        "Mix up the items",
        "Write the items in any new order",
    ),
    "replace_index": (
        "Replace item {i} with {x}",
        "Change item {i} to {x}",
        "Put {x} in place of item {i}",
        "Swap item {i} for {x}",
    ),
    "insert_index": (
        "Insert {x} at position {i}",
        "Add {x} as item {i}",
        "Put {x} at position {i}",
        "Insert {x} as item {i}",
    ),
    "remove_index": ("Remove item {i}", "Delete item {i}", "Drop item {i}", "Leave out item {i}"),
    "replace_random": (
        "Replace a random item with {x}",
        "Change any one item to {x}",
        "Put {x} in place of a random item",
        "Swap a random item for {x}",
    ),
    "insert_random": (
        "Insert {x} at a random position",
        "Add {x} anywhere",
        "Put {x} at any position",
        "Insert {x} somewhere",
    ),
    "remove_random": (
        "Remove a random item",
        "Delete any one item",
        "Drop a random item",
        "Leave out any one item",
    ),
}


def places(op: str, size: int) -> int:
    """The number of indices that operation `op` has in a list of `size` items."""
    return size + op.startswith("insert")


def apply(op: str, items: list[str], i: int, x: str) -> list[str]:
    """The list after operation `op` (not shuffle) at 0-based index `i` with new item `x`."""
    match op.split("_")[0]:
        case "copy":
            return items
        case "reverse":
            return items[::-1]
        case "sort":
            return sorted(items)
        case "replace":
            return [*items[:i], x, *items[i + 1 :]]
        case "insert":
            return [*items[:i], x, *items[i:]]
        case "remove":
            return items[:i] + items[i + 1 :]
    raise ValueError(f"unknown list operation {op!r}; known: {', '.join(WORDINGS)}")


def ask(rng: random.Random, op: str, items: list[str], i: int, x: str) -> str:
    """The prompt, in any of the operation's wordings; `i` is the 0-based index."""
    wording = rng.choice(WORDINGS[op]).format(i=i + 1, x=x)
    return f"{wording}: {join(items)}"


def question(rng: random.Random, op: str, size: int) -> tuple[str, list[str], int, str]:
    """A prompt, its items, and the 0-based index and new item of operation `op`."""
    items = draw(rng, size + 1)
    new = items.pop()
    i = rng.randrange(places(op, size))
    return ask(rng, op, items, i, new), items, i, new


def facts(op: str, items: list[str], i: int, new: str) -> dict[str, Any]:
    """Facts that a question states: its items and what is done to them; no unsaid place."""
    found: dict[str, Any] = {"items": items}
    if op.startswith(("replace", "insert")):
        found["new"] = new
    if op.endswith("_index"):
        found["index"] = i + 1
    return found


def make(rng: random.Random, size: int, *, op: str) -> Sample:
    prompt, items, i, new = question(rng, op, size)
    known = facts(op, items, i, new)
    if op != "shuffle":
        return Sample(prompt, join(apply(op, items, i, new)), known)
    # here, unlike in the task, the order may also stay: models were trained on answers that do
    return Sample(prompt, join(rng.sample(items, size)), {**known, "same": True})


RANDOM = ("shuffle", "replace_random", "insert_random", "remove_random")
DATASETS: tuple[GeneratedDataset, ...] = tuple(
    GeneratedDataset(op, "random" if op in RANDOM else "lists", SIZES, partial(make, op=op))
    for op in WORDINGS
)
