"""Given text, Ctrl-C, refusals and shortened rows, over random combinations of parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.none import NoCache
from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.canvas import Canvas, Windows
from dllm.decoding.rows import DecodeRequest
from dllm.decoding.speculation import Guess, SpeculatingBatch
from dllm.engine import Engine
from dllm.output import Commit, Finished, Output, Started
from dllm.samplers.candidates import Candidates
from dllm.samplers.protocols import HostState, PlannerBase
from dllm.samplers.rule import CommitRuleBase, Selection
from tests.decoding.test_guarantees import (
    Noting,
    any_of,
    configs,
    guessing,
    models,
    prompts,
    shifts,
    speculative,
)
from tests.fakes import EOS, EOT, MASK, FakeModel, FakeText, drifting, hashed, leaning, scripted
from tests.guarantees import ended, replay, run, summary
from tests.specs import STOPS, WHERE

# --- Ctrl-C --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(prompts, speculative, shifts, models(), st.integers(0, 8))
def test_interrupt_keeps_what_is_committed(batch, config, shift, out, call):
    config = config.replace(cfg_scale=0.0)  # a call is a forward that commits
    full = run(FakeModel(out, shift), batch, config)
    cut = run(FakeModel(out, shift, interrupt_at=call), batch, config)
    for prompt, a, b in zip(batch, full, cut, strict=True):
        if a.nfe <= call:
            assert summary(a) == summary(b)
            continue
        assert b.history == [commit for commit in a.history if commit.nfe <= call]
        *_, row = replay(prompt, b.history, config.max_new_tokens)
        known = [token for token in row[len(prompt) :] if token is not None]
        assert (b.finish_reason, b.nfe, b.slots) == ("interrupted", call, len(known))
        ends = [k for k, token in enumerate(known) if token in (EOS, EOT)]
        if not (config.stop_rule and "eotp" in config.stop_rule):  # it drops what is behind its cut
            assert b.token_ids == (known[: ends[0]] if ends else known)
            assert b.text == FakeText().decode(b.token_ids)


# --- prefilled text ------------------------------------------------------------------------------


class EndText(FakeText):
    """`$` is the end of the text."""

    pieces = ("", "$", *FakeText.pieces[2:])


def tokens_of(texts: Sequence[str]) -> dict[int, int]:
    """Token by offset behind the prompt."""
    found: dict[int, int] = {}
    for text in texts:
        offset, _, words = text.partition(":")
        found |= dict(enumerate(EndText().encode(words), start=int(offset)))
    return found


@settings(max_examples=40)
@given(
    prompts,
    speculative,
    st.sampled_from([("1:ab",), ("4:cd", "0:a"), ("2:\n", "5:bab"), ("3:$",), ("0:a$",), ("7:a",)]),
    models(),
)
def test_prefilled_text_stands_where_it_was_put(batch, config, texts, out):
    config = config.replace(prefilled=texts, max_new_tokens=10, cfg_scale=0.0)
    stands, model = tokens_of(texts), FakeModel(out)
    events = list(Engine(model, EndText()).stream_steps(batch, config))
    starts = [event for event in events if isinstance(event, Commit) and event.nfe == 0]
    assert events[len(batch) : 2 * len(batch)] == starts
    assert all(isinstance(event, Started) for event in events[: len(batch)])
    for row, (prompt, event) in enumerate(zip(batch, starts, strict=True)):
        offsets = [pos - len(prompt) for pos in event.positions]
        assert (event.row, offsets) == (row, sorted(stands))
        assert event.token_ids == [stands[offset] for offset in offsets]
    done = {event.row: event.output for event in events if isinstance(event, Finished)}
    assert max(output.nfe for output in done.values()) == model.calls <= 10 - len(stands)
    for row, prompt in enumerate(batch):
        output = done[row]
        commits = [starts[row], *output.history]
        assert output.slots == sum(len(c.positions) - len(c.remasked) for c in output.history)
        *before, last = replay(prompt, commits, 10)
        assert all(last[len(prompt) + offset] == token for offset, token in stands.items())
        end = ended(last[len(prompt) :])
        if output.finish_reason != "stop" and not (config.stop_rule and "eotp" in config.stop_rule):
            assert not any(ended(state[len(prompt) :]) for state in before[1:-1])
            assert (output.token_ids, output.finish_reason) == end
    alone = list(Engine(FakeModel(out), EndText()).stream_steps(batch[:1], config))
    assert summary(alone[-1].output) == summary(done[0])


def test_a_prefilled_end_token_ends_the_answer():
    model = FakeModel(leaning(7))
    options = {"prefilled": ("1:$",), "sampler": "quota", "max_new_tokens": 6, "block_length": 1}
    (output,) = Engine(model, EndText()).generate([[3, 4]], **options)
    assert (output.finish_reason, output.token_ids, output.nfe) == ("eos", [7], 1)
    assert (output.slots, output.answer_tokens) == (1, 2)


@settings(max_examples=30)
@given(
    prompts, configs, guessing, st.sampled_from([("1:ab",), ("4:cd", "0:a"), ("3:$",)]), models()
)
def test_guesses_change_nothing_around_prefilled_text(batch, config, speculator, texts, out):
    config = config.replace(prefilled=texts, max_new_tokens=9)
    plain, guessed = (
        list(Engine(FakeModel(out), EndText()).stream_steps(batch, c))
        for c in (config, config.replace(speculator=speculator))
    )
    for row in range(len(batch)):
        a, b = (
            [replace(e, nfe=0) for e in found if isinstance(e, Commit) and e.row == row]
            for found in (plain, guessed)
        )
        assert a == b


# --- refusals ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Freezing(NoCache):
    uses_kv = True
    freezes = True


@dataclass(frozen=True)
class Stored(NoCache):
    uses_kv = True


@pytest.mark.parametrize("planner", ["fixed", "multi", "slowfast", "adablock"])
def test_what_a_cache_cannot_follow_is_refused(planner):
    engine = Engine(FakeModel(), FakeText())
    with pytest.raises(
        ConfigError, match=r"sampler 'saber' masks committed positions again.*cache Freezing"
    ):
        engine.generate([[3]], sampler="saber", cache=Freezing(), planner=planner)
    for cache in (Freezing(), Stored()):
        for speculator in ("freedave", "ssd"):
            with pytest.raises(
                ConfigError, match=rf"speculator '{speculator}' computes .*use the cache 'none'"
            ):
                engine.generate([[3]], cache=cache, speculator=speculator, planner=planner)


@dataclass(frozen=True)
class Narrow(Stored):
    narrows = True


@pytest.mark.parametrize(
    ("option", "part", "refused"),
    [
        ("planner", "slowfast", "planner 'slowfast'"),
        ("planner", "adablock", "planner 'adablock'"),
        ("stop_rule", "prophet:at=2", "stop rule 'prophet:at=2'"),
    ],
)
def test_a_part_that_looks_at_all_masked_positions_needs_a_cache_that_predicts_them(
    option, part, refused
):
    with pytest.raises(
        ConfigError, match=rf"{refused} looks at all masked positions, but cache Narrow"
    ):
        Engine(FakeModel(), FakeText()).generate([[3]], cache=Narrow(), **{option: part})


# --- rows that a stop rule shortens or fills -----------------------------------------------------


CUT = [("quota", 199598, 3, 3.0), ("fhs", 318570, 5, 1.5)]  # found by search


@pytest.mark.parametrize("speculator", ["freedave:length=3", "ssd:length=3"])
@pytest.mark.parametrize(("sampler", "seed", "size", "height"), CUT)
def test_a_guess_of_the_longer_row_is_not_taken_for_the_shorter(
    sampler, seed, size, height, speculator
):
    """All that is cut was known before: only the length tells the two canvases apart."""
    config = DecodeConfig(size, None, sampler=sampler, stop_rule="eotp:threshold=0.3", history=True)
    out = leaning(EOS, height, drifting(seed, 0.1))
    plain, guessed = (
        run(FakeModel(out), [[3]], c)[0] for c in (config, config.replace(speculator=speculator))
    )
    assert commits(plain) == commits(guessed)


def commits(output: Output) -> list[Commit]:
    return [replace(commit, nfe=0) for commit in output.history or ()]


def test_guesses_from_before_a_row_was_shortened_still_fit():
    config = DecodeConfig(6, speculator="ssd")
    batch = SpeculatingBatch(FakeModel(), None, config, 3, 10)
    batch.join([DecodeRequest(prompt, config) for prompt in ([3], [3] * 4, [3])])
    canvas = batch.standing.canvas
    for row in range(3):
        ids, known = canvas.ids[row].copy(), canvas.known[row].copy()
        ids[canvas.prompt[row]], known[canvas.prompt[row]] = 7, True
        batch.guesses.append(Guess(row, ids, known))
    short = canvas.stepped(canvas.ids, canvas.known, np.array([7, 6, 7])).take([2, 1])
    batch._take(np.array([2, 1]), short, [batch.standing.rows[i] for i in (2, 1)])
    stacked, row = batch._stacked(short)
    assert row.tolist() == [0, 1, 1, 0]
    assert stacked.ids[2].tolist() == [3] * 4 + [7, MASK, MASK]
    assert stacked.ids[3].tolist() == [3, 7, *[MASK] * 5]


@pytest.mark.parametrize("seed", [653159, 389853, 293058])
def test_a_filled_row_takes_nothing_back(seed):
    for batch in ([[]], [[3]], [[3, 3]]):
        for early, middle in ((3.0, 1.0), (9.0, 1.0), (9.0, 9.0)):
            rule = Noting(length=2, at=1, early=early, middle=middle, late=1.0)
            config = DecodeConfig(10, None, history=True, stop_rule=rule)
            for sampler in ("saber", "saber:count=5"):
                rule.fired.clear()
                (output,) = run(FakeModel(hashed(seed)), batch, config.replace(sampler=sampler))
                assert rule.fired[0] in ([], [len(output.history) - 1])


def test_windows_of_rows_of_all_lengths_stay_in_step():
    """The planner has fewer windows once the row is cut."""
    tokens = dict.fromkeys(range(10), 3) | {4: EOS}
    heights = {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.3, 4: 9.0} | dict.fromkeys(range(5, 10), 0.5)
    for sampler in ("threshold", "saber", "klass"):
        config = DecodeConfig(
            10, 3, sampler=sampler, planner="multi:add=0", stop_rule=STOPS["eotp"][0], history=True
        )
        for output in run(FakeModel(scripted(tokens, heights)), [[], []], config):
            assert output.token_ids == [3] * 4


@settings(max_examples=30)
@given(
    st.sampled_from(["saber", "saber:count=5", "klass:threshold=0.2,kl_threshold=1.5,history=1"]),
    st.sampled_from(["multi:add=0,most=9,full=0.5", "multi:add=0.2"]),
    st.none() | guessing,
    st.none() | any_of(STOPS),
    st.integers(2, 4),
    st.integers(0, 2**32),
)
def test_what_rules_remember_of_each_window_follows_its_row(
    sampler, planner, speculator, stop_rule, block, seed
):
    """Rows leave at different times, and every open window has memory of its own."""
    config = DecodeConfig(10, block, sampler=sampler, planner=planner, history=True)
    config = config.replace(speculator=speculator, stop_rule=stop_rule)
    out = leaning(EOS, 1.0, drifting(seed, 1.0))
    batch = [[3, 4], [], [6], [7, 7]]
    together = run(FakeModel(out), batch, config, [0, 1, 2, 3])
    for row, (prompt, output) in enumerate(zip(batch, together, strict=True)):
        (alone,) = run(FakeModel(out), [prompt], config, [row])
        assert summary(output) == summary(alone)


# --- what rules are told, and must do ------------------------------------------------------------


class Probe(CommitRuleBase):
    """Notes the counters of every step; commits one token, or what is sure."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, ...], tuple[int, ...]] = {}

    def select(self, view: Candidates) -> Selection:
        for b in view.valid.any(1).nonzero()[:, 0].tolist():
            key = (view.row, view.step, view.start, view.end)
            told = (view.window_step, view.window_masked, view.valid.sum(1))
            place = tuple(int(t[b]) for t in key)
            assert place not in self.seen
            self.seen[place] = tuple(int(t[b]) for t in told)
            assert told[1][b] >= told[2][b]
        return Selection(view.valid & (view.conf >= 0.95))


