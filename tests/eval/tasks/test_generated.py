"""The bundled model's families as tasks: held-out prompts, and their graders behind chatter."""

import ast
import itertools
import json
import re

import pytest

from dllm.eval.tasks import Sample, closed_form, datasets, draw, task_of
from dllm.eval.tasks.structured import last_json
from dllm.registry import SpecError

NAMES = ("word_problem", "calculation", "latin_fill", "json", "records", "table", "function")
FAMILIES = {name: task_of(name) for name in NAMES}
each_family = pytest.mark.parametrize("task", FAMILIES.values(), ids=FAMILIES)


def draws(task, count=12, seed=0):
    return [draw(task, n, seed, i) for n in task.n for i in range(count)]


def outcome(name, sample, reply):
    grade = FAMILIES[name].grade(sample, reply)
    assert grade.score == (grade.reason == "ok")
    return grade.reason, grade.strict


@each_family
def test_the_gold_is_right_and_chatter_costs_only_strictness(task):
    for sample in draws(task):
        assert outcome(task.name, sample, sample.answer) == ("ok", True)
        assert outcome(task.name, sample, f"\n{sample.answer}\n") == ("ok", True)
        for reply in (
            f"Sure, here it is:\n{sample.answer}",
            f"Sure, here it is:\n\n```\n{sample.answer}\n```\nAnything else?",
            f"{sample.answer}\n\nThat is all.",
        ):
            assert outcome(task.name, sample, reply) == ("ok", False), reply


@each_family
def test_nothing_cannot_be_read(task):
    for sample in draws(task, 3):
        for reply in ("", " \n", "I cannot do that.", "```\n```", "No: [1", "| or", "def"):
            assert outcome(task.name, sample, reply) == ("parse", False)


@each_family
def test_an_answer_that_is_cut_is_wrong(task):
    for sample in draws(task, 3):
        for end in range(len(sample.answer)):
            assert not task.grade(sample, sample.answer[:end]).score
            assert not task.grade(sample, f"Well:\n{sample.answer[:end]}").score


@each_family
def test_the_answer_to_another_question_is_wrong(task):
    samples = draws(task)
    for sample, other in itertools.pairwise(samples):
        if sample.answer != other.answer:
            assert not task.grade(sample, other.answer).score
            assert not task.grade(sample, f"So:\n{other.answer}").score


@each_family
def test_prompts_are_held_out_and_of_the_family(task):
    name = "latin" if task.name == "latin_fill" else task.name
    assert task.n == datasets.DATASETS[name].sizes
    assert task.n == tuple(range(task.n[0], task.n[-1] + 1))  # a refusal names first and last
    for sample in draws(task, 20):
        assert datasets.is_held_out(sample.prompt)


@each_family
def test_a_sample_is_a_function_of_its_name_size_seed_and_number(task):
    for n in task.n:
        alone = task_of(f"{task.name}:n={n}")
        assert alone.n == (n,)
        samples = [draw(task, n, 3, i) for i in range(12)]
        assert [draw(alone, n, 3, i) for i in range(12)] == samples
        assert len({sample.prompt for sample in samples}) > 6
        assert samples != [draw(task, n, 4, i) for i in range(12)]
        assert all(sample.shots == () for sample in samples)


@each_family
def test_samples_survive_json(task):
    for sample in draws(task, 4):
        back = Sample.from_dict(json.loads(json.dumps(sample.as_dict())))
        assert back == sample
        for reply in (sample.answer, sample.answer[::-1], sample.answer[:-1] + "7", "So: 3"):
            assert task.grade(back, reply) == task.grade(sample, reply)


@each_family
def test_there_are_no_items(task):
    sample = draw(task, task.n[0], 0, 0)
    assert task.items(sample, sample.answer) == []
    assert closed_form(task, task.n[0]) is None
    with pytest.raises(SpecError, match="surface='infill': expected free"):
        task_of(f"{task.name}:surface=infill")
    wrong = task.n[-1] + 1
    with pytest.raises(SpecError, match=f"n={wrong}: expected different sizes from {task.n[0]} to"):
        task_of(f"{task.name}:n={wrong}")


