"""Questions and grades of the list operations, against definitions of their own."""

import itertools
import json
import random
import re
from collections import Counter

import pytest

from dllm.errors import DllmError
from dllm.eval import closed_forms
from dllm.eval.oracle import Joint
from dllm.eval.tasks import REASONS, Sample, draw, task_of
from dllm.eval.tasks.datasets import is_held_out
from dllm.eval.tasks.datasets.lists import ALL_ITEMS, WORDINGS

NAMES = list(WORDINGS)
RANDOM = ("shuffle", "replace_random", "insert_random", "remove_random")
SIZES = (2, 3, 4, 8, 15, 16, 25)
FOREIGN = "xylem"
VARIANTS = ["", ":wording=short", ":vocabulary=letters", ":surface=infill,shots=0"]
CASES = [name + variant for name in NAMES for variant in VARIANTS]


def words_of(text):
    """Read an answer in one of the two asked forms."""
    return json.loads(text) if text.startswith("[") else text.split(", ")


def is_right(name, facts, got):
    """What each operation asks for, in other words than the code's."""
    items, new, at = facts["items"], facts.get("new"), facts.get("index", 0) - 1
    n = len(items)
    changed = [k for k, (a, b) in enumerate(zip(items, got, strict=False)) if a != b]
    rest = iter(items)
    match name:
        case "copy":
            return len(got) == n and not changed
        case "reverse":
            return len(got) == n and all(got[k] == items[n - 1 - k] for k in range(n))
        case "sort":
            return Counter(got) == Counter(items) and all(a < b for a, b in itertools.pairwise(got))
        case "shuffle":
            return Counter(got) == Counter(items) and changed != []
        case "replace_index":
            return len(got) == n and changed == [at] and got[at] == new
        case "replace_random":
            return len(got) == n and len(changed) == 1 and got[changed[0]] == new
        case "insert_index":
            return is_inserted(items, new, got) and got.index(new) == at
        case "insert_random":
            return is_inserted(items, new, got)
        case "remove_index":
            return got == [item for k, item in enumerate(items) if k != at]
        case "remove_random":
            return len(got) == n - 1 and all(item in rest for item in got)
    raise AssertionError(name)


def is_inserted(items, new, got):
    return got.count(new) == 1 and [item for item in got if item != new] == items


def reason_of(name, facts, got, length):
    """The reason code of the list `got`, from the definitions of REASONS."""
    if is_right(name, facts, got):
        return "ok"
    if not got:
        return "parse"
    if len(got) != length:
        return "length"
    if any(item not in facts["items"] and item != facts.get("new") for item in got):
        return "foreign"
    if max(Counter(got).values()) > 1:
        return "duplicate"
    if got == facts["items"]:
        return "unchanged"
    orders = map(list, itertools.permutations(got))
    return "order" if any(is_right(name, facts, order) for order in orders) else "missing"


@pytest.mark.parametrize(("n", "options"), [(3, ""), (3, ":wording=short"), (4, "")])
@pytest.mark.parametrize("name", NAMES)
def test_grades_of_all_short_lists(name, n, options):
    task = task_of(name + options)
    sample = draw(task, n, 5, 0)
    words = [*sample.facts["items"], *filter(None, [sample.facts.get("new")]), FOREIGN]
    length = len(words_of(sample.answer))
    seen = set()
    for size in range(n + 2):
        for got in itertools.product(words, repeat=size):
            reply = task.write(sample, got) if got else ""
            grade = task.grade(sample, reply)
            assert grade.reason == reason_of(name, sample.facts, list(got), length), (sample, got)
            assert grade.score == grade.strict == (grade.reason == "ok")
            seen.add(grade.reason)
    possible = {"ok", "parse", "length", "foreign", "duplicate"}
    possible |= {"order"} if name != "shuffle" else set()
    possible |= {"unchanged"} if length == n and name != "copy" else set()
    possible |= (
        {"missing"} if name in ("replace_index", "replace_random", "remove_index") else set()
    )
    assert seen == possible


