"""Structured answers say what the prompt says, in its order; the graders compare what is meant."""

import ast
import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks import Sample, scorer_of
from dllm.eval.tasks.datasets.structured import DATASETS, SENTENCES, VALUES, keys_of
from tests.eval.tasks.datasets.test_seeds import draws

TOKEN = re.compile(r" {4}| ?[A-Za-z]+| ?[0-9]|\n| ?[^A-Za-z0-9\s]|\s")
JSON, RECORDS, TABLE, FUNCTION = DATASETS

each_task = pytest.mark.parametrize("task", DATASETS, ids=lambda task: task.name)


def judged(dataset, sample, reply):
    return scorer_of(dataset.name).reason(sample, reply)


def graded(task, answer, reply):
    return judged(task, Sample("", answer), reply)


@each_task
def test_gold_is_ok(task):
    for example in draws(task):
        assert judged(task, example, example.answer) == "ok"
        assert judged(task, example, f"\n{example.answer}\n\n") == "ok"


@each_task
def test_short_enough(task):
    for example in draws(task, 3000):
        prompt, answer = TOKEN.findall(example.prompt), TOKEN.findall(example.answer)
        assert "".join(prompt) == example.prompt
        assert "".join(answer) == example.answer
        assert len(answer) <= 125
        assert len(prompt) + len(answer) <= 260


@each_task
def test_a_cut_or_chatty_reply_is_refused(task):
    for example in draws(task, 60):
        gold = example.answer
        cut = [gold[:end] for end in range(len(gold))]
        chatty = [f"Sure:\n{gold}", f"Sure\n{gold}", f"{gold}\nDone.", f"```\n{gold}\n```"]
        for reply in (*cut, *chatty, gold + "\n" + gold, example.prompt):
            assert judged(task, example, reply) != "ok", reply


@each_task
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_changed_word_or_digit_is_refused(task, seed, data):
    [example] = draws(task, 1, seed)
    tokens = TOKEN.findall(example.answer)
    at = data.draw(st.sampled_from([i for i, token in enumerate(tokens) if token[-1].isalnum()]))
    changed = tokens[at] + ("s" if tokens[at][-1].isalpha() else "0")
    reply = "".join([*tokens[:at], changed, *tokens[at + 1 :]])
    assert judged(task, example, reply) not in ("ok", "rows")


@each_task
@given(reply=st.text(st.sampled_from('{}[]":,|-1 9a\n\\\0é')))
def test_no_reply_breaks_a_grader(task, reply):
    [example] = draws(task, 1)
    assert judged(task, example, reply) != "ok"


@each_task
@pytest.mark.parametrize("unit", ["[", "(", '{"a":', "-", "|", "9"])
def test_no_depth_breaks_a_grader(task, unit):
    [example] = draws(task, 1)
    assert judged(task, example, unit * 50_000) != "ok"


@pytest.mark.parametrize("task", [JSON, RECORDS, TABLE], ids=lambda task: task.name)
def test_the_answer_repeats_the_prompt_in_its_order(task):
    for example in draws(task):
        if task is TABLE:
            values = re.findall(r"\w+", "".join(example.answer.split("\n")[2:]))
        else:
            data = json.loads(example.answer)
            records = data if isinstance(data, list) else [data]
            values = [str(value) for record in records for value in record.values()]
        at = 0
        for value in values:
            found = re.compile(rf"\b{value}\b").search(example.prompt, at)
            assert found, (value, example)
            at = found.end()


def test_sizes_are_what_they_say():
    for size in JSON.sizes:
        assert len(json.loads(JSON.make(random.Random(size), size).answer)) == size
    for size in RECORDS.sizes:
        assert len(json.loads(RECORDS.make(random.Random(size), size).answer)) == size
    for size in TABLE.sizes:
        assert TABLE.make(random.Random(size), size).answer.count("\n") == size + 1


def test_every_sentence_fills_known_keys():
    assert {key for sentence in SENTENCES for key in keys_of(sentence)} == VALUES.keys()


