"""The promises of the decode loop over random combinations of all registered parts.

`tests/test_engine.py` has them in detail for a few rules; here every part meets every other.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm.canvas import Canvas, Windows
from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.output import Commit, Event, Finished, Output
from dllm.samplers import PLANNERS, SAMPLERS, SPECULATORS, STOP_RULES, TRANSFORMS
from dllm.samplers.candidates import Candidates
from dllm.samplers.egp import ExtremelyGreedy
from dllm.samplers.learn2pd import Learn2PD, save_filter
from dllm.samplers.parts import Planner, State, Verdict
from dllm.samplers.prophet import Prophet
from dllm.samplers.scheduler import Scheduler
from tests.fakes import (
    EOS,
    EOT,
    MASK,
    PLAIN,
    VOCAB,
    FakeModel,
    FakeText,
    Out,
    constant,
    hashed,
    leaning,
)

LONGEST = 10  # max_new_tokens


class Halves:
    """A scheduler that fills the surer half of what is masked."""

    def step(self, logits: Tensor, timestep: Any, sample: Tensor, mask_token_id: int) -> Any:
        conf, token = logits.softmax(-1).max(-1)
        masked = sample == mask_token_id
        order = conf.masked_fill(~masked, -1).argsort(dim=1, descending=True, stable=True)
        first = order[:, : math.ceil(int(masked.sum()) / 2)]
        return (sample.scatter(1, first, token.gather(1, first)),)


def random_filter(seed: int, block: int = LONGEST) -> Learn2PD:
    """A filter whose answers are as good as random; low thresholds let several tokens pass."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"in.weight": (4, block), "in.bias": (4,), "out.weight": (block, 4)}
    layers = {
        n: torch.randn(s, generator=rng) for n, s in (shapes | {"out.bias": (block,)}).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        save_filter(Path(folder) / "filter", layers)
        return Learn2PD(str(Path(folder) / "filter"), threshold=0.6)


def references(seed: int) -> ExtremelyGreedy:
    rows = np.random.default_rng(seed).choice(PLAIN, (10, LONGEST)).tolist()
    return ExtremelyGreedy(tuple(map(tuple, rows)))


RULES: dict[str, list[Any]] = {
    "quota": ["quota", "quota:steps=3", "quota:steps=4,remasking=random"],
    "dream": ["dream:steps=4", "dream:alg=entropy,steps=5", "dream:alg=topk_margin,alg_temp=0.5"],
    "threshold": ["threshold:threshold=0.5", "threshold:threshold=0.8"],
    "factor": ["factor:factor=2", "factor:compat=true"],
    "frechet": ["frechet:delta=0.05"],
    "localleap": ["localleap:threshold=0.7,relaxed=0.3,radius=2"],
    "entropy": ["entropy:threshold=1.2"],
    "eb": ["eb:bound=0.8", "eb:bound=1.5,error=margin"],
    "klass": ["klass:threshold=0.2,kl_threshold=1.5,history=1", "klass:threshold=0,kl_threshold=3"],
    "hierarchical": ["hierarchical:low=0.2,high=0.7"],
    "dus": ["dus"],
    "pc": ["pc", "pc:steps=4,decay=0"],
    "fhs": ["fhs", "fhs:count=3"],
    "saber": ["saber", "saber:count=5"],
    "learn2pd": [random_filter(0), random_filter(1)],
    "scheduler": [Scheduler(Halves())],
}
WHERE: dict[str, list[str]] = {
    "fixed": ["fixed"],
    "adablock": ["adablock:threshold=0.1,share=0.5", "adablock:exact=true,threshold=0,share=1"],
    "slowfast": ["slowfast:explore=2,reach=0.2", "slowfast:block_length=none"],
    "multi": ["multi:add=0,most=3,full=0.5", "multi:add=0.4,full=0.8"],
}
STOPS = {
    "eotp": ["eotp:threshold=0.3", "eotp:threshold=0"],
    "prophet": ["prophet:at=2,length=3,early=3,middle=2,late=1", "prophet:marker=ab,late=0"],
}
CHANGES = {"credit": ["credit", "credit:slots=1,alpha=3"]}
GUESSES = {"freedave": ["freedave:length=3", "freedave"], "ssd": ["ssd:length=3"]}


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


def drifting(seed: int, drift: float) -> Out:
    """Logits that mostly stay as tokens are committed, so that guesses often come true."""
    still, moving = hashed(seed, 3.0), hashed(seed + 1, drift)
    return lambda ids: still(np.zeros_like(ids)) + moving(ids)


@st.composite
def models(draw: st.DrawFn) -> Out:
    """Hashed, slowly drifting, or tied logits; perhaps leaning to an end token or the mask."""
    seed = draw(st.integers(0, 2**32))
    out = draw(
        st.sampled_from([hashed(seed), *[drifting(seed, d) for d in (0.1, 0.5)], constant()])
    )
    token, height = draw(
        st.sampled_from([(3, 0.0), (EOS, 1.5), (EOS, 4.0), (EOT, 30.0), (MASK, 9.0)])
    )
    return leaning(token, height, out)


def events_of(
    model: FakeModel,
    batch: Sequence[Sequence[int]],
    config: DecodeConfig,
    row_ids: Sequence[int] | None = None,
) -> list[Event]:
    return list(Engine(model, FakeText()).stream_steps(batch, config, row_ids=row_ids))


def run(
    model: FakeModel,
    batch: Sequence[Sequence[int]],
    config: DecodeConfig,
    row_ids: Sequence[int] | None = None,
) -> list[Output]:
    events = events_of(model, batch, config, row_ids)
    done = {event.row: event.output for event in events if isinstance(event, Finished)}
    for row, output in done.items():
        assert output.history == [e for e in events if isinstance(e, Commit) and e.row == row]
    return [done[row] for row in range(len(batch))]


def replay(
    prompt: Sequence[int], commits: Sequence[Commit], size: int
) -> Iterator[list[int | None]]:
    """The row (holes are None) before the first commit and after each."""
    row: list[int | None] = [*prompt, *[None] * size]
    yield list(row)
    for commit in commits:
        for pos, token in zip(commit.positions, commit.token_ids, strict=True):
            assert row[pos] is None, "committed twice, or inside the prompt"
            row[pos] = token
        for pos in commit.remasked:
            assert row[pos] is not None, "made a hole of a hole"
            assert pos >= len(prompt)
            row[pos] = None
        yield list(row)


def summary(output: Output) -> tuple[Any, ...]:
    """All of an Output that does not depend on the clock or the row's number."""
    names = ("text", "token_ids", "finish_reason", "nfe", "canvases", "slots", "answer_tokens")
    history = [replace(commit, row=0) for commit in output.history or ()]
    return (*(getattr(output, name) for name in names), history)


# --- 1, 2, 4, 7: progress, windows, forwards, events ---------------------------------------------


@dataclass
class Watching:
    """A planner that notes in which spans each step of each row may commit."""

    planner: Planner
    spans: dict[tuple[int, int], list[range]] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        return self.planner.needs

    def bind(self, vocabulary: Any) -> Watching:
        if hasattr(self.planner, "bind"):
            self.planner = self.planner.bind(vocabulary)
        return self

    def windows(self, canvas: Canvas, state: State) -> Windows:
        return self.planner.windows(canvas, state)

    def narrow(self, view: Candidates, windows: Windows, state: State) -> Windows:
        chosen = self.planner.narrow(view, windows, state)
        for b in range(len(view.row)):
            if view.valid[b].any():
                key = int(view.row[b]), int(view.step[b])
                assert key not in self.spans, "a step was decided twice"
                self.spans[key] = [*map(range, chosen.start[b].tolist(), chosen.end[b].tolist())]
        return chosen


@settings(max_examples=120)
@given(prompts, speculative, shifts, models())
def test_steps_progress_in_windows_and_are_counted(batch, config, shift, out):
    planner = Watching(config.make("planner"))
    model = FakeModel(out, shift)
    outputs = run(model, batch, config.replace(planner=planner))
    size = config.max_new_tokens
    assert max(output.nfe for output in outputs) == model.calls <= size
    assert sum(output.canvases for output in outputs) == sum(model.batches)
    for i, (prompt, output) in enumerate(zip(batch, outputs)):
        assert output.history
        for step, commit in enumerate(output.history):
            assert len(commit.positions) > len(commit.remasked)
            assert MASK not in commit.token_ids
            filled = step == len(output.history) - 1 and "prophet" in str(config.stop_rule)
            spans = [range(len(prompt) + size)] if filled else planner.spans[i, step]
            inside = {pos for span in spans for pos in span}
            assert inside.issuperset([*commit.positions, *commit.remasked])
            first = min(commit.positions) if config.planner == "fixed" else None
            assert first is None or first < planner.spans[i, step][0].stop
        assert (i, len(output.history)) not in planner.spans
        *_, last = replay(prompt, output.history, size)
        assert output.slots == sum(token is not None for token in last[len(prompt) :])
        known = [*last[len(prompt) :], None]
        known = known[: known.index(None)]
        ends = [k for k, token in enumerate(known) if token in (EOS, EOT)]
        known = known[: ends[0]] if ends else known
        if output.finish_reason == "stop":
            assert FakeText().decode(known).startswith(output.text)
            assert not any(stop in output.text for stop in config.stop)
        elif "eotp" in str(config.stop_rule):  # may have dropped tokens that were known
            assert known[: len(output.token_ids)] == output.token_ids
        else:
            assert output.token_ids == known
            assert output.finish_reason == ("eos" if ends else "length")
            assert ends or len(known) == size
    # The model was shown, in front of the guesses, what the events say.
    for call, ids in enumerate(model.seen):
        rows = [i for i, output in enumerate(outputs) if output.nfe > call]
        for i, seen in zip(rows, ids.tolist()):
            done = [c for c in outputs[i].history or () if c.nfe <= call]
            *_, row = replay(batch[i], done, size)
            assert seen[: len(row)] == [MASK if t is None else t for t in row][: len(seen)]


# --- 3, 9: rows do not see each other ------------------------------------------------------------


@settings(max_examples=80)
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


@settings(max_examples=150)
@given(prompts, configs, guessing, shifts, models())
def test_guesses_change_nothing_but_the_number_of_forwards(batch, config, speculator, shift, out):
    plain = run(FakeModel(out, shift), batch, config)
    model = FakeModel(out, shift)
    guessed = run(model, batch, config.replace(speculator=speculator))
    for a, b in zip(plain, guessed, strict=True):
        names = ("text", "token_ids", "finish_reason", "slots", "answer_tokens")
        assert [getattr(a, n) for n in names] == [getattr(b, n) for n in names]
        assert [replace(c, nfe=0) for c in a.history] == [replace(c, nfe=0) for c in b.history]
        assert b.nfe <= a.nfe == a.canvases
        assert b.canvases >= b.nfe
        assert [c.nfe for c in a.history] == list(range(1, a.nfe + 1))


# --- 6: stop rules -------------------------------------------------------------------------------


@settings(max_examples=40)
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

    def check(self, view: Candidates, canvas: Canvas, state: State) -> Verdict:
        verdict = super().check(view, canvas, state)
        assert verdict.fill is not None
        for b in (verdict.fill & view.valid.any(1)).nonzero()[:, 0].tolist():
            self.fired[int(view.row[b])].append(int(view.step[b]))
        return verdict


@settings(max_examples=60)
@given(prompts, speculative, models())
def test_a_fill_of_prophet_finishes_the_row_in_that_step(batch, config, out):
    rule = Noting(length=2, at=1, early=2.0, middle=2.0, late=1.0)
    outputs = run(FakeModel(out), batch, config.replace(stop_rule=rule))
    for row, output in enumerate(outputs):
        assert rule.fired[row] in ([], [len(output.history) - 1])
        if rule.fired[row]:
            assert output.slots == config.max_new_tokens
