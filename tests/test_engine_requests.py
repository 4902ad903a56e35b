"""What a user hands to the engine and gets back: prompts, errors, stop strings, Ctrl-C, events."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.none import NoCache
from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.canvas import Windows
from dllm.decoding.driving import drive
from dllm.engine import DecodeError, Engine
from dllm.errors import DllmError
from dllm.output import Commit, Finished, Started
from dllm.samplers.protocols import PlannerBase
from tests.fakes import (
    EOS,
    EOT,
    MASK,
    VOCAB,
    FakeModel,
    FakeText,
    constant,
    hashed,
    leaning,
    scripted,
)
from tests.guarantees import Told


def writes(*tokens: int) -> FakeModel:
    """Proposes these tokens, the earlier the surer, behind an empty prompt."""
    heights = {pos: 9.0 - 0.2 * pos for pos in range(len(tokens))}
    return FakeModel(scripted(dict(enumerate(tokens)), heights))


# --- prompts -------------------------------------------------------------------------------------


def test_a_prompt_may_be_text_messages_or_ids():
    engine = Engine(FakeModel(), FakeText())
    wrapped, plain = [EOT, 3, 4, EOT], [3, 4]
    messages = [{"role": "user", "content": "ab"}]
    assert engine.encode("ab") == engine.encode(messages) == wrapped
    assert engine.encode("ab", chat=False) == engine.encode(plain) == plain
    assert engine.encode([]) == []


@pytest.mark.parametrize("prompt", ["ab", [3, 4], (3, 4), [{"role": "user", "content": "ab"}]])
def test_one_prompt_gives_one_output_and_a_list_a_list(prompt):
    engine = Engine(FakeModel(), FakeText())
    one = engine.generate(prompt, max_new_tokens=3)
    first, second = engine.generate([prompt, "a"], max_new_tokens=3)
    assert one.token_ids == first.token_ids
    assert second.token_ids == engine.generate("a", max_new_tokens=3).token_ids


def test_text_without_chat_template_is_encoded_as_it_is():
    text = FakeText()
    text.has_chat_template = False
    assert Engine(FakeModel(), text).encode("ab") == [3, 4]
    assert Engine(FakeModel(), text).encode("ab", chat=True) == [EOT, 3, 4, EOT]


def test_no_prompts_no_forward():
    model = FakeModel()
    assert Engine(model).generate([]) == []
    assert model.calls == 0


def test_without_a_tokenizer_only_ids_work():
    engine = Engine(FakeModel())
    assert engine.generate([[], [3]], max_new_tokens=2)[1].text == ""
    for prompt in ("ab", [{"role": "user", "content": "ab"}]):
        with pytest.raises(DllmError, match="no tokenizer"):
            engine.generate(prompt)
    with pytest.raises(ConfigError, match="stop strings need a tokenizer"):
        engine.generate([3], stop="a")


@pytest.mark.parametrize("token", [VOCAB, -1, 10**9])
def test_a_token_outside_the_vocabulary_is_named(token):
    with pytest.raises(DecodeError, match=rf"row 1: token id {token} .*\[0, {VOCAB}\)"):
        Engine(FakeModel()).generate([[3], [3, token]])


def test_more_positions_than_the_model_has():
    model = FakeModel()
    assert len(Engine(model).generate([[3] * 252], max_new_tokens=4)) == 1
    with pytest.raises(DecodeError, match=r"row 1: 253 prompt.*max_new_tokens=4 need 257.*has 256"):
        Engine(model).generate([[3], [3] * 253], max_new_tokens=4)


# --- row identity --------------------------------------------------------------------------------


def test_row_ids_must_match_the_prompts():
    with pytest.raises(DllmError, match="1 row_ids for 2 prompts"):
        list(Engine(FakeModel()).stream_steps([[3], [4]], DecodeConfig(4), row_ids=[7]))


def test_row_ids_default_to_the_index():
    config = DecodeConfig(6, temperature=1.0)
    engine = Engine(FakeModel())
    events = [list(engine.stream_steps([[3], [3]], config, row_ids=i)) for i in (None, [0, 1])]
    commits = [[e for e in found if isinstance(e, Commit)] for found in events]
    assert commits[0] == commits[1]
    by_row = [[(c.positions, c.token_ids) for c in commits[0] if c.row == row] for row in (0, 1)]
    assert by_row[0] != by_row[1]


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampelr": "quota"}, "unknown option 'sampelr'; known: max_new_tokens.*sampler"),
        ({"sampler": "qutoa"}, "unknown sampler 'qutoa'.*dream, .*quota, .*threshold"),
        ({"sampler": "quota:step=3"}, "no option 'step'; its options: steps, remasking"),
        ({"sampler": "threshold:0.9"}, "'threshold:0.9': expected name:key=value"),
        ({"sampler": "threshold:threshold=2"}, "threshold=2.0: expected a probability"),
        ({"sampler": 3}, r"sampler=3: expected a spec, or an object with select\(\)"),
        ({"planner": "dllm.samplers.quota:Quota"}, r"planner=.*object with windows\(\)"),
        ({"planner": "fixd"}, "unknown planner 'fixd'.*fixed"),
        ({"cache": "nope"}, "unknown cache policy 'nope'.*none"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected a whole number of at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1: expected a number of at least 0"),
    ],
)
def test_a_bad_option_is_one_clear_error_before_any_event(options, message):
    model = FakeModel()
    events = Engine(model, FakeText()).stream([3], chat=False, **options)
    with pytest.raises(DllmError, match=message):
        next(events)
    assert model.calls == 0


# --- a model that answers nonsense ---------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.7, "top_p": 0.5},
        {"temperature": 0.7, "top_k": 2},
        {"cfg_scale": 0.5},
    ],
)
def test_nan_and_infinity_name_row_and_step(value, dtype, options):
    """Row 0 ends first and row 2 takes its place, which is not its number. It ends alone."""

    def out(ids):
        return (leaning(EOS) if ids[0] == 3 else leaning(7))(ids)

    call = 4 if "cfg_scale" in options else 2
    model = FakeModel(out, dtype=dtype, poison=(call, 0, value))
    for sampler in ("quota", "dream:alg=entropy", "dream:alg=topk_margin,alg_temp=1"):
        model.plans.clear()
        config = DecodeConfig(max_new_tokens=6, block_length=1, sampler=sampler, **options)
        told = Told()
        stream = Engine(model).stream_steps([[3], [4], [6]], config)
        with pytest.raises(DecodeError, match=r"row 2, step 2: .* position \d+ hold NaN or inf"):
            drive(stream, told)
        done = {e.row: e.output for e in told.events if isinstance(e, Finished)}
        (alone,) = Engine(FakeModel(out, dtype=dtype)).generate([[4]], config, row_ids=[1])
        assert (done[1].token_ids, done[1].error) == (alone.token_ids, None)
        assert (done[2].finish_reason, len(done[2].token_ids)) == ("error", 2)
        assert "row 2, step 2" in done[2].error


def test_all_tokens_forbidden_is_an_error():
    with pytest.raises(DecodeError, match="row 0, step 0"):
        Engine(FakeModel(constant(-math.inf))).generate([3])


@given(st.sampled_from([0.0, 0.8]))
@settings(max_examples=2)
def test_tokens_forbidden_by_the_model_stay_forbidden_under_guidance(temperature):
    def out(ids):
        logits = hashed()(ids).copy()
        logits[:, 6:] = -math.inf
        return logits

    options = {"max_new_tokens": 8, "cfg_scale": 1.5, "temperature": temperature, "history": True}
    output = Engine(FakeModel(out)).generate([3], sampler="quota", **options)
    assert all(token < 6 for commit in output.history for token in commit.token_ids)


# --- stop strings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "stop", "text", "kept", "nfe"),
    [
        ([3, 4, 6, 7, 3], "c", "ab", [3, 4], 3),  # a single token
        ([3, 4, 6, 7, 3], "bc", "a", [3], 3),  # spans two tokens
        ([3, 9, 3, 3, 3], "d", "ac", [3], 2),  # begins inside the token "cd"
        ([3, 11, 4, 4, 4], "y", "ax\n", [3], 2),
        ([3, 12, 10, 3, 3], "\n", "aé", [3, 12], 3),
        ([3, 4, 6, 7, 3], ("zz", "d", "c"), "ab", [3, 4], 3),  # the earliest of several
        ([3, 4, 3, EOS, 4], "zz", "aba", [3, 4, 3], 4),
        ([4, 3, 3], "b", "", [], 1),
    ],
)
def test_text_is_cut_where_the_stop_string_begins(tokens, stop, text, kept, nfe):
    model = writes(*tokens)
    options = {"max_new_tokens": len(tokens), "sampler": "quota", "stop": stop}
    (output,) = Engine(model, FakeText()).generate([[]], **options)
    assert (output.text, output.token_ids, output.nfe) == (text, kept, nfe)
    assert output.finish_reason == ("eos" if EOS in tokens else "stop")


def test_a_stop_string_before_the_end_token_wins():
    """One forward commits all: the answer is cut and the reason is the stop string."""
    model = writes(3, 4, EOS, 4)
    (output,) = Engine(model, FakeText()).generate(
        [[]], max_new_tokens=4, sampler="threshold:threshold=0.1", stop=["b"]
    )
    assert (output.text, output.finish_reason, output.answer_tokens) == ("a", "stop", 3)


def test_a_stop_string_behind_the_end_token_or_a_masked_position_does_not_count():
    heights = {0: 5.0, 1: 4.0, 2: 6.0, 3: 2.0}
    model = FakeModel(scripted({0: 3, 1: 7, 2: 4, 3: EOS}, heights))
    (output,) = Engine(model, FakeText()).generate(
        [[]], max_new_tokens=4, sampler="quota", stop="ab"
    )  # "a_b" is committed first, then "adb"
    assert (output.text, output.finish_reason, output.nfe) == ("adb", "eos", 4)


def test_text_behind_a_masked_position_takes_no_part_in_the_cut():
    """ "b" stops the row while "d" waits behind a masked position: no match of "abd" across the
    masked position.
    """
    heights = {0: 8.0, 1: 6.0, 2: 1.0, 3: 7.0}
    model = FakeModel(scripted({0: 3, 1: 4, 2: 6, 3: 7}, heights))
    (output,) = Engine(model, FakeText()).generate(
        [[]], max_new_tokens=4, sampler="quota", stop=["b", "abd"]
    )
    assert (output.text, output.token_ids, output.finish_reason) == ("a", [3], "stop")
    assert (output.slots, output.answer_tokens) == (3, 2)


# --- Ctrl-C --------------------------------------------------------------------------------------


@given(st.integers(0, 7), st.sampled_from(["quota", "quota:remasking=random", "dream"]))
@settings(max_examples=30)
def test_interrupt_keeps_what_is_committed(call, sampler):
    """A full run tells what the first `call` forwards commit; one row ends before the rest."""
    prompts = [[3], [4, 4], [6]]
    options = {"max_new_tokens": 8, "block_length": 4, "sampler": sampler, "history": True}
    out = leaning(EOS, 2.0)
    full = Engine(FakeModel(out), FakeText()).generate(prompts, **options)
    cut = Engine(FakeModel(out, interrupt_at=call), FakeText()).generate(prompts, **options)
    for prompt, a, b in zip(prompts, full, cut, strict=True):
        assert b.history == a.history[:call]
        if a.nfe <= call:
            assert (b.finish_reason, b.token_ids, b.nfe) == (a.finish_reason, a.token_ids, a.nfe)
            continue
        found = {p: t for c in b.history for p, t in zip(c.positions, c.token_ids)}
        ends = [p for p, token in found.items() if token in (EOS, EOT)]
        expected = [found[p] for p in sorted(found) if p < min(ends, default=99)]
        assert (b.finish_reason, b.nfe, b.token_ids) == ("interrupted", call, expected)
        assert b.text == FakeText().decode(expected)
        assert b.slots == len(found)
        assert len(prompt) <= min(found, default=9)


def test_interrupt_does_not_see_stop_strings_across_masked_positions():
    heights = {0: 5.0, 1: 1.0, 2: 4.0}
    model = FakeModel(scripted({0: 3, 1: 7, 2: 4}, heights), interrupt_at=2)
    (output,) = Engine(model, FakeText()).generate(
        [[]], max_new_tokens=3, sampler="quota", stop="ab"
    )
    assert (output.finish_reason, output.text, output.token_ids) == ("interrupted", "ab", [3, 4])


# --- events --------------------------------------------------------------------------------------


def test_events_come_as_they_happen():
    model = FakeModel(leaning(7))
    events = Engine(model).stream([[3], [4]], max_new_tokens=2, sampler="quota")
    kinds = [Started, Started, Commit, Commit, Commit, Commit, Finished, Finished]
    calls = [0, 0, 1, 1, 2, 2, 2, 2]
    for row, (kind, count) in enumerate(zip(kinds, calls)):
        event = next(events)
        assert (type(event), event.row, model.calls) == (kind, row % 2, count)
    assert next(events, None) is None


def test_timings_are_within_each_other():
    output = Engine(FakeModel()).generate([3], max_new_tokens=4)
    assert 0 < output.timings.forward < output.timings.total


def test_a_prompt_of_masks_is_a_prompt():
    output = Engine(FakeModel()).generate([MASK] * 3, max_new_tokens=3, history=True)
    assert {p for c in output.history for p in c.positions} <= {3, 4, 5}


class NoHole(PlannerBase):
    """A planner whose window lies in the prompt."""

    def windows(self, canvas, state):
        return Windows(canvas.prompt * 0, canvas.prompt)


def test_a_window_without_masked_positions_is_an_error_and_not_a_loop():
    with pytest.raises(DecodeError, match="chose a window without a masked position"):
        Engine(FakeModel()).generate([[3, 4]], planner=NoHole(), max_new_tokens=4)


def test_tensors_and_arrays_are_ids():
    engine = Engine(FakeModel())
    expected = [o.token_ids for o in engine.generate([[3, 4], [6, 7]], max_new_tokens=6)]
    for ids in (torch.tensor([[3, 4], [6, 7]]), np.array([[3, 4], [6, 7]])):
        assert [o.token_ids for o in engine.generate(ids, max_new_tokens=6)] == expected


def test_row_ids_reach_generate():
    engine = Engine(FakeModel())
    options = {"max_new_tokens": 8, "temperature": 1.0, "sampler": "quota"}
    two = engine.generate([[3, 4], [6, 7]], **options)
    alone = engine.generate([[6, 7]], row_ids=[1], **options)
    assert alone[0].token_ids == two[1].token_ids


@dataclass(frozen=True)
class Counting(NoCache):
    """A policy that keeps state."""

    plans: list = field(default_factory=list)

    def plan(self, canvas, want, shift):
        self.plans.append(want.shape)
        return super().plan(canvas, want, shift)


def test_a_policy_given_as_an_object_serves_every_request_afresh():
    policy = Counting()
    Engine(FakeModel()).generate([[3, 4]], cache=policy, max_new_tokens=4)
    assert policy.plans == []
