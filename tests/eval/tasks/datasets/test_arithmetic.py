import itertools
import re

from dllm.eval.tasks import scorer_of
from dllm.eval.tasks.datasets import DATASETS, examples
from dllm.eval.tasks.datasets.arithmetic import LARGEST

WORD, SUM = DATASETS["word_problem"], DATASETS["calculation"]


def judged(dataset, sample, reply):
    return scorer_of(dataset.name).reason(sample, reply)


def draw(task, count=400):
    return list(itertools.islice(examples(task, 0, held_out=False), count))


def test_every_line_is_a_right_calculation_and_goes_on_from_the_last():
    for e in draw(WORD):
        *lines, last = e.answer.split("\n")
        value = None
        for line in lines:
            a, op, b, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", line).groups()
            assert value is None or int(a) == value
            value = int(result)
            assert value == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op]
            assert 1 <= value <= LARGEST
        assert last == f"Answer: {value}"
        assert 1 <= len(lines) <= 4


def test_operands_stand_in_the_question_in_order():
    for e in draw(WORD, 100):
        said = re.findall(r"\d+", e.prompt)
        used = [re.findall(r"\d+", line) for line in e.answer.split("\n")[:-1]]
        assert said == [used[0][0], *(numbers[1] for numbers in used)]


def test_grades():
    for e in draw(WORD, 100):
        *lines, last = e.answer.split("\n")
        result = int(last.split()[-1])
        assert judged(WORD, e, e.answer) == "ok"
        assert judged(WORD, e, "\n".join(lines)) == "parse"
        assert judged(WORD, e, "\n".join([*lines, f"Answer: {result + 1}"])) == "arithmetic"
        assert judged(WORD, e, last) == "steps"
        assert judged(WORD, e, e.answer + " apples") == "parse"


def test_single_calculations():
    for e in draw(SUM):
        left, right = e.answer.split(" = ")
        assert eval(left) == int(right)
        assert left in e.prompt
        assert judged(SUM, e, e.answer) == "ok"
        assert judged(SUM, e, f"{left} = {int(right) + 1}") == "arithmetic"
        assert judged(SUM, e, right) == "arithmetic"