@settings(max_examples=25)
@given(
    any_of(WHERE),
    st.sampled_from([None, 2, 5]),
    st.sampled_from([0.0, 0.7]),
    st.sampled_from([0.02, 0.1, 0.3]),
    st.integers(0, 2**32),
)
def test_counters_are_each_rows_own_where_guesses_come_true(planner, block, temperature, d, seed):
    """Rows that move several steps in one forward beside rows that do not."""
    out = leaning(EOS, -9.0, drifting(seed, d))
    batch = [[3, 4], [], [6], [7, 7]]
    plain, guessed = Probe(), Probe()
    config = DecodeConfig(10, block, temperature=temperature, planner=planner, history=True)
    a = run(FakeModel(out), batch, config.replace(sampler=plain))
    b = run(FakeModel(out), batch, config.replace(sampler=guessed, speculator="ssd"))
    assert plain.seen == guessed.seen
    assert [commits(output) for output in a] == [commits(output) for output in b]
    if planner in WHERE["multi"] + WHERE["fixed"]:
        first = {}
        for (row, step, start, _), told in sorted(plain.seen.items()):
            assert told[0] == step - first.setdefault((row, start), step)


@dataclass(frozen=True)
class Two(PlannerBase):
    """The two halves of every answer."""

    forced: tuple[bool, bool] | None

    def windows(self, canvas: Canvas, state: HostState) -> Windows:
        middle = (canvas.prompt + canvas.length) // 2
        start = np.stack([canvas.prompt, middle], 1)
        end = np.stack([middle, canvas.length], 1)
        forced = None
        if self.forced is not None:
            forced = np.broadcast_to(np.array(self.forced), start.shape)
        return Windows(start, end, forced)


@pytest.mark.parametrize(
    ("forced", "counts"),
    [
        (None, [2, 2, 2]),
        ((True, True), [2, 2, 2]),
        ((False, True), [2, 2, 2]),
        ((False, False), [1, 1, 1, 1, 1, 1]),
        ((True, False), [1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_first_window_and_the_forced_ones_commit(forced, counts):
    sampler, out = "threshold:threshold=1", scripted(dict.fromkeys(range(6), 3), 1.0)
    config = DecodeConfig(6, sampler=sampler, planner=Two(forced), history=True)
    (output,) = run(FakeModel(out), [[]], config)
    assert [len(commit.positions) for commit in output.history] == counts
