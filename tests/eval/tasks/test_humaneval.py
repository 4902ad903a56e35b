import gzip
import json
import re
import time

import pytest

from dllm.errors import DllmError
from dllm.eval.tasks import Grade, draw, task_of
from dllm.eval.tasks.base import Sample
from dllm.eval.tasks.humaneval import SETUPS, HumanEval, continued, extracted

ROWS = [
    {
        "task_id": "Own/0",
        "prompt": "from typing import List\n\n\ndef evens(numbers: List[int]) -> List[int]:\n"
        '    """ The even ones.\n    >>> evens([1, 2])\n    [2]\n    """\n',
        "canonical_solution": "    kept = []\n    for n in numbers:\n        if n % 2 == 0:\n"
        "            kept.append(n)\n\n    return kept\n",
        "entry_point": "evens",
        "test": "\n\ndef check(candidate):\n    assert candidate([1, 2, 4]) == [2, 4]\n"
        "    assert candidate([]) == []\n",
    },
    {
        "task_id": "Own/1",
        "prompt": "import math\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef area(r):\n"
        '    """Two circles of radius r, by `twice`."""\n',
        "canonical_solution": "    return twice(math.pi * r ** 2)\n",
        "entry_point": "area",
        "test": "def check(area):\n    assert abs(area(1) - 6.2832) < 1e-3\n",
    },
]
RIGHT, LENIENT = Grade(True, True, "ok"), Grade(True, False, "ok")
PLAIN = [name for name, setup in SETUPS.items() if not setup.chat]
ASKED = [name for name, setup in SETUPS.items() if setup.ask]
BODY = ROWS[0]["canonical_solution"]
WHOLE = ROWS[0]["prompt"] + BODY
FLAT = "return [n for n in numbers if n % 2 == 0]"
BARE = f"def evens(numbers: List[int]) -> List[int]:\n    {FLAT}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def problem(setup="llada", i=0, **options):
    """A task that has no file, and the sample of one of our problems."""
    facts = {key: ROWS[i][key] for key in ("prompt", "entry_point", "test")}
    return HumanEval(setup=setup, **options), Sample("", "", facts)


def grade(setup, reply, i=0, **options):
    task, sample = problem(setup, i, **options)
    return task.grade(sample, reply)


def test_the_suite_knows_it(file):
    task = task_of(f"humaneval:file={file},setup=fast-dllm,timeout=2.5")
    assert task == HumanEval(file=file, setup="fast-dllm", timeout=2.5)
    assert (task.name, task.n, task.count(0)) == ("humaneval", (0,), 2)
    assert task_of(f"humaneval:file={file},length=64").budget == 64


@pytest.mark.parametrize(
    ("setup", "budget", "chat"),
    [
        ("llada", 1024, False),
        ("llada-instruct", 512, True),
        ("dream", 512, False),
        ("dream-instruct", 768, True),
        ("fast-dllm", 256, True),
        ("dparallel", 256, True),
    ],
)
def test_the_settings_of_the_field(file, setup, budget, chat):
    task = HumanEval(file=file, setup=setup)
    assert (task.budget, task.chat) == (budget, chat)
    assert task.chat or "\ndef " in task.stop
    assert not (task.chat and task.stop)
    assert len(SETUPS) == 6


@pytest.mark.parametrize("setup", SETUPS)
def test_the_answers_of_the_file_are_right(file, setup):
    task = HumanEval(file=file, setup=setup)
    for i in range(2):
        sample = draw(task, 0, seed := 3 + i, i)
        assert sample == draw(task, 0, seed + 1, i)
        assert ROWS[i]["prompt"].strip() in sample.prompt
        assert (sample.prompt == ROWS[i]["prompt"]) == (setup not in ASKED)
        assert (setup in ASKED) == ("```" in sample.answer)
        assert task.grade(sample, sample.answer) == RIGHT


def test_the_file_may_be_compressed(file, tmp_path):
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "own.jsonl").read_bytes()))
    assert HumanEval(file=str(packed)).rows == HumanEval(file=file).rows == ROWS


GO_ON = {
    "function": "\ndef evens(numbers):\n    return None\n",
    "class": "\n\n\nclass Other:\n    x = 1 / 0\n",
    "test": "assert evens([3]) == [3]\n",
    "print": "print(1 / 0)\n",
    "main": "if __name__ == '__main__':\n    1 / 0\n",
    "input": "\nevens(input())\n",
    "fence": "```\n\nThis keeps the even numbers.",
    "prose": "\nThis keeps the even numbers.\n",
    "comment": "# Test\nevens(\n",
}


@pytest.mark.parametrize("rest", GO_ON.values(), ids=GO_ON)
def test_what_comes_after_the_function_does_not_count(rest):
    assert continued("def f():\n", BODY + rest) == f"def f():\n{BODY.rstrip()}{tail(rest)}"
    assert extracted(ROWS[0]["prompt"], "evens", BODY + rest) == (
        continued(ROWS[0]["prompt"], BODY + rest)
    )


def tail(rest):
    """The empty lines that stay before the cut."""
    return "\n" * (len(rest) - len(rest.lstrip("\n")) + 1)


@pytest.mark.parametrize("setup", PLAIN)
@pytest.mark.parametrize("key", ["function", "prose"])
def test_a_plain_answer_goes_on(setup, key):
    assert grade(setup, BODY + GO_ON[key]) == RIGHT