@pytest.mark.parametrize("case", CASES)
def test_gold_is_right_and_questions_are_sound(case):
    task = task_of(case)
    for n, i in itertools.product(SIZES, range(8)):
        sample = draw(task, n, 0, i)
        facts, gold = sample.facts, words_of(sample.answer)
        assert is_right(task.name, facts, gold)
        assert task.grade(sample, sample.answer) == task.grade(sample, f"\n{sample.answer} \n")
        assert task.grade(sample, sample.answer).strict
        assert len(facts["items"]) == n
        given = [*facts["items"], *filter(None, [facts.get("new")])]
        assert len(set(given)) == len(given)
        assert set(given) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ" if "letters" in case else ALL_ITEMS)
        assert Sample.from_dict(json.loads(json.dumps(sample.as_dict()))) == sample
        assert ("new" in facts) == task.name.startswith(("replace", "insert"))
        assert ("index" in facts) == task.name.endswith("index")


@pytest.mark.parametrize("name", NAMES)
def test_full_prompt_says_the_whole_question_and_examples_are_right(name):
    task = task_of(f"{name}:shots=2")
    for i in range(30):
        sample = draw(task, 4, 0, i)
        questions = [(sample.prompt, sample.answer), *sample.shots]
        assert len({prompt for prompt, _ in questions}) == 3
        for k, (prompt, answer) in enumerate(questions):
            asked, _, line, _, closing = prompt.split("\n")
            said = {"items": json.loads(line)}
            if new := re.search(r'"(.+)"', asked):
                said["new"] = new[1]
            if index := re.search(r"position (\d+)", asked):
                said["index"] = int(index[1])
            assert is_right(name, said, json.loads(answer))
            assert k or said == sample.facts
            assert "JSON" in closing
            assert "{" not in prompt


@pytest.mark.parametrize("name", NAMES)
def test_short_prompts_are_held_out_ones_of_the_bundled_model(name):
    task = task_of(f"{name}:wording=short")
    wordings = set()
    for i in range(40):
        sample = draw(task, 5, 0, i)
        assert is_held_out(sample.prompt)
        assert sample.shots == ()
        asked, items = sample.prompt.split(": ")
        assert items.split(", ") == sample.facts["items"]
        filled = [
            w.format(i=sample.facts.get("index"), x=sample.facts.get("new")) for w in WORDINGS[name]
        ]
        wordings.add(filled.index(asked))
    assert wordings == {0, 1, 2, 3}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_what_stands_around_it(name):
    plain = [draw(task_of(name), 4, 7, i) for i in range(6)]
    assert len({sample.prompt for sample in plain}) == 6
    assert plain[0] != draw(task_of(name), 4, 8, 0)
    for options in ("shots=0", "shots=3", "surface=infill", "n=4+9", "surface=infill,shots=2"):
        task = task_of(f"{name}:{options}")
        for i in reversed(range(6)):
            sample = draw(task, 4, 7, i)
            expected = plain[i].prompt, plain[i].answer, plain[i].facts
            assert (sample.prompt, sample.answer, sample.facts) == expected
            assert sample.shots[:1] == plain[i].shots[: len(sample.shots)]
    assert [len(draw(task_of(f"{name}:shots={k}"), 3, 0, 0).shots) for k in (0, 1, 3)] == [0, 1, 3]
    assert len(plain[0].shots) == 1