def calculate(line):
    """The value of the left side, from its syntax tree."""
    left = ast.parse(line, mode="eval").body
    a, b = left.left.value, left.right.value
    return {"Add": a + b, "Sub": a - b, "Mult": a * b}[type(left.op).__name__]


def test_the_lines_of_a_word_problem_lead_to_its_result():
    for n in FAMILIES["word_problem"].n:
        for i in range(40):
            sample = draw(FAMILIES["word_problem"], n, 0, i)
            *lines, last = sample.answer.split("\n")
            value = int(re.search(r"\d+", sample.prompt).group())
            for line in lines:
                left, right = line.split(" = ")
                assert int(left.split(" ")[0]) == value
                value = calculate(left)
                assert value == int(right)
            assert last == f"Answer: {value}"
            assert len(lines) == n


def test_a_calculation_is_right():
    for sample in draws(FAMILIES["calculation"], 30):
        left, right = sample.answer.split(" = ")
        assert calculate(left) == int(right)
        assert left in sample.prompt


def test_the_steps_of_a_word_problem_are_graded_too():
    for sample in draws(FAMILIES["word_problem"]):
        *lines, last = sample.answer.split("\n")
        result = int(last.split(" ")[1])
        steps = "\n".join(lines)
        good = [
            f"{steps}\nSo we have it.\n{last}",
            "\n".join([f"First:\n{lines[0]}", *lines[1:], f"**{last}**"]),
            f"{steps}\n{last} apples.",
            f"{steps}\n  {last} \nDone, 3 - 1 = 2",
            "\n".join([*(f"  {line} " for line in lines), last]),
        ]
        assert {outcome("word_problem", sample, reply) for reply in good} == {("ok", False)}
        bad = {
            f"Well:\n{last}": "steps",
            f"3 + 9 = 13\n{steps}\n{last}": "steps",
            f"So:\n{steps.replace('=', '= 1')}\n{last}": "steps",
            f"So:\n{steps}\nAnswer: {result + 1}": "arithmetic",
            f"{steps}\n{last}\nAnswer: {result + 1}\nNo.": "arithmetic",
            f"{steps}\nAnswer: {result + 1}\nNo.\n{last}": "ok",
            f"{steps}\nIt is {result}": "parse",
            f"{steps}\n{last}.5": "parse",
            f"{steps}\nAnswer: -{result}": "parse",
            f"{steps}\nThe Answer: {result}": "parse",
        }
        assert {reply: outcome("word_problem", sample, reply)[0] for reply in bad} == bad


def test_the_last_calculation_of_a_reply_counts():
    for sample in draws(FAMILIES["calculation"]):
        gold = sample.answer
        cases = {
            f"The answer is {gold}.": "ok",
            f"1 + 1 = 3? No, {gold}": "ok",
            f"{gold}, or 1 + 1 = 3": "arithmetic",
            f"{gold}0": "arithmetic",
            f"So {gold}0": "arithmetic",
            f"So 1{gold}": "arithmetic",
            gold.split(" = ")[1]: "parse",
        }
        assert {reply: outcome("calculation", sample, reply)[0] for reply in cases} == cases


def test_a_filled_square_has_the_reasons_of_its_family():
    sample = Sample("", "", {"puzzle": [1, *[0] * 15]})
    cases = {
        "1 2 3 4\n2 3 4 1\n3 4 1 2\n4 1 2 3": "ok",
        "2 1 3 4\n1 3 4 2\n3 4 2 1\n4 2 1 3": "clue",
        "1 2 3 3\n2 3 4 1\n3 4 1 2\n4 1 2 3": "row",
        "1 2 3 4\n1 2 3 4\n3 4 1 2\n4 1 2 3": "column",
        "1 2 3 5\n2 3 5 1\n3 5 1 2\n5 1 2 3": "parse",
    }
    for grid, want in cases.items():
        assert outcome("latin_fill", sample, grid) == (want, want == "ok")
        assert outcome("latin_fill", sample, f"So:\n{grid.replace(' ', ',')}") == (want, False)