CHATS = {
    "whole": f"```python\n{WHOLE}```",
    "chatty": f"Sure! Here it is:\n\n```python\n{WHOLE}\n```\n\nIt keeps `evens`.\n```\nx\n```",
    "other fences": f"Call it so:\n```python\nevens([])\n```\nHere it is:\n```py\n{WHOLE}```",
    "no language": f"```\n{WHOLE}\n```",
    "indented fence": f"1. Code:\n   ```python\n{WHOLE}   ```",
    "no imports": f"```python\n{BARE}```",
    "cut fence": f"Here:\n```python\n{BARE}",
    "body": f"```python\n{BODY}```",
    "flat body": f"```python\n\n{FLAT}\n```",
    "helper after": f"```python\n{BARE.replace(FLAT, 'return help(numbers)')}\n"
    f"def help(numbers):\n    {FLAT}\n```",
    "demo": f"```python\n{BARE}\nassert evens([3]) == [3]\n```",
    "print before": f"```python\nprint('evens')\n{BARE}```",
    "print": f"```python\n{BARE}\nprint(1 / 0)\n```",
    "main": f"```python\n{BARE}\nif __name__ == '__main__':\n    evens(input())\n```",
    "two": f"```python\n{BARE}```\nor\n```python\n{BARE.replace('==', '!=')}```",
}
UNFENCED = {
    "whole": WHOLE,
    "body": BODY,
    "flat": FLAT,
    "prose": f"Here is the function.\n\n{BARE}\nThis keeps the even numbers.",
    "demo": f"{BARE}\nprint(1 / 0)",
    "constant": f"import math\nTWO = 2\n\n# even\n{BARE.replace('% 2', '% TWO')}",
    "fence": f"{BODY}```\n\nThis keeps the even numbers.",
    "new line and fence": f"\n{BODY}```\n\nThis keeps the even numbers.",
}


@pytest.mark.parametrize("key", CHATS)
def test_chat_answers_in_a_block(key):
    assert grade("llada-instruct", CHATS[key]) == (LENIENT if "body" in key else RIGHT)


@pytest.mark.parametrize("reply", UNFENCED.values(), ids=UNFENCED)
def test_chat_answers_without_a_block(reply):
    assert grade("dream-instruct", reply) == LENIENT
    assert grade("fast-dllm", reply) == RIGHT


def test_a_plain_answer_may_begin_again():
    assert grade("llada", BARE) == RIGHT


def test_what_stands_above_the_function_comes_along():
    reply = "```python\ndef area(r):\n    return twice(math.pi) * r * r\n```"
    assert grade("dream-instruct", reply, i=1) == RIGHT
    lost = "```python\ntwice(math.pi * r ** 2)\n```"
    assert grade("dream-instruct", lost, i=1) == Grade(False, False, "error")


@pytest.mark.parametrize(
    ("setup", "reply", "reason"),
    [
        ("llada", "", "parse"),
        ("llada", " \n\n", "parse"),
        ("llada", "def evens(n):\n    return n", "fail"),
        ("llada", "\ndef evens(n):\n    return n", "parse"),
        ("llada", "    return [n for n in numbers if", "parse"),
        ("llada", f"```python\n{WHOLE}```", "parse"),
        ("llada", "    return numbers", "fail"),
        ("llada", BODY.replace("== 0", "== 1"), "fail"),
        ("llada", "    # nothing", "fail"),
        ("llada", "    return evens(numbers)", "error"),
        ("llada", "    return number", "error"),
        ("llada", "    raise SystemExit(0)", "error"),
        ("llada", "    import os\n    os._exit(0)", "error"),
        ("llada", "    return [0] * 10 ** 10", "memory"),
        ("llada", "    while True:\n        pass", "timeout"),
        ("llada-instruct", "", "parse"),
        ("llada-instruct", "I cannot do that.", "parse"),
        ("llada-instruct", "```python\n```", "parse"),
        ("llada-instruct", f"```python\n{WHOLE[:-20]}", "parse"),
        ("llada-instruct", f"```python\n{BARE.replace('==', '!=')}```", "fail"),
        ("llada-instruct", "```python\ndef odds(n):\n    return n\n```", "fail"),
    ],
)
def test_what_is_wrong(setup, reply, reason):
    timeout = 0.5 if reason == "timeout" else 10
    start = time.monotonic()
    assert grade(setup, reply, timeout=timeout) == Grade(False, False, reason)
    assert time.monotonic() - start < 8


def test_bad_lines_are_named(tmp_path):
    for key in ROWS[0]:
        row = {k: v for k, v in ROWS[0].items() if k != key}
        (tmp_path / "f").write_text(f"{json.dumps(ROWS[0])}\n{json.dumps(row)}")
        with pytest.raises(DllmError, match=f"f, line 2: expected .*{key}"):
            HumanEval(file=str(tmp_path / "f")).count(0)


def test_where_the_file_comes_from():
    with pytest.raises(DllmError, match=r"expected file=PATH of .*openai/human-eval"):
        task_of("humaneval").count(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("setup=gpt", "expected llada | llada-instruct | dream"),
        ("n=1", "n=(1,): expected 0"),
        ("surface=infill", "surface='infill': expected free"),
        ("length=-5", "length=-5: expected at least 1"),
        ("timeout=0", "timeout=0.0: expected a number of seconds above 0"),
        ("timeout=inf", "timeout=inf: expected a number of seconds above 0"),
        ("timeout=nan", "timeout=nan: expected a number of seconds above 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DllmError, match=re.escape(message)):
        task_of(f"humaneval:file=f,{options}")