def wraps(words, sample):
    """Ways in which a model may put the list `words`; none is an asked form."""
    comma = ", ".join(words)
    line = json.dumps(words)
    return [
        f"Sure! Here you go, the list:\n{line}",
        f"{line}\nLet me know, if you need more: a, b.",
        f"{json.dumps(sample.facts['items'])} becomes {line}.",
        f"Answer: {comma}",
        f"Here is the list: {comma}.",
        f"I thought about it: yes.\n\n{comma}.",
        f"Sure, here it is:\n{comma}\n\n",
        f"```\n{comma}\n```",
        f"```json\n{line}\n```",
        str(words),
        f"`{comma}`",
        f"[{comma}]",
        f"{comma}]",
        line[:-1],
        f"{line[:-1]},]",
        "[" + " , ".join(f"`{word}`" for word in words) + " ]",
        json.dumps(words, indent=2),
        "\n".join(f"{k}. {word}" for k, word in enumerate(words, 1)),
        "Here, the list:\n\n" + "\n".join(f"{k}) '{word}'" for k, word in enumerate(words, 1)),
        "First, second:\n" + "\n\n".join(f"  - {word}," for word in words) + "\n",
        "\n".join(f"* {word}." for word in words),
    ]


@pytest.mark.parametrize("case", [case for case in CASES if "infill" not in case])
def test_wrapped_answers_are_right_but_not_strict(case):
    task = task_of(case)
    for n in (2, 3, 6):
        sample = draw(task, n, 1, n)
        gold = words_of(sample.answer)
        for reply in wraps(gold, sample):
            grade = task.grade(sample, reply)
            assert grade.reason == "ok", reply
            assert not grade.strict, reply
            assert [reply[start:end] for start, end in task.items(sample, reply)] == gold


@pytest.mark.parametrize("case", ["{}", "{}:wording=short"])
@pytest.mark.parametrize("name", NAMES)
def test_corrupted_answers_say_what_is_wrong(name, case):
    task = task_of(case.format(name))
    for i in range(10):
        sample = draw(task, 6, 2, i)
        gold, items = words_of(sample.answer), sample.facts["items"]
        text = sample.answer
        expected = [
            (task.write(sample, gold[:-1]), "length"),
            (task.write(sample, [*gold, gold[0]]), "length"),
            (task.write(sample, [*gold, FOREIGN]), "length"),
            (task.write(sample, [FOREIGN, *gold[1:]]), "foreign"),
            (task.write(sample, [gold[0].upper(), *gold[1:]]), "foreign"),
            (task.write(sample, ["", *gold[1:]]), "foreign"),
            (task.write(sample, [gold[1], *gold[1:]]), "duplicate"),
            (text[: text.rindex(gold[-1]) + 1], "foreign"),  # cut in the last item
            (text[: text.index(gold[2])], "length"),
            ("", "parse"),
            (" \n```\n", "parse"),
            ("[]", "parse"),
            ("Here is the list:", "parse"),
        ]
        if name != "shuffle":
            expected.append((task.write(sample, [*gold[3:], *gold[:3]]), "order"))
        if name not in ("shuffle", "insert_random"):  # a new item may stand anywhere
            expected.append((task.write(sample, [gold[1], gold[0], *gold[2:]]), "order"))
        if name not in ("copy", "sort"):
            kept = "length" if len(gold) != 6 else "unchanged"
            expected.append((task.write(sample, items), kept))
        for reply, reason in expected:
            grade = task.grade(sample, reply)
            assert (grade.reason, grade.score, grade.strict) == (reason, False, False), reply
            assert reason in REASONS


def test_an_item_that_is_due_elsewhere_is_missing():
    task = task_of("replace_index")
    sample = Sample("", '["a", "x", "c"]', {"items": ["a", "b", "c"], "new": "x", "index": 2})
    assert task.grade(sample, '["x", "b", "c"]').reason == "missing"
    assert task.grade(sample, '["a", "c", "b"]').reason == "missing"