def test_the_last_json_value_of_a_reply_counts():
    for sample in draws(FAMILIES["json"], 5):
        gold = sample.answer
        record = json.loads(gold)
        first = next(iter(record))
        cases = {
            f"See [1] for {{this}}: {gold} and [2].": "ok",
            f'{{"a": 1}}, or better {gold}': "ok",
            f"So: {json.dumps(dict(reversed(record.items())), indent=2)}": "ok",
            f'So: {gold}, or {{"a": 1}}': "keys",
            f"So: {json.dumps(record | {first: 0})}": "values",
            f"So: [{gold}]": "parse",
            f'So: {{"a": {gold}}}': "keys",
            f"So: {gold[:-1]}, {gold[1:]}": "parse",  # every key twice
        }
        assert {reply: outcome("json", sample, reply)[0] for reply in cases} == cases


def test_a_list_of_records_is_read_as_one():
    for sample in draws(FAMILIES["records"], 5):
        gold = sample.answer
        records = json.loads(gold)
        cases = {
            f"These {{all}}: {gold}. Good?": "ok",
            f"So: {json.dumps(records)}": "ok",
            f"So: {json.dumps([*records, records[0]])}": "rows",
            f"So: {json.dumps(records[1:])}": "rows",
            f"So: {json.dumps(records[0])}": "parse",
            f'So: {{"list": {gold}}}': "parse",
            f"So: {gold} [1]": "parse",
        }
        assert {reply: outcome("records", sample, reply)[0] for reply in cases} == cases


@pytest.mark.parametrize(
    ("reply", "kind", "want"),
    [
        ("{} [] {}", dict, "{}"),
        ('[{"a": 1}]', dict, None),
        ('{"a": [1]}', list, None),
        ('{"a": [1]} [2] x [3', list, "[2]"),
        ('[{"a": 1}', dict, '{"a": 1}'),
        ("[" * 3000, list, None),
        ("[" * 100_000 + "]" * 100_000, list, None),
        ("[1]" + "[" * 100_000, list, "[1]"),
        ('"{}"', dict, "{}"),
    ],
)
def test_last_json(reply, kind, want):
    assert last_json(reply, kind) == want


def test_a_table_reaches_from_its_first_to_its_last_line():
    for sample in draws(FAMILIES["table"], 5):
        header, rule, *rows = sample.answer.split("\n")
        tight = re.sub(r" *\| *", "|", sample.answer)
        cases = {
            f"Table:\n  {tight}\nDone.": "ok",
            f"Table:\n{header}\n{rule}\nfirst:\n" + "\n".join(rows): "parse",
            f"Table:\n{header}\n" + "\n".join(rows): "parse",
            f"Table:\n{sample.answer}\n{rows[0]}": "rows",
            f"Table:\n{sample.answer.replace(header[2], 'X', 1)}": "header",
            f"Table:\n{header}\n{rule}\n" + "\n".join([*rows[:-1], rows[-1][:-2] + "x |"]): "cells",
        }
        assert {reply: outcome("table", sample, reply)[0] for reply in cases} == cases


def test_a_function_reaches_to_the_first_line_at_its_margin():
    for sample in draws(FAMILIES["function"], 5):
        gold = sample.answer
        cases = {
            f"Here:\n```python\n{gold}\n```\nIt works.": "ok",
            f"import math\n{gold}": "ok",
            f"Here:\n{gold.replace(':', ':  # so', 1)}\nprint(1)": "ok",
            f"Here:\n{gold.replace('return', 'return 0 +')}": "tree",
            f"Here:\n{gold.split(':')[0]}:": "parse",
            f"Here:\n{gold}\n\ndef other():\n    return 1": "tree",
            f"Here:\ndef other():\n    return 1\n\n\n{gold}": "ok",
            f"Here:\n{re.sub(':', ':' + chr(10), gold, count=1)}\n\nDone.": "ok",
            f"{gold}\n    pass": "tree",
            f"{gold}\n\n    pass\n": "tree",
        }
        assert {reply: outcome("function", sample, reply)[0] for reply in cases} == cases
