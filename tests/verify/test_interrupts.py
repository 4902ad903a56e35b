"""Ctrl-C on every line of a round of speculation: what was told stands, and the engine goes on."""

import random
from contextlib import suppress

import pytest

import dllm.verify
from dllm.decoding.driving import drive
from dllm.errors import DllmError
from dllm.output import Finished, Started
from dllm.verify.engine import SpecEngine
from dllm.verify.output import RowRound
from tests.guarantees import Told
from tests.interrupting import Lines, every_line
from tests.verify.scripted import knowing
from tests.verify.tiny_targets import SHALLOW, VOCAB, tiny_target

PROMPTS = [[9, 4, 9, 4, 9, 4], [17, 3], [5]]
SIZE = 5
CASES = {
    "the clock": {"control": "cost"},
    "branches alone": {"control": "fixed:depth=0,nodes=6", "search": "product"},
    "adl": {"control": "adl:k_min=2,k_max=4", "search": "argmax", "reuse": 2, "sources": ()},
    "sampled": {"control": "threshold:depth=3,step=1", "search": "cps", "temperature": 1.0},
}
LEARNING = (
    "verify/control/costs.py",
    "verify/control/goodput.py",
    "verify/sources/memory.py",
    "verify/config.py",
)


@pytest.fixture(scope="module")
def target():
    model = tiny_target(SHALLOW)
    model.generation_config.eos_token_id = 7
    return dllm.verify.HFTarget(model)


@pytest.fixture(scope="module")
def plain(target):
    """What the target says by itself."""
    engine = SpecEngine(target)
    outputs = engine.generate(PROMPTS, sources=(), max_new_tokens=SIZE)
    return [[t for each in o.rounds for t in each.tokens] for o in outputs]


def engine_of(target, plain, spoil):
    texts = [[*prompt, *tokens] for prompt, tokens in zip(PROMPTS, plain, strict=True)]
    return SpecEngine(target, None, knowing(texts, VOCAB, spoil))


def decode(engine, options, at=None):
    told, lines = Told(), Lines(at)
    with lines:
        done, _ = drive(engine.stream(PROMPTS, max_new_tokens=SIZE, **options), told)
    return told.events, done, lines


@pytest.mark.parametrize("name", CASES)
def test_what_was_told_stands_whatever_the_line(target, plain, name):
    """Drafts differ with the clock, and with them rounds; what they add up to does not."""
    options, engine = CASES[name], engine_of(target, plain, spoil=2)
    decode(engine, options)
    _, full, lines = decode(engine, options)
    whole = {row: emitted(output.rounds) for row, output in full.items()}
    if name != "sampled":
        assert [whole[row] for row in sorted(whole)] == plain
    ran = lines.ran()
    places = every_line(ran, "StandingRounds.at_start", "drive")[4:-1]
    pick = random.Random(name)
    learning = [at for at in places if ran[at].file in LEARNING]
    for at in [*pick.sample(places, 25), *pick.sample(learning, min(15, len(learning)))]:
        events, done, cut = decode(engine, options, at)
        if cut.hit:  # rounds may be fewer
            check(events, done, whole, cut.ran()[-1])
    _, again, _ = decode(engine, options)
    assert {row: emitted(output.rounds) for row, output in again.items()} == whole


def check(events, done, whole, line):
    assert sorted(done) == [0, 1, 2], line
    for row, output in done.items():
        tokens = emitted(output.rounds)
        assert tokens == whole[row][: len(tokens)], line
        assert output.finish_reason == "interrupted" or tokens == whole[row], line
        assert output.finish_reason != "interrupted" or tokens == output.token_ids, line
    if line.function == "drive":  # whoever was about to be shown an event may not have seen it
        return
    assert [e.row for e in events if isinstance(e, Started)] == [0, 1, 2], line
    assert sorted(e.row for e in events if isinstance(e, Finished)) == [0, 1, 2], line
    for row, output in done.items():
        told = tuple(e for e in events if isinstance(e, RowRound) and e.row == row)
        assert told == output.rounds, line


def emitted(rounds):
    return [token for each in rounds for token in each.tokens]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DllmError])
def test_what_was_learned_is_made_anew_after_a_cut_round(target, plain, monkeypatch, error):
    """Half of a measure would be an error in every later run."""
    engine = engine_of(target, plain, spoil=3)
    made = engine.components.of(engine.config(), False)

    def half(arm, tokens, seconds):
        arm.rounds += 1
        raise error

    with monkeypatch.context() as patch, suppress(DllmError):
        patch.setattr("dllm.verify.control.goodput.Arm.add", half)
        while (
            engine.components.of(engine.config(), False) is made
        ):  # until there is something to compare with
            decode(engine, {})
    assert any(arm.rounds and not arm.seconds for arm in made.control.learned.arms.values())
    for _ in range(3):
        _, done, _ = decode(engine, {})
        assert [emitted(done[row].rounds) for row in range(3)] == plain


def test_what_was_learned_stays_where_rounds_were_whole(target, plain):
    engine = engine_of(target, plain, spoil=3)
    config = engine.config(max_new_tokens=SIZE)
    made = engine.components.of(config, False)
    events = engine.stream(PROMPTS, config)
    next(event for event in events if isinstance(event, RowRound))
    events.close()
    assert engine.components.of(config, False) is made
