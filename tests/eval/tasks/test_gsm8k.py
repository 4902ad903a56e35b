import gzip
import json
import os
import random
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.errors import DllmError
from dllm.eval.tasks import Grade, draw, task_of
from dllm.eval.tasks.base import Sample
from dllm.eval.tasks.gsm8k import NUMBER, SETUPS, Gsm8k

ROWS = [
    {
        "question": "Ida has 12 jars and fills each with 100 nuts. How many nuts are that?",
        "answer": "She fills 12*100=<<12*100=1200>>1200 nuts into jars.\n#### 1,200",
    },
    {
        "question": "A pond is 3 m deep. How far from its surface, upwards, is its ground?",
        "answer": "Upwards it is 0-3=<<0-3=-3>>-3 m.\n#### -3",
    },
    {"question": " Tom eats half a pie. How many? ", "answer": "1/2=<<1/2=0.5>>0.5\n#### 0.5"},
]
RIGHT, LENIENT = Grade(True, True, "ok"), Grade(True, False, "ok")
WRONG, NONE = Grade(False, False, "arithmetic"), Grade(False, False, "parse")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    train = [
        {"question": f"What is {i}+1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(10)
    ]
    return {
        "file": write(tmp_path / "test.jsonl", ROWS),
        "shots_file": write(tmp_path / "train.jsonl", train),
    }


def test_the_suite_knows_it(files):
    task = task_of(f"gsm8k:file={files['file']},setup=dparallel,length=96,shots=0")
    assert task == Gsm8k(file=files["file"], setup="dparallel", length=96, shots=0)
    assert (task.name, task.n, task.count(0), task.budget) == ("gsm8k", (0,), 3, 96)


def test_sample_i_is_question_i(files):
    task = Gsm8k(**files, setup="dream-instruct")
    for seed in (0, 1):
        prompts = [draw(task, 0, seed, i).prompt for i in range(3)]
        assert [row["question"].strip() in p for row, p in zip(ROWS, prompts)] == [True] * 3
    facts = [draw(task, 0, 0, i).facts for i in range(3)]
    assert [Decimal(f["number"].replace(",", "")) for f in facts] == [1200, -3, Decimal("0.5")]


@pytest.mark.parametrize(
    ("setup", "shots", "budget", "chat", "stop"),
    [
        ("llada", 5, 1024, False, ("Question:",)),
        ("llada-instruct", 0, 512, True, ()),
        ("dream", 8, 256, False, ("Q:",)),
        ("dream-instruct", 0, 256, True, ("Q:",)),
        ("fast-dllm", 5, 256, True, ("Question:",)),
        ("dparallel", 0, 256, True, ("Question:",)),
    ],
)
def test_the_settings_of_the_field(files, setup, shots, budget, chat, stop):
    task = Gsm8k(**files, setup=setup)
    assert (task.budget, task.chat, task.stop) == (budget, chat, stop)
    sample = draw(task, 0, 0, 0)
    assert sample.shots == ()
    assert [int(i) for i in re.findall(r"What is (\d)\+1\?", sample.prompt)] == [*range(shots)]
    assert len(SETUPS) == 6


def test_the_whole_prompt_of_both_forms(files):
    assert draw(Gsm8k(**files, setup="llada", shots=1), 0, 0, 2) == Sample(
        "Question: What is 0+1?\nAnswer: 0+1=<<0+1=1>>1\n#### 1\n\n"
        "Question: Tom eats half a pie. How many?\nAnswer:",
        "1/2=<<1/2=0.5>>0.5\n#### 0.5",
        {"number": "0.5"},
    )
    assert draw(Gsm8k(**files, setup="dream", shots=2), 0, 0, 2) == Sample(
        "Q: What is 0+1?\nA: 0+1=1\nThe answer is 1.\n\n"
        "Q: What is 1+1?\nA: 1+1=2\nThe answer is 2.\n\n"
        "Q: Tom eats half a pie. How many?\nA:",
        "1/2=0.5\nThe answer is 0.5.",
        {"number": "0.5"},
    )


def test_a_model_that_is_told_the_form(files):
    prompt = draw(Gsm8k(**files, setup="llada-instruct"), 0, 0, 2).prompt
    question, ask, answer = prompt.split("\n")
    assert question == "Question: Tom eats half a pie. How many?"
    assert "####" in ask
    assert answer == "Answer:"


@pytest.mark.parametrize("setup", SETUPS)
def test_answers_of_every_setting(files, setup):
    task = Gsm8k(**files, setup=setup)
    for i, number in enumerate(("1200", "-3", "0.5")):
        sample = draw(task, 0, 0, i)
        assert task.grade(sample, sample.answer) == RIGHT
        assert task.grade(sample, sample.answer + "\n\nI hope that 7 helps!") == RIGHT
        assert task.grade(sample, ROWS[i]["answer"]).score
        assert task.grade(sample, f"That makes **{number}**.") == LENIENT
        assert task.grade(sample, sample.answer.replace("\n", "\n#### 9\nThe answer is 9\n")) == (
            WRONG
        )
        assert task.grade(sample, f"Not {number} but 4") == WRONG
        assert task.grade(sample, "") == NONE
        assert task.grade(sample, "#### none. The answer is unknown.") == NONE


@pytest.mark.parametrize(
    ("setup", "reply", "grade"),
    [
        ("llada", "#### 1200", RIGHT),
        ("llada", "#### 1,200.", RIGHT),
        ("llada", "#### 1200.00", RIGHT),
        ("llada", "so 5\n#### 1200\n#### 5", RIGHT),
        ("llada", "####1200", LENIENT),
        ("llada", "#### $1200", LENIENT),
        ("llada", "The answer is 1200", LENIENT),
        ("llada", "5\nThe answer is 1200.\nOr 7?", WRONG),
        ("llada", "#### 120", WRONG),
        ("llada", "#### 12000", WRONG),
        ("llada", "#### -1200", WRONG),
        ("llada", "#### 1,200.5", WRONG),
        ("llada", "$12 * 100 = $1,200", LENIENT),
        ("llada", "1200%", LENIENT),
        ("llada", "\\boxed{1200}", LENIENT),
        ("llada", "from 7-1200", LENIENT),
        ("llada", "minus: -1200", WRONG),
        ("llada", "minus: −$1200", WRONG),
        ("llada", "1,200,5", WRONG),
        ("llada", "1 200", WRONG),
        ("llada", "1,2000", WRONG),
        ("llada", "9" * 9999, WRONG),
        ("dream", "The answer is 1200.", RIGHT),
        ("dream", "The answer is 1,200", RIGHT),
        ("dream", "#### 1200", LENIENT),
        ("dream", "the answer is 1200", LENIENT),
        ("dream", "The answer is $1,200.", LENIENT),
        ("dream", "The answer is 120", WRONG),
    ],
)
def test_how_numbers_are_read(setup, reply, grade):
    """1200 is right. The file is not needed."""
    task = Gsm8k(setup=setup, file="absent")
    assert task.grade(Sample("", "", {"number": "1,200"}), reply) == grade


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,200 and 12,000,000.5", ["1,200", "12,000,000.5"]),
        ("1,2000 or 1,200,5", ["1", "2000", "1,200", "5"]),
        ("1200,300", ["1200", "300"]),
        ("x = .5 and 3.", [".5", "3"]),
        ("-5, $-5, -$5, 9-5, (9)-5, x -5", ["-5", "-5", "-$5", "9", "5", "9", "5", "-5"]),
        ("$7.50%", ["$7.50"]),
    ],
)
def test_what_is_a_number(text, numbers):
    assert re.findall(NUMBER, text) == numbers


