import itertools
import random
import zlib

import pytest

from dllm.eval.tasks.datasets import TASKS, examples, is_held_out, lists
from dllm.eval.tasks.datasets.lists import ALL_ITEMS, SIZES, WORDINGS, join, split

NAMES = list(WORDINGS)


def draw(name, count=300):
    return list(itertools.islice(examples(TASKS[name], 0, held_out=False), count))


def test_words_are_distinct():
    assert len(set(ALL_ITEMS)) == len(ALL_ITEMS)


@pytest.mark.parametrize("name", NAMES)
def test_gold_is_ok_and_every_size_comes(name):
    found = draw(name)
    assert {TASKS[name].grade(e, e.answer) for e in found} == {"ok"}
    assert {len(e.facts["items"]) for e in found} == set(SIZES)


@pytest.mark.parametrize("name", NAMES)
def test_chatty_truncated_and_foreign_replies_fail(name):
    for e in draw(name, 100):
        items = split(e.answer)
        for reply in ("", "Sure! " + e.answer, join(items[:-1]), join([*items, "yak"])):
            assert TASKS[name].grade(e, reply) != "ok", reply
        assert TASKS[name].grade(e, join([items[0]] * len(items))) != "ok"


@pytest.mark.parametrize("name", ["copy", "reverse", "sort", "insert_index", "remove_index"])
def test_another_order_fails(name):
    for e in draw(name, 50):
        items = split(e.answer)
        assert TASKS[name].grade(e, join([*items[1:], items[0]])) != "ok"


def literal(name, e):
    """The set of right answers of a random operation, enumerated."""
    items, x = e.facts["items"], e.facts["new"]
    n = range(len(items))
    return {
        "shuffle": [list(p) for p in itertools.permutations(items)],
        "replace_random": [[x if j == i else items[j] for j in n] for i in n],
        "insert_random": [[*items[:i], x, *items[i:]] for i in range(len(items) + 1)],
        "remove_random": [[items[j] for j in n if j != i] for i in n],
    }[name]


@pytest.mark.parametrize("name", ["shuffle", "replace_random", "insert_random", "remove_random"])
def test_random_operations_take_all_right_answers_and_no_other(name):
    rng = random.Random(0)
    task = TASKS[name]
    for _ in range(30):
        e = task.make(rng, 3)
        right = literal(name, e)
        words = [*e.facts["items"], e.facts["new"]]
        replies = [list(r) for k in (2, 3, 4) for r in itertools.product(words, repeat=k)]
        for reply in replies:
            assert (task.grade(e, join(reply)) == "ok") == (reply in right), (e.prompt, reply)


def test_splits_are_disjoint_and_seeded():
    task = TASKS["sort"]
    one, two = (list(itertools.islice(examples(task, 3, held_out=True), 50)) for _ in "ab")
    assert one == two
    assert all(is_held_out(e.prompt) for e in one)
    assert not any(is_held_out(e.prompt) for e in draw("sort", 50))


def test_what_the_bundled_model_was_trained_on_stays():
    found = [e for name in NAMES for e in draw(name, 100)]
    text = "".join(f"{e.prompt}={e.answer}" for e in found)
    assert zlib.crc32(text.encode()) == 314540931


def test_more_items_than_a_category_has_come_from_all():
    rng = random.Random(0)
    drawn = [lists.draw(rng, 17) for _ in range(50)]
    assert all(len(set(items)) == 17 and set(items) <= set(ALL_ITEMS) for items in drawn)