@pytest.mark.parametrize("options", ["", ":wording=short"])
@pytest.mark.parametrize("name", NAMES)
def test_symbols_written_in_the_orders_of_the_joint_are_right(name, options):
    task = task_of(name + options)
    for n in (2, 3, 4):
        sample = draw(task, n, 0, 0)
        kind, size = task.form(n)
        joint = getattr(Joint, kind)(size)
        symbols = task.symbols(sample)
        assert len(symbols) == joint.symbols == len(set(symbols))
        assert closed_forms.positions(kind, size) == joint.positions == len(words_of(sample.answer))
        answers = [[symbols[s] for s in row] for row in joint.support.tolist()]
        reasons = [task.grade(sample, task.write(sample, answer)).reason for answer in answers]
        bad = ["unchanged"] if name == "shuffle" else []
        assert sorted(reasons) == sorted(["ok"] * (len(answers) - len(bad)) + bad)
        assert words_of(sample.answer) in answers
        assert (kind == name) == (name in (*RANDOM, "copy"))


@pytest.mark.parametrize("options", ["surface=infill", "surface=infill,wording=short"])
@pytest.mark.parametrize("name", NAMES)
def test_spans_of_the_gold_leave_its_punctuation(name, options):
    task = task_of(f"{name}:{options}")
    sample = draw(task, 5, 0, 0)
    gold = words_of(sample.answer)
    skeleton = sample.answer
    for start, end in reversed(task.items(sample, sample.answer)):
        skeleton = skeleton[:start] + "_" + skeleton[end:]
    assert skeleton == task.write(sample, ["_"] * len(gold))


def chi_square_limit(cells):
    """About the 0.9999 quantile (Wilson and Hilferty)."""
    df = cells - 1
    return df * (1 - 2 / (9 * df) + 3.72 * (2 / (9 * df)) ** 0.5) ** 3


def assert_uniform(draws, cells):
    assert len(set(draws)) == cells
    due = len(draws) / cells
    assert sum((k - due) ** 2 / due for k in Counter(draws).values()) < chi_square_limit(cells)


@pytest.mark.parametrize("options", [":shots=0", ":vocabulary=letters,shots=0"])
@pytest.mark.parametrize("name", NAMES)
def test_places_and_random_answers_are_uniform(name, options):
    task = task_of(name + options)
    draws = []
    for i in range(2000):
        sample = draw(task, 4, 3, i)
        items, gold = sample.facts["items"], json.loads(sample.answer)
        if name == "shuffle":
            draws.append(tuple(map(items.index, gold)))
        elif name in ("replace_random", "insert_random"):
            draws.append(gold.index(sample.facts["new"]))
        elif name == "remove_random":
            draws.append(next(k for k, item in enumerate(items) if item not in gold))
        else:
            draws.append(sample.facts.get("index", 0))
    cells = {"shuffle": 23, "copy": 1, "reverse": 1, "sort": 1}.get(name, 4)
    cells += name.startswith("insert")
    if cells > 1:
        assert_uniform(draws, cells)
    if name.endswith("index"):
        assert min(draws) == 1


def test_letters_are_uniform():
    task = task_of("replace_random:vocabulary=letters,shots=0")
    facts = [draw(task, 3, 0, i).facts for i in range(2000)]
    for k in range(3):
        assert_uniform([fact["items"][k] for fact in facts], 26)
    assert_uniform([fact["new"] for fact in facts], 26)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("n=1", "n=1: expected different sizes from 2 to 159"),
        ("n=4+160", "n=4+160: expected different sizes from 2 to 159"),
        ("n=26,vocabulary=letters", "n=26: expected different sizes from 2 to 25"),
        ("shots=-1", "shots=-1: expected a number of at least 0"),
        ("wording=short,shots=1", "shots=1: expected 0 with wording=short"),
        ("wording=short,vocabulary=letters", "expected words with wording=short"),
        ("wording=long", "full"),
        ("vocabulary=names", "letters"),
        ("surface=open", "infill"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(DllmError, match=re.escape(said)):
        task_of(f"copy:{options}")


def test_the_longest_lists_exist():
    rng = random.Random(0)
    for case, n in [("sort", 159), ("sort:vocabulary=letters", 25)]:
        sample = task_of(case).sample(rng, n, 0)
        assert json.loads(sample.answer) == sorted(sample.facts["items"])