def test_subjects_differ():
    for example in draws(RECORDS):
        firsts = [next(iter(record.values())) for record in json.loads(example.answer)]
        assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ('{"age":31,\n "name":"Tom"}', "ok"),  # layout and order of keys mean nothing in JSON
        ('{"name": "Tom", "age": 31', "parse"),
        ('["Tom", 31]', "parse"),
        ('[{"name": "Tom", "age": 31}]', "parse"),
        ('{"name": "Ann", "name": "Tom", "age": 31}', "parse"),
        ('{"name": "Tom"}', "keys"),
        ('{"name": "Tom", "age": 31, "job": "cook"}', "keys"),
        ('{"name": "Tom", "age": 32}', "values"),
        ('{"name": "Tom", "age": 31.0}', "values"),
        ('{"name": "Tom", "age": "31"}', "values"),
        ('{"name": "Tom", "age": NaN}', "values"),
    ],
)
def test_json_reasons(reply, reason):
    assert graded(JSON, '{"name": "Tom", "age": 31}', reply) == reason


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ('[{"name": "Tom"}, {"name": "Ann"}]', "ok"),
        ('[{"name": "Ann"}, {"name": "Tom"}]', "values"),
        ('[{"name": "Tom"}]', "rows"),
        ('[{"name": "Tom"}, {"city": "Ann"}]', "keys"),
        ('[{"name": "Tom"}, "Ann"]', "parse"),
        ('{"name": "Tom"}', "parse"),
        ('{"name": "Tom"}\n{"name": "Ann"}', "parse"),
    ],
)
def test_records_reasons(reply, reason):
    assert graded(RECORDS, '[{"name": "Tom"},\n {"name": "Ann"}]', reply) == reason


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("|name|age|\n|:-|--:|\n|Tom|31|", "ok"),
        ("| name | age |\n| --- | --- |\n| Tom | 32 |", "cells"),
        ("| name | age |\n| --- | --- |\n| Tom 31 |", "cells"),
        ("| name | age |\n| --- | --- |\n| Tom | 31 |\n| Ann | 20 |", "rows"),
        ("| name | age |\n| --- | --- |", "rows"),
        ("| name | city |\n| --- | --- |\n| Tom | 31 |", "header"),
        ("| name | age |\n| --- |\n| Tom | 31 |", "parse"),
        ("| name | age |\n| Tom | 31 |", "parse"),
        ("| name | age |", "parse"),
        ("| name | age |\n| --- | --- |\nTom | 31", "parse"),
        ("|", "parse"),
        ("", "parse"),
    ],
)
def test_table_reasons(reply, reason):
    assert graded(TABLE, "| name | age |\n| --- | --- |\n| Tom | 31 |", reply) == reason


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("def scale(x):\n  return (x*3)  # thrice", "ok"),  # layout is no part of the tree
        ("def scale(x):\n    return x * 4", "tree"),
        ("def scale(x):\n    return 3 * x", "tree"),
        ("def scale(x):\n    return x * 3.0", "tree"),
        ("def scale(y):\n    return y * 3", "tree"),
        ("scale = lambda x: x * 3", "tree"),
        ("", "tree"),
        ("def scale(x):\nreturn x * 3", "parse"),
        ("def scale(x)\n    return x * 3", "parse"),
        ("def scale(x):\n    return x * 3\0", "parse"),
    ],
)
def test_function_reasons(reply, reason):
    assert graded(FUNCTION, "def scale(x):\n    return x * 3", reply) == reason


def test_the_prompt_names_all_that_the_function_uses():
    for example in draws(FUNCTION):
        nodes = list(ast.walk(ast.parse(example.answer)))
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        used |= {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        assert used <= set(re.findall(r"\w+", example.prompt))


def test_parameters_come_in_the_order_of_the_description():
    """Needed where the prompt names the function only."""
    for example in draws(FUNCTION):
        function = ast.parse(example.answer).body[0]
        parameters = [argument.arg for argument in function.args.args]
        words = [word for word in re.findall(r"\w+", example.prompt) if word in parameters]
        assert list(dict.fromkeys(words)) == parameters


def test_a_reply_is_never_run(tmp_path):
    mark = tmp_path / "ran"
    [example] = draws(FUNCTION, 1)
    assert judged(FUNCTION, example, f"open({str(mark)!r}, 'w')\n{example.answer}") == "tree"
    assert not mark.exists()