NUMBERS = st.decimals(-(10**7), 10**7, allow_nan=False, places=2) | st.integers(-(10**7), 10**7)
PROSE = st.text("abc xyz.,!?\n:;*(", max_size=12).map(lambda text: f" {text} ")


@st.composite
def replies(draw):
    """A reply with numbers put in several ways, and the last of them."""
    parts, last = [draw(PROSE)], None
    for number in draw(st.lists(NUMBERS, min_size=1, max_size=4)):
        put = draw(
            st.sampled_from(["{}", "{:,}", "{}.", "{}%", "**{}**", "({})", "= {};", "{:,}."])
        )
        text = put.format(number)
        if draw(st.booleans()):
            text = re.sub(r"-?(?=\d)", lambda hit: hit[0] + "$", text, count=1)
        parts += [text, draw(PROSE)]
        last = number
    return "".join(parts), last


@given(replies(), NUMBERS)
def test_the_last_number_counts(reply, other):
    text, last = reply
    task = Gsm8k()
    assert task.grade(Sample("", "", {"number": str(last)}), text) == LENIENT
    expected = LENIENT if last == other else WRONG
    assert task.grade(Sample("", "", {"number": str(other)}), text) == expected


@settings(max_examples=50)
@given(st.text())
def test_grading_never_fails(reply):
    for setup in ("llada", "dream"):
        grade = Gsm8k(setup=setup).grade(Sample("", "", {"number": "5"}), reply)
        assert grade.reason in ("ok", "arithmetic", "parse")
        assert (grade.reason == "parse") == (not re.search(r"\d", reply))


