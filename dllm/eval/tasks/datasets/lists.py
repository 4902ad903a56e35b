"""List operations: copy, reverse, sort, shuffle; replace, insert, remove by index or at random.

Prompts read "INSTRUCTION: a, b, c"; the answer is the new list, comma-separated. Indices count
from 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from dllm.eval.tasks.datasets.base import Example, Task

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


def split(text: str) -> list[str]:
    return [item.strip() for item in text.strip().split(",")]


def draw(rng: random.Random, count: int) -> list[str]:
    """`count` different items, mostly of one category that has as many."""
    pool = ITEMS[rng.choice(tuple(ITEMS))] if rng.random() < 0.7 else ALL_ITEMS
    return rng.sample(pool if count <= len(pool) else ALL_ITEMS, count)


def differs(gold: list[str], reply: list[str]) -> str:
    """Reason code of a reply to a task with one right answer; "ok" when equal."""
    if reply == gold:
        return "ok"
    if len(reply) != len(gold):
        return "length"
    if set(reply) - set(gold):
        return "foreign"
    return "duplicate" if len(set(reply)) < len(reply) else "order"


def exact(example: Example, reply: str) -> str:
    return differs(split(example.answer), split(reply))


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
    """How many indices operation `op` has in a list of `size` items."""
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


def _maker(op: str) -> Callable[[random.Random, int], Example]:
    def make(rng: random.Random, size: int) -> Example:
        items = draw(rng, size + 1)
        x = items.pop()
        i = rng.randrange(places(op, size))
        prompt = ask(rng, op, items, i, x)
        answer = rng.sample(items, size) if op == "shuffle" else apply(op, items, i, x)
        return Example(op, prompt, join(answer), {"items": items, "new": x})

    return make


def grade_shuffle(example: Example, reply: str) -> str:
    """Any order of the same items, also the old one."""
    items, got = example.facts["items"], split(reply)
    return "ok" if sorted(got) == sorted(items) else differs(items, got)


def grade_replace(example: Example, reply: str) -> str:
    items, x, got = example.facts["items"], example.facts["new"], split(reply)
    if len(got) != len(items):
        return "length"
    changed = [i for i, (a, b) in enumerate(zip(items, got, strict=True)) if a != b]
    if not changed:
        return "unchanged"
    return "ok" if len(changed) == 1 and got[changed[0]] == x else "order"


def grade_insert(example: Example, reply: str) -> str:
    items, x, got = example.facts["items"], example.facts["new"], split(reply)
    if len(got) != len(items) + 1:
        return "length"
    if got.count(x) != 1:
        return "missing" if x not in got else "duplicate"
    return "ok" if [item for item in got if item != x] == items else "order"


def grade_remove(example: Example, reply: str) -> str:
    items, got = example.facts["items"], split(reply)
    if len(got) != len(items) - 1:
        return "length"
    rests = (items[:i] + items[i + 1 :] for i in range(len(items)))
    return "ok" if got in rests else "order"


_RANDOM = {
    "shuffle": grade_shuffle,
    "replace_random": grade_replace,
    "insert_random": grade_insert,
    "remove_random": grade_remove,
}

TASKS: tuple[Task, ...] = tuple(
    Task(
        name=op,
        group="random" if op in _RANDOM else "lists",
        sizes=SIZES,
        make=_maker(op),
        grade=_RANDOM.get(op, exact),
        is_random=op in _RANDOM,
    )
    for op in WORDINGS
)
