"""Running sums against a second way to add, and what counts as the numbers of a reply."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks import Sample, draw, task_of
from dllm.eval.tasks.sums import CumulativeSums
from dllm.registry import SpecError

TASK = CumulativeSums()
each_size = pytest.mark.parametrize("n", TASK.n)


def draws(n, count=50):
    return [draw(TASK, n, 0, i) for i in range(count)]


def outcome(sample, reply):
    grade = TASK.grade(sample, reply)
    assert grade.score == (grade.reason == "ok")
    return grade.reason, grade.strict


@each_size
def test_the_sums_are_those_of_the_digits_in_the_prompt(n):
    for sample in draws(n):
        for prompt, answer in ((sample.prompt, sample.answer), *sample.shots):
            [shown] = re.findall(rf"are {n} digits: (.*)", prompt)
            given = [int(digit) for digit in shown.split(" ")]
            want = [int(str(sum(given[: k + 1]))[-1]) for k in range(n)]
            assert answer == " ".join(map(str, want))
            assert len(given) == n


def test_the_digits_are_uniform():
    counts = Counter(
        digit
        for sample in draws(16, 400)
        for digit in re.findall(r"digits: (.*)", sample.prompt)[0].split(" ")
    )
    assert len(counts) == 10
    assert sum((c - 640) ** 2 / 640 for c in counts.values()) < 27.9  # 9 degrees, p = 0.001


@each_size
def test_the_gold_is_right_in_every_wrapping(n):
    for sample in draws(n, 10):
        gold = sample.answer
        [digits] = re.findall(r"digits: (.*)", sample.prompt)
        assert outcome(sample, gold) == ("ok", True)
        assert outcome(sample, f" {gold}\n") == ("ok", True)
        for reply in (
            gold.replace(" ", ", "),
            gold.replace(" ", ","),
            gold.replace(" ", "  "),
            gold.replace(" ", "; "),
            gold.replace(" ", "\t"),
            f"[{gold.replace(' ', ', ')}]",
            f"`{gold}`",
            f"**{gold}**",
            f"The running sums are: {gold}.",
            f"The digits are {digits}\nand their sums {gold}",
            f"{gold}\nThat makes 2 lines.",
            f"{gold} (modulo 10)",
        ):
            assert outcome(sample, reply) == ("ok", False), reply


@each_size
@given(data=st.data())
def test_any_other_numbers_are_wrong(n, data):
    sample = draw(TASK, n, 0, 0)
    numbers = [data.draw(st.sampled_from([*map(str, range(11)), "00", "9" * 5000]))] * n
    gold = sample.answer.split(" ")
    at = data.draw(st.integers(0, n - 1))
    wrong = [*gold[:at], numbers[at], *gold[at + 1 :]]
    want = "ok" if wrong == gold else "arithmetic"
    assert outcome(sample, " ".join(wrong)) == (want, want == "ok")


@each_size
def test_reasons(n):
    for sample in draws(n, 10):
        gold = sample.answer
        for reply in ("", " \n", "I cannot say.", "none of them", "a1 b2"):
            assert outcome(sample, reply) == ("parse", False)
        for end in range(1, len(gold)):
            assert outcome(sample, gold[:end]) == ("length", False)
        short = gold[2:]
        for reply in (short, f"{gold} 0", f"0 {gold}", gold.replace(" ", ""), f"{gold}.5 1"):
            assert outcome(sample, reply) == ("length", False), reply
        assert outcome(sample, gold.replace(" ", "\n"))[0] == "length"
        assert outcome(sample, f"-{gold}")[0] in ("length", "parse")
        # unreduced sums are no answer
        [digits] = re.findall(r"digits: (.*)", sample.prompt)
        sums = [sum(map(int, digits.split(" ")[: k + 1])) for k in range(n)]
        if sums[-1] > 9:
            assert outcome(sample, " ".join(map(str, sums))) == ("arithmetic", False)


def test_numbers_of_a_longer_word_are_none():
    sample = Sample("", "1 2 3")
    for reply in ("1.5 2 3", "x1 2 3", "1 2 3x", "1 2 3.5", "-1 2 3", "+1 2 3"):
        assert outcome(sample, reply)[0] != "ok", reply
    assert outcome(sample, "1 2 3. 4 are none")[0] == "ok"
    assert outcome(sample, "1 2 3 or 1 2 4")[0] == "arithmetic"
    assert outcome(sample, "1 2 4 or 1 2 3, not 7 8")[0] == "ok"
    assert outcome(sample, "1 2 4, no: 1 2 3; 2 of them")[0] == "arithmetic"


@each_size
def test_items_symbols_and_form(n):
    for sample in draws(n, 5):
        words = TASK.symbols(sample)
        reply = f"Sums: [{sample.answer.replace(' ', ', ')}]"
        for text in (sample.answer, reply):
            assert [text[a:b] for a, b in TASK.items(sample, text)] == list(words)
        assert TASK.write(sample, words) == sample.answer
        assert TASK.items(sample, "none") == []
    assert TASK.form(n) == ("copy", n)


@each_size
def test_a_sample_is_a_function_of_its_name_size_seed_and_number(n):
    for i in range(5):
        sample = draw(TASK, n, 3, i)
        assert draw(CumulativeSums(n=(n,), surface="infill"), n, 3, i) == sample
        for shots in (0, 3):
            twin = draw(CumulativeSums(shots=shots), n, 3, i)
            assert (twin.prompt, twin.answer) == (sample.prompt, sample.answer)
            assert len(twin.shots) == shots
        assert Sample.from_dict(json.loads(json.dumps(sample.as_dict()))) == sample
    assert len({sample.prompt for sample in draws(n, 20)}) > 15
    assert draw(TASK, n, 0, 0) != draw(TASK, n, 1, 0)


def test_no_example_is_the_question_itself():
    task = CumulativeSums(n=(2,), shots=8)  # of 100 questions
    for i in range(200):
        sample = draw(task, 2, 0, i)
        assert sample.prompt not in dict(sample.shots)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cumulative_sums:n=1", "n=1: expected different sizes from 2 to 64"),
        ("cumulative_sums:n=65", "n=65: expected different sizes from 2 to 64"),
        ("cumulative_sums:shots=-1", "shots=-1: expected a number of at least 0"),
        ("cumulative_sums:wording=short", "no option 'wording'"),
    ],
)
def test_wrong_options_are_refused(spec, says):
    with pytest.raises(SpecError, match=says):
        task_of(spec)


def test_specs():
    assert task_of("cumulative_sums") == TASK
    assert draw(task_of("cumulative_sums:n=2+64"), 64, 0, 0).answer.count(" ") == 63
