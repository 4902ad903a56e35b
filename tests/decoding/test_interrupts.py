"""Ctrl-C on every line of a request: what was told stands, the rest never was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from dllm.config import DecodeConfig
from dllm.decoding.driving import drive
from dllm.decoding.rows import DecodeRequest
from dllm.decoding.step import RowBatch
from dllm.engine import Engine
from dllm.output import Commit, Finished, Started
from tests.cache.models import decoder
from tests.fakes import EOS, FakeModel, FakeText, drifting, hashed, leaning
from tests.guarantees import Request, Told, check_cut, decode, summary
from tests.interrupting import Lines, every_line

PROMPTS, PREFILLED = [[3], [4, 4], []], [[], [(2, [6, 7])], []]
ANSWERING = ("dllm/engine.py", "dllm/decoding/driving.py", "dllm/decoding/standing.py")
BETWEEN = ("Engine.stream_steps", "RowBatch.events", "RowBatch._settle")
ANY = "threshold:threshold=0.5"
CONFIGS = {
    "several windows": DecodeConfig(6, 3, sampler=ANY, planner="multi:add=0", temperature=0.7),
    "tokens taken back": DecodeConfig(8, 4, sampler="saber"),
    "guesses": DecodeConfig(6, 3, sampler=ANY, speculator="freedave:length=3"),
    "a stop string": DecodeConfig(6, None, sampler="quota", stop=("b", "cd")),
    "rows cut short": DecodeConfig(6, None, sampler="quota", stop_rule="eotp:threshold=0.3"),
    "rows filled": DecodeConfig(6, 6, sampler="quota", stop_rule="prophet:at=2,length=2,late=0"),
    "guidance": DecodeConfig(4, 2, sampler="quota", cfg_scale=0.5, transform="credit"),
    "a cache": DecodeConfig(4, 2, sampler="quota", cache="prefix"),
    "a cache with guidance": DecodeConfig(4, 2, sampler="quota", cache="dual", cfg_scale=0.5),
}


def model_of(config: DecodeConfig) -> Any:
    if config.cache != "none":
        return decoder()
    out = drifting(3, 0.1) if config.speculator else hashed(3)
    return FakeModel(leaning(EOS, 1.0, out))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_told_stands_whatever_the_line(name):
    request = Request(PROMPTS, CONFIGS[name].replace(history=True), prefilled=PREFILLED)
    model = model_of(request.config)
    decode(model, request)  # what is made once is there
    whole = decode(model, request, Lines())
    assert len({output.nfe for output in whole.outputs}) > 1, "rows leave at different times"
    # from where the first event waits to be told to where the last one was told
    ran = whole.lines.ran()
    places = every_line(ran, "RowBatch.events", "drive")[:-1]
    between = [at for at in places if ran[at].function in BETWEEN]
    pick = random.Random(name)
    for at in [*pick.sample(between, 8), *pick.sample(places, 8)]:
        cut = decode(model, request, Lines(at))
        assert cut.lines.hit
        check_cut(request, whole, cut, ran[at])
    again = decode(model, request)
    assert [summary(output) for output in again.outputs] == list(map(summary, whole.outputs))


def test_generate_gives_an_output_for_every_row():
    config = CONFIGS["tokens taken back"].replace(history=False)
    one = Engine(model_of(config), FakeText())
    with Lines() as lines:
        whole = one.generate(PROMPTS, config)
    for at in every_line(lines.ran(), "RowBatch.events", "drive", ANSWERING):
        history = at % 2 == 0
        with Lines(at):
            outputs = one.generate(PROMPTS, config, history=history)
        for a, b in zip(whole, outputs, strict=True):
            assert a.token_ids == b.token_ids or b.finish_reason == "interrupted"
            assert (b.history is not None) == history


def test_before_the_first_step_there_is_nothing_to_keep():
    one = Engine(FakeModel(), FakeText())
    for at in (0, 5, 50):
        with Lines(at), pytest.raises(KeyboardInterrupt):
            one.generate(PROMPTS)


class Impatient(Told):
    """Is interrupted at the events that `at` says."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def show(self, event, seconds):
        super().show(event, seconds)
        if self.at(event):
            raise KeyboardInterrupt


def impatient(at):
    told = Told()
    events = Engine(FakeModel()).stream_steps(PROMPTS, DecodeConfig(4))
    done, interrupted = drive(events, Impatient(at), told)
    assert interrupted
    return told, [output.finish_reason for output in done.values()]


def test_consumers_behind_the_interrupted_one_see_the_event():
    told, reasons = impatient(lambda event: isinstance(event, Commit) and event.row == 1)
    assert reasons == ["interrupted"] * 3
    assert [type(event) for event in told.events] == [Started] * 3 + [Commit] * 3 + [Finished] * 3


def test_a_second_interrupt_ends_it_at_once():
    """While the rows are told that they ended."""

    def at(event):
        return isinstance(event, Finished) or (isinstance(event, Commit) and event.row == 2)

    _, reasons = impatient(at)
    assert reasons == ["interrupted"]


def test_an_interrupt_behind_the_last_row_cuts_nothing_but_is_told():
    _, reasons = impatient(lambda event: isinstance(event, Finished) and event.row == 1)
    assert "interrupted" not in reasons[:1]


def test_events_that_nobody_took_wait_behind_each_other():
    config = DecodeConfig(3, sampler="quota")
    batch = batch_of([[3]], config)
    while batch.active:
        batch.step()
    kinds = [type(event) for event in batch.events]
    assert kinds == [Started, Commit, Commit, Commit, Finished]
    assert list(batch.events) == []


def test_what_stands_is_never_changed():
    """Not even by the next step at work: it is what an interrupt goes by."""
    batch = batch_of(PROMPTS, DecodeConfig(4, sampler="quota"))
    batch.step()
    for change in (batch.step, batch.interrupt):
        before = batch.standing
        ids, known = before.canvas.ids.copy(), before.canvas.known.copy()
        change()
        assert batch.standing is not before
        assert np.array_equal(before.canvas.ids, ids)
        assert np.array_equal(before.canvas.known, known)


def batch_of(prompts, config):
    batch = RowBatch(FakeModel(leaning(7)), None, config, len(prompts), 8)
    batch.join([DecodeRequest(prompt, config) for prompt in prompts])
    return batch
