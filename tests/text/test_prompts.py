"""What may stand for a prompt in Python, for both engines, and what is refused."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import dllm.verify
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.text.prompts import as_batch, as_row_ids
from tests.fakes import FakeModel, FakeText

USER = {"role": "user", "content": "ab"}
TWO = [[0, 3, 4], [6, 7, 8]]
PADDED = {"input_ids": TWO, "attention_mask": [[0, 1, 1], [1, 1, 1]]}
TENSORS = {key: torch.tensor(value) for key, value in PADDED.items()}


def encoding(ids, **more):
    return BatchEncoding({"input_ids": ids, **more})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ab", "ab"),
        (np.str_("ab"), "ab"),
        ([USER], [USER]),
        ((USER,), [USER]),
        ([3, 4], [3, 4]),
        ((3, 4), [3, 4]),
        (range(3, 5), [3, 4]),
        ((token for token in (3, 4)), [3, 4]),
        (torch.tensor([3, 4]), [3, 4]),
        (torch.tensor([], dtype=torch.long), []),
        (np.array([3, 4], np.uint8), [3, 4]),
        ([np.int64(3), 4, torch.tensor(6)], [3, 4, 6]),
        (encoding([3, 4], attention_mask=[1, 1]), [3, 4]),
        (encoding([9, 3, 4, 9], attention_mask=[0, 1, 1, 0]), [3, 4]),
        ({"input_ids": [3, 4], "token_type_ids": [0, 0]}, [3, 4]),
    ],
)
def test_a_single_prompt(given, expected):
    assert as_batch(given) == ([expected], True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([[]], [[]]),
        (["ab", [USER], [3, 4], torch.tensor([6])], ["ab", [USER], [3, 4], [6]]),
        ((text for text in ("a", "b")), ["a", "b"]),
        ({"a": 1, "b": 2}.keys(), None),
        (np.array(["a", "b"]), ["a", "b"]),
        (torch.tensor(TWO), TWO),
        (np.array(TWO), TWO),
        ([torch.tensor([3]), torch.tensor([4, 6])], [[3], [4, 6]]),
        ([np.array([3]), (4, 6)], [[3], [4, 6]]),
        ([torch.tensor([[3, 4]]), torch.tensor([[6]])], [[3, 4], [6]]),
        (PADDED, [[3, 4], [6, 7, 8]]),
        (BatchEncoding(TENSORS), [[3, 4], [6, 7, 8]]),
        (encoding(torch.tensor(TWO), attention_mask=torch.ones(2, 3, dtype=torch.bool)), TWO),
        (encoding(TWO), TWO),
        ([encoding([3, 4]), encoding(torch.tensor([[6]]))], [[3, 4], [6]]),
    ],
)
def test_a_batch(given, expected):
    if expected is None:
        with pytest.raises(DllmError, match="expected text"):
            as_batch(given)
    else:
        assert as_batch(given) == (expected, False)


REFUSED = [
    (None, "prompts=None"),
    (3, "prompts=3"),
    (True, "prompts=True"),
    (1.5, "prompts=1.5"),
    (b"abc", "prompts=b'abc'"),
    (USER, "prompts={'role'"),
    ({"a", "b"}, "prompts={'"),
    (object(), "prompts=<object"),
    (torch.tensor(3), "prompts=3"),
    (torch.tensor([0.5]), r"prompts\[0\]=0.5"),
    (torch.tensor([True]), r"prompts\[0\]=True"),
    (torch.zeros(1, 1, 2, dtype=torch.long), r"prompts\[0\] holds \[0, 0\]"),
    ([None], r"prompts\[0\]=None"),
    (["ab", None], r"prompts\[1\]=None"),
    (["ab", b"ab"], r"prompts\[1\]=b'ab'"),
    (["ab", 3], r"prompts\[1\]=3"),
    ([3, "ab"], "prompt holds 'ab'"),
    ([3, None], "prompt holds None"),
    ([3, 4.0], "prompt holds 4.0"),
    ([3, True], "prompt holds True"),
    ([True, False], r"prompts\[0\]=True"),
    ([0.5], r"prompts\[0\]=0.5"),
    ([[3, "ab"]], r"prompts\[0\] holds 'ab'"),
    ([["ab"]], r"prompts\[0\] holds 'ab'"),
    ([USER, "ab"], "prompt holds messages and 'ab'"),
    ([[USER, 3]], r"prompts\[0\] holds messages and 3"),
    ([encoding(TWO)], r"prompts\[0\]: expected one prompt, found a batch of 2"),
    (encoding("ab"), "prompts.input_ids='ab'"),
    (encoding([3], pixel_values=[1]), "'pixel_values' is nothing"),
    (encoding([3, 4], attention_mask=[1]), "a number for each"),
    (encoding([3, 4], attention_mask=3), "a number for each"),
    (encoding(TWO, attention_mask=[[1, 1, 1]]), "1 rows of attention_mask for 2 prompts"),
    (encoding([3, 4, 6], attention_mask=[1, 0, 1]), "hides tokens inside"),
]


@pytest.fixture(scope="module")
def engines():
    return [Engine(FakeModel(), FakeText()), dllm.verify.load("tiny-ar")]


@pytest.mark.parametrize(("given", "expected"), REFUSED)
def test_all_else_is_one_error_in_both_engines(engines, given, expected):
    for engine in engines:
        with pytest.raises(DllmError, match=expected) as caught:
            engine.generate(given)
        assert "\n" not in str(caught.value)


def test_both_engines_take_what_a_tokenizer_returns(engines):
    for engine in engines:
        found = engine.generate(BatchEncoding(TENSORS), max_new_tokens=4)
        alone = [engine.generate(ids, max_new_tokens=4) for ids in ([3, 4], TWO[1])]
        assert [each.token_ids for each in found] == [each.token_ids for each in alone]


def test_ids_reach_the_steps_in_whatever_holds_them(engines):
    for engine in engines:
        stream = engine.stream_steps if isinstance(engine, Engine) else engine.stream
        config = engine.config(max_new_tokens=2)
        assert list(stream(torch.tensor(TWO), config))
        with pytest.raises(DllmError, match=r"(row 1|prompts\[1\]) holds 'a'"):
            list(stream([[3], ["a"]], config))


@pytest.mark.parametrize("prompt", ["a\ud800b", [{"role": "user", "content": "a\udfffb"}]])
@pytest.mark.parametrize("load", [dllm.load, dllm.verify.load])
def test_half_a_character_is_no_text(load, prompt):
    engine = load("tiny" if load is dllm.load else "tiny-ar")
    with pytest.raises(DllmError, match=r"is \\ud[8f](00|ff), half of a surrogate pair"):
        engine.generate(prompt)


@pytest.mark.parametrize("chat", ["yes", None, 1])
def test_chat_is_one_of_three(engines, chat):
    for engine in engines:
        with pytest.raises(DllmError, match=r'expected True, False or "auto"'):
            engine.generate("ab", chat=chat)


def test_row_ids_in_whatever_holds_them():
    assert as_row_ids(None, 2) == [0, 1]
    for given in ([7, -1], (7, -1), torch.tensor([7, -1]), iter([np.int64(7), -1])):
        assert as_row_ids(given, 2) == [7, -1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([7], "1 row_ids for 2 prompts"),
        (7, "row_ids=7"),
        ("ab", "row_ids='ab'"),
        ([7, 0.5], "row_ids holds 0.5"),
        ([7, 2**63], f"row_ids holds {2**63}"),
    ],
)
def test_other_row_ids_are_one_error(given, expected):
    with pytest.raises(DllmError, match=expected):
        Engine(FakeModel()).generate([[3], [4]], row_ids=given)