def test_the_file_may_be_compressed(files, tmp_path):
    packed = tmp_path / "test.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "test.jsonl").read_bytes()))
    plain = Gsm8k(file=files["file"], setup="dparallel")
    gz = Gsm8k(file=str(packed), setup="dparallel")
    rng = random.Random(0)
    assert [gz.sample(rng, 0, i) for i in range(gz.count(0))] == [
        plain.sample(rng, 0, i) for i in range(3)
    ]


def test_blank_lines_are_no_questions(tmp_path):
    (tmp_path / "f").write_text(f"\n{json.dumps(ROWS[0])}\r\n\n  \n{json.dumps(ROWS[1])}")
    assert Gsm8k(file=str(tmp_path / "f")).count(0) == 2


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("{", "f, line 2"),
        ("[]", "f, line 2"),
        ('{"question": "How many?"}', "f, line 2"),
        ('{"question": "How many?", "answer": "5"}', "f, line 2"),
        ('{"question": "How many?", "answer": "#### five"}', "f, line 2"),
        ('{"question": "How many?", "answer": "#### 5 or 6"}', "f, line 2"),
        ('{"question": 5, "answer": "#### 5"}', "f, line 2"),
        ('{"question": " ", "answer": "#### 5"}', "f, line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, name):
    (tmp_path / "f").write_text(f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(DllmError, match=f"{name}: expected a JSON object with .*question.*answer"):
        Gsm8k(file=str(tmp_path / "f")).count(0)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\n"])
@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz"])
def test_a_file_that_is_none_says_where_one_comes_from(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DllmError, match=f"{name}.*expected file=PATH .*grade-school-math"):
        Gsm8k(file=str(tmp_path / name)).count(0)


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz"])
def test_the_encoding_of_a_file(files, tmp_path, name):
    """A byte order mark is none of its text; what is not UTF-8 is said."""
    text = (tmp_path / "test.jsonl").read_text().replace("Tom", "Zo\xeb")
    file = Gsm8k(file=str(tmp_path / name), shots=0)
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(text.encode("utf-8-sig")))
    assert file.count(0) == len(ROWS)
    for encoding, said in (("latin-1", "line 3: expected UTF-8 text"), ("utf-16", "found UTF-16")):
        (tmp_path / name).write_bytes(pack(text.encode(encoding)))
        with pytest.raises(DllmError, match=rf"cannot read .*{name}.*{said}"):
            Gsm8k(file=str(tmp_path / name)).count(0)


@pytest.mark.parametrize("line", ["[" * 10**5 + "]" * 10**5, "9" * 5000, '{"question": ["a"]}'])
def test_a_hostile_line_is_named(tmp_path, line):
    (tmp_path / "f").write_text(f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(DllmError, match="f, line 2: expected a JSON object with"):
        Gsm8k(file=str(tmp_path / "f")).count(0)


def test_a_directory_or_a_pipe_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(DllmError, match=f"cannot read .*{name}"):
            Gsm8k(file=str(tmp_path / name)).count(0)


def test_a_file_that_was_cut(files, tmp_path):
    whole = gzip.compress((tmp_path / "test.jsonl").read_bytes())
    for size in (5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "f.gz").write_bytes(whole[:size])
        with pytest.raises(DllmError, match="cannot read"):
            Gsm8k(file=str(tmp_path / "f.gz")).count(0)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    (tmp_path / "f.gz").write_bytes(broken)
    with pytest.raises(DllmError, match="cannot read"):
        Gsm8k(file=str(tmp_path / "f.gz")).count(0)


def test_no_file_and_no_shots(files):
    with pytest.raises(DllmError, match=r"cannot read ''.*expected file=PATH of .*test\.jsonl"):
        task_of("gsm8k").count(0)
    few = Gsm8k(file=files["file"], setup="llada")
    with pytest.raises(DllmError, match=r"expected shots_file=PATH of .*train\.jsonl.* or shots=0"):
        draw(few, 0, 0, 0)
    many = Gsm8k(**files, shots=11)
    with pytest.raises(DllmError, match=r"train\.jsonl: 10 questions, expected 11 shots"):
        draw(many, 0, 0, 0)
    assert "What is" not in draw(Gsm8k(file=files["file"], shots=0), 0, 0, 0).prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("setup=gpt", "expected llada | llada-instruct | dream"),
        ("n=1", "n=(1,): expected 0"),
        ("surface=infill", "surface='infill': expected free"),
        ("shots=-1", "shots=-1: expected 0 or more"),
        ("length=0", "length=0: expected at least 1"),
        ("questions=5", "no option 'questions'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DllmError, match=re.escape(message)):
        task_of(f"gsm8k:file=f,{options}")


def test_an_unknown_setup_from_python():
    with pytest.raises(ValueError, match="setup='gpt': expected one of llada, llada-instruct"):
        Gsm8k(setup="gpt")
