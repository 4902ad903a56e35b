import itertools
import random

import pytest

from dllm.eval.tasks import scorer_of
from dllm.eval.tasks.datasets import DATASETS, examples, held_out, is_held_out, lists
from dllm.eval.tasks.datasets.lists import ALL_ITEMS, SIZES, WORDINGS, join

NAMES = list(WORDINGS)


def right(name, sample, reply):
    return scorer_of(name).grade(sample, reply).strict


def draw(name, count=300):
    return list(itertools.islice(examples(DATASETS[name], 0, held_out=False), count))


def test_words_are_distinct():
    assert len(set(ALL_ITEMS)) == len(ALL_ITEMS)


@pytest.mark.parametrize("name", NAMES)
def test_gold_is_ok_and_every_size_comes(name):
    found = draw(name)
    assert all(right(name, e, e.answer) for e in found)
    assert {len(e.facts["items"]) for e in found} == set(SIZES)


@pytest.mark.parametrize("name", NAMES)
def test_chatty_truncated_and_foreign_replies_fail(name):
    for e in draw(name, 100):
        items = e.answer.split(", ")
        for reply in ("", "Sure! " + e.answer, join(items[:-1]), join([*items, "yak"])):
            assert not right(name, e, reply), reply
        assert not right(name, e, join([items[0]] * len(items)))


@pytest.mark.parametrize("name", ["copy", "reverse", "sort", "insert_index", "remove_index"])
def test_another_order_fails(name):
    for e in draw(name, 50):
        items = e.answer.split(", ")
        assert not right(name, e, join([*items[1:], items[0]]))


def literal(name, e):
    """The set of right answers of a random operation, enumerated."""
    items, x = e.facts["items"], e.facts.get("new")
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
    for _ in range(30):
        e = DATASETS[name].make(rng, 3)
        gold = literal(name, e)
        words = [*e.facts["items"], e.facts.get("new", "yak")]
        replies = [list(r) for k in (2, 3, 4) for r in itertools.product(words, repeat=k)]
        for reply in replies:
            assert right(name, e, join(reply)) == (reply in gold), (e.prompt, reply)


def test_splits_are_disjoint_and_seeded():
    task = DATASETS["sort"]
    one, two = (list(itertools.islice(examples(task, 3, held_out=True), 50)) for _ in "ab")
    assert one == two
    assert all(is_held_out(e.prompt) for e in one)
    assert not any(is_held_out(e.prompt) for e in draw("sort", 50))


def test_held_out_questions_are_different():
    found = held_out(DATASETS["json"], 60, seed=1)
    assert len({e.prompt for e in found}) == len(found) == 60
    assert all(is_held_out(e.prompt) for e in found)


def test_more_items_than_a_category_has_come_from_all():
    rng = random.Random(0)
    drawn = [lists.draw(rng, 17) for _ in range(50)]
    assert all(len(set(items)) == 17 and set(items) <= set(ALL_ITEMS) for items in drawn)
