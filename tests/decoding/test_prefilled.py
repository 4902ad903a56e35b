"""Tokens that stand in the answer of one row of a request from the start."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.step import DecodeError
from dllm.engine import Engine
from dllm.output import Commit, Finished
from tests.fakes import EOS, PLAIN, VOCAB, FakeModel, FakeText, hashed

SIZE = 8
CONFIG = DecodeConfig(max_new_tokens=SIZE, block_length=3, sampler="quota", history=True)
stands = st.dictionaries(
    st.integers(0, SIZE - 1), st.sampled_from([*PLAIN, EOS]), max_size=SIZE - 1
)
rows = st.lists(
    st.tuples(st.lists(st.sampled_from(PLAIN), max_size=4), stands), min_size=1, max_size=3
)


def decode(prompts, stand, config=CONFIG, row_ids=None):
    """Events and Outputs of a request on a fresh model."""
    spans = [[(at, [token]) for at, token in sorted(each.items())] for each in stand]
    engine = Engine(FakeModel(hashed()), FakeText())
    events = list(engine.stream_steps(prompts, config, row_ids=row_ids, prefilled=spans))
    outputs = {e.row: e.output for e in events if isinstance(e, Finished)}
    return events, [outputs[row] for row in range(len(prompts))]


@given(rows, st.sampled_from(["quota", "quota:remasking=random", "threshold:threshold=0.3"]))
@settings(deadline=None, max_examples=30)
def test_every_row_keeps_its_own_and_decodes_as_alone(requests, sampler):
    prompts, stand = [prompt for prompt, _ in requests], [each for _, each in requests]
    config = CONFIG.replace(sampler=sampler)
    events, outputs = decode(prompts, stand, config)
    for row, (prompt, each) in enumerate(requests):
        _, [alone] = decode([prompt], [each], config, row_ids=[row])
        assert outputs[row].token_ids == alone.token_ids
        assert outputs[row].nfe == alone.nfe
        told, *_ = [
            *(e for e in events if isinstance(e, Commit) and e.row == row and not e.nfe),
            None,
        ]
        assert (told is None) == (not each)
        if told is not None:
            assert dict(zip(told.positions, told.token_ids, strict=True)) == {
                len(prompt) + at: token for at, token in each.items()
            }
        committed = {p - len(prompt) for commit in outputs[row].history for p in commit.positions}
        assert not committed & each.keys()
        answer = dict(enumerate(outputs[row].token_ids))
        assert all(answer[at] == token for at, token in each.items() if at in answer)


def test_the_request_s_text_and_the_row_s_tokens_both_stand():
    config = CONFIG.replace(prefilled=("0:a",))
    _, [one, two] = decode([[3], [3]], [{2: 7}, {1: 8}], config)
    a = FakeText().encode("a")[0]
    assert (one.token_ids[0], one.token_ids[2]) == (a, 7)
    assert two.token_ids[:2] == [a, 8]
    with pytest.raises(ConfigError, match="row 1, prefilled at 0: its 1 tokens overlap"):
        decode([[3], [3]], [{2: 7}, {0: 8}], config)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ([[(0, [3, 4]), (1, [6])]], "row 0, prefilled at 1: its 1 tokens overlap"),
        ([[(-1, [3])]], "row 0, prefilled at -1: its 1 tokens reach out"),
        ([[(7, [3, 4])]], "row 0, prefilled at 7: its 2 tokens reach out of max_new_tokens=8"),
        ([[(0, [3] * SIZE)]], "row 0: what is prefilled leaves no masked position"),
        ([[], []], "2 prefilled for 1 prompts"),
        ([[(0, [VOCAB])]], f"token id {VOCAB} is outside the vocabulary"),
    ],
)
def test_what_does_not_fit_is_told(given_, said):
    engine = Engine(FakeModel(hashed()), FakeText())
    with pytest.raises((ConfigError, DecodeError), match=said):
        next(engine.stream_steps([[3]], CONFIG, prefilled=given_))
    assert engine.model.calls == 0
