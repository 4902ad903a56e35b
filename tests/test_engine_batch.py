"""The public running batch: prompts of text that join, step together and leave."""

import pytest

from dllm.config import ConfigError
from dllm.engine import DecodeError, Engine
from dllm.output import Commit, Finished, Started
from dllm.registry import SpecError
from tests.fakes import FakeModel, FakeText, hashed


def engine():
    return Engine(FakeModel(hashed(4)), FakeText())


def test_prompts_join_a_running_batch_and_are_what_they_are_alone():
    batch = engine().batch(2, 16, max_new_tokens=6, sampler="quota")
    told = []
    first = batch.add("ab")
    told += batch.step()
    second = batch.add("cd", temperature=0.7, seed=3, max_new_tokens=4, row_id=9)
    assert (batch.active, batch.free) == ([first, second], 0)
    while batch.active:
        told += batch.step()
    assert batch.step() == []
    assert [type(event) for event in told[:2]] == [Started, Commit]
    done = {event.row: event.output for event in told if isinstance(event, Finished)}
    options = {"sampler": "quota", "max_new_tokens": 6}
    assert done[first].token_ids == engine().generate("ab", **options).token_ids
    options |= {"temperature": 0.7, "seed": 3, "max_new_tokens": 4}
    (alone,) = engine().generate(["cd"], row_ids=[9], **options)
    assert done[second].token_ids == alone.token_ids


def test_a_cancelled_prompt_keeps_what_it_has():
    batch = engine().batch(1, 16, max_new_tokens=6, sampler="quota")
    number = batch.add("ab")
    batch.step()
    batch.step()
    batch.cancel(number)
    (last,) = batch.step()
    assert (last.output.finish_reason, last.output.slots) == ("interrupted", 2)
    assert batch.free == 1


def test_what_does_not_fit_is_refused_and_changes_nothing():
    batch = engine().batch(1, 12, max_new_tokens=6, cache="none")
    for prompt, options, error, what in [
        ("ab", {"cache": "dual"}, ConfigError, "cache='dual': expected 'none'"),
        ("ab", {"max_new_tokens": 64}, DecodeError, "positions: this batch has 12 a row"),
        ([99], {}, DecodeError, "token id 99 is outside"),
        ("ab", {"sampler": "nope"}, SpecError, "unknown sampler 'nope'"),
        ("ab", {"cheese": 1}, ConfigError, "cheese"),
    ]:
        with pytest.raises(error, match=what):
            batch.add(prompt, **options)
        assert batch.free == 1
    batch.add("ab")
    with pytest.raises(DecodeError, match="this batch has 1 places"):
        batch.add("ab")
    for wrong in ({"rows": 0, "length": 9}, {"rows": 1, "length": 1}):
        with pytest.raises(ConfigError, match="expected a whole number"):
            engine().batch(**wrong)
