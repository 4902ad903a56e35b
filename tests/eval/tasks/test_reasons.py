"""Every reason that a grader gives has a meaning to show."""

import pytest

from dllm.eval.tasks import REASONS, TASKS, draw, task_of

REPLIES = (
    "",
    "a, b",
    "1 2",
    '{"name": 1}',
    "[1]",
    "| a |\n| --- |\n| b |",
    "def f(x):\n    return x",
)
FROM_FILES = ("gsm8k", "humaneval")


@pytest.mark.parametrize("name", [name for name in TASKS if name not in FROM_FILES])
def test_reasons_are_known(name):
    task = task_of(name)
    for i in range(3):
        sample = draw(task, task.n[0], 0, i)
        other = draw(task, task.n[-1], 0, i + 1).answer
        for reply in (*REPLIES, other, sample.answer[:-1], sample.answer.replace("2", "3")):
            assert task.grade(sample, reply).reason in REASONS
