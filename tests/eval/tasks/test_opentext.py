import re
from collections import Counter

import pytest

from dllm.errors import DllmError
from dllm.eval.tasks import draw, task_of
from dllm.eval.tasks.opentext import ADJECTIVES, NOUNS, VERBS

TASK = task_of("words_to_sentence")
SAMPLES = [draw(TASK, n, 0, i) for n in (2, 3, 4, 5, 8, 80) for i in range(30)]


def test_words_are_distinct_and_plain():
    words = [*VERBS, *ADJECTIVES, *NOUNS]
    assert max(Counter(words).values()) == 1
    assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_a_plain_sentence_is_right():
    for sample in SAMPLES:
        words = sample.facts["words"]
        assert len(set(words)) == len(words)
        assert sample.prompt.split("\n")[2].split(", ") == words
        bare = sample.answer.removeprefix("We ").removesuffix(".").split(" ")
        assert Counter(w for w in bare if w not in ("the", "and")) == Counter(words)
        grade = TASK.grade(sample, sample.answer)
        assert (grade.score, grade.strict, grade.reason) == (True, True, "ok")


def test_every_word_comes_and_in_every_place():
    found = [draw(TASK, 3, 1, i).facts["words"] for i in range(1500)]
    assert {word for words in found for word in words} == {*VERBS, *ADJECTIVES, *NOUNS}
    verbs = Counter(next(k for k, word in enumerate(words) if word in VERBS) for words in found)
    assert all(400 < verbs[k] < 600 for k in range(3))


@pytest.mark.parametrize(
    ("reply", "reason", "strict"),
    [
        ("We paint the red door.", "ok", True),
        ("  Did they PAINT a 'red' door?\n", "ok", True),
        ("Paint a red, red door!", "ok", True),
        ("We paint the red door", "ok", False),
        ("Sure. We paint the red door.", "ok", False),
        ("We paint the red door. Really", "ok", False),
        ("We paint the red door...", "ok", False),
        ("We paint\nthe red door.", "ok", False),
        ("red, door, paint", "ok", False),
        ("We paint the red doors.", "missing", False),
        ("We repaint the red door.", "missing", False),
        ("We paint the red-hot door.", "missing", False),
        ("We paint the red door's frame.", "missing", False),
        ("We paint the red door’s frame.", "missing", False),
        ("We paint the red door_2.", "missing", False),
        ("We paint the door.", "missing", False),
        ("", "parse", False),
        (" ...\n!", "parse", False),
    ],
)
def test_grades(reply, reason, strict):
    sample = draw(TASK, 3, 0, 0)
    sample.facts["words"] = ["door", "paint", "red"]
    grade = TASK.grade(sample, reply)
    assert (grade.reason, grade.score, grade.strict) == (reason, reason == "ok", strict)


def test_leaving_out_any_word_is_noticed():
    for sample in SAMPLES:
        for word in sample.facts["words"]:
            assert TASK.grade(sample, sample.answer.replace(f" {word}", "")).reason == "missing"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("n=1", "n=1: expected different sizes from 2 to 80"),
        ("n=3+81", "n=3+81: expected different sizes from 2 to 80"),
        ("surface=infill", "surface='infill': expected free"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(DllmError, match=re.escape(said)):
        task_of(f"words_to_sentence:{options}")


def test_no_size_at_all_is_refused():
    with pytest.raises(ValueError, match="expected different sizes"):
        type(TASK)(n=())
