"""The guarantees of the decode loop over random combinations of all registered parts.

`tests/test_engine.py` has them in detail for a few rules; here every part meets every other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.samplers import PLANNERS, SAMPLERS, SPECULATORS, STOP_RULES, TRANSFORMS
from dllm.samplers.candidates import Candidates
from dllm.samplers.egp import ExtremelyGreedy
from dllm.samplers.prophet import Prophet
from dllm.samplers.protocols import DeviceCanvas, State, Verdict
from tests.fakes import (
    EOS,
    EOT,
    MASK,
    VOCAB,
    FakeModel,
    Out,
    constant,
    drifting,
    hashed,
    leaning,
)
from tests.guarantees import Request, Watching, check_model, check_run, decode, run, summary
from tests.specs import CHANGES, GUESSES, LONGEST, RULES, STOPS, WHERE, references


def test_every_registered_part_takes_part():
    tables = (SAMPLERS, PLANNERS, STOP_RULES, TRANSFORMS, SPECULATORS)
    for table, here in zip(tables, (RULES, WHERE, STOPS, CHANGES, GUESSES), strict=True):
        assert set(table) == set(here)


def any_of(table: dict[str, list[Any]]) -> st.SearchStrategy[Any]:
    return st.sampled_from(list(table)).flatmap(lambda name: st.sampled_from(table[name]))


rules = any_of(RULES) | st.builds(references, st.integers(0, 9))
configs = st.builds(
    DecodeConfig,
    max_new_tokens=st.integers(1, LONGEST),
    block_length=st.sampled_from([None, 1, 3, 8]),
    temperature=st.sampled_from([0.0, 0.0, 0.7]),
    top_p=st.sampled_from([1.0, 1.0, 0.8]),
    top_k=st.sampled_from([0, 0, 3]),
    cfg_scale=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 9),
    stop=st.sampled_from([(), (), ("b",), ("cd", "\n")]),
    history=st.just(True),
    sampler=rules,
    planner=any_of(WHERE),
    transform=st.none() | any_of(CHANGES),
    stop_rule=st.none() | any_of(STOPS),
)
guessing = any_of(GUESSES)
speculative = st.builds(lambda c, s: c.replace(speculator=s), configs, st.none() | guessing)
prompts = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=5), min_size=1, max_size=4)
shifts = st.sampled_from([0, 1])


@st.composite
def models(draw: st.DrawFn) -> Out:
    """Hashed, slowly drifting, or tied logits; perhaps leaning to an end token or the mask."""
    seed = draw(st.integers(0, 2**32))
    out = draw(
        st.sampled_from([hashed(seed), *[drifting(seed, d) for d in (0.1, 0.5)], constant()])
    )
    token, height = draw(
        st.sampled_from([(3, 0.0), (EOS, 1.5), (EOS, 4.0), (EOT, 30.0), (MASK, 30.0)])
    )
    return leaning(token, height, out)


# --- 1, 2, 4, 7: progress, windows, forwards, events ---------------------------------------------


@settings(max_examples=70)
@given(prompts, speculative, shifts, models())
def test_steps_progress_in_windows_and_are_counted(batch, config, shift, out):
    planner, model = Watching(config.make("planner")), FakeModel(out, shift)
    found = decode(model, Request(batch, config.replace(planner=planner)))
    check_run(Request(batch, config), found, planner.spans)
    check_model(Request(batch, config), found, model)


# --- 3, 9: rows do not see each other ------------------------------------------------------------


@settings(max_examples=50)
@given(prompts, speculative, shifts, models(), st.data())
def test_batch_equals_alone_in_any_order(batch, config, shift, out, data):
    """Forwards and canvases too: also a speculator's guesses are each row's own."""
    ids = st.lists(st.integers(0, 9), min_size=len(batch), max_size=len(batch))
    row_ids = data.draw(ids)
    together = run(FakeModel(out, shift), batch, config, row_ids)
    for prompt, row_id, output in zip(batch, row_ids, together):
        (alone,) = run(FakeModel(out, shift), [prompt], config, [row_id])
        assert summary(output) == summary(alone)
    order = data.draw(st.permutations(range(len(batch))))
    other = run(
        FakeModel(out, shift), [batch[i] for i in order], config, [row_ids[i] for i in order]
    )
    assert [summary(output) for output in other] == [summary(together[i]) for i in order]


# --- 5: speculation is lossless ------------------------------------------------------------------


@settings(max_examples=70)
@given(prompts, configs, guessing, shifts, models())
def test_guesses_change_nothing_but_the_number_of_forwards(batch, config, speculator, shift, out):
    plain = run(FakeModel(out, shift), batch, config)
    model, branches = FakeModel(out, shift), 2 if config.cfg_scale else 1
    guessed = run(model, batch, config.replace(speculator=speculator))
    for a, b in zip(plain, guessed, strict=True):
        names = ("text", "token_ids", "finish_reason", "slots", "answer_tokens")
        assert [getattr(a, n) for n in names] == [getattr(b, n) for n in names]
        assert [replace(c, nfe=0) for c in a.history] == [replace(c, nfe=0) for c in b.history]
        assert b.nfe <= a.nfe == a.canvases * branches
        assert b.canvases * branches >= b.nfe
        assert [c.nfe for c in a.history] == list(range(branches, a.nfe + 1, branches))


# --- 6: stop rules -------------------------------------------------------------------------------


@settings(max_examples=30)
@given(prompts, configs.filter(lambda c: c.temperature == 0), models(), st.data())
def test_eotp_leaves_what_stands_before_the_end(batch, config, out, data):
    """On predictions that never change, whatever is dropped is no part of the answer."""

    def still(ids: np.ndarray) -> np.ndarray:
        return out(np.zeros(40, dtype=ids.dtype))[: len(ids)]

    if isinstance(config.sampler, ExtremelyGreedy):
        config = config.replace(sampler="threshold:threshold=0.5")  # no tokens but the model's
    stop_rule = data.draw(st.sampled_from(STOPS["eotp"]))
    full = run(FakeModel(still), batch, config.replace(stop_rule=None))
    cut = run(FakeModel(still), batch, config.replace(stop_rule=stop_rule))
    for a, b in zip(full, cut, strict=True):
        assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)


@dataclass(frozen=True)
class Noting(Prophet):
    """Notes in which step of which row it fired."""

    fired: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def check(self, view: Candidates, canvas: DeviceCanvas, state: State) -> Verdict:
        verdict = super().check(view, canvas, state)
        assert verdict.fill is not None
        for b in (verdict.fill & view.valid.any(1)).nonzero()[:, 0].tolist():
            self.fired[int(view.row[b])].append(int(view.step[b]))
        return verdict


@settings(max_examples=40)
@given(prompts, speculative, models())
def test_a_fill_of_prophet_finishes_the_row_in_that_step(batch, config, out):
    rule = Noting(length=2, at=1, early=2.0, middle=2.0, late=1.0)
    outputs = run(FakeModel(out), batch, config.replace(stop_rule=rule))
    for row, output in enumerate(outputs):
        assert rule.fired[row] in ([], [len(output.history) - 1])
        if rule.fired[row]:
            assert output.slots == config.max_new_tokens
