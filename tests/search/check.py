"""Every guarantee that a case can break, tried on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dllm.config import ConfigError
from dllm.engine import Engine
from dllm.output import Commit, Output
from dllm.text.following import Follower
from dllm.text.streamers import feed
from tests.fakes import FakeModel, FakeText
from tests.guarantees import (
    Run,
    Watching,
    check_cut,
    check_model,
    check_run,
    decode,
    expect,
    replay,
    summary,
)
from tests.interrupting import Lines
from tests.search.draw import Case
from tests.specs import EXACT

ROUNDING = 1e-6  # of a confidence where a batch is computed in another shape
Check = Callable[[Case, Run], None]


def check(case: Case) -> bool:
    """Try all guarantees. False where the parts do not go together; AssertionError, or whatever the
    engine raised, where one is broken.
    """
    try:
        whole = decode(case.source.model(), case.request)
    except ConfigError:
        refused(case)
        return False
    check_run(case.request, whole)
    for each in CHECKS:
        each(case, whole)
    return True


def refused(case: Case) -> None:
    """What does not go together is refused before anything is computed, and for every row."""
    model = case.source.model()
    calls = []
    if not isinstance(model, FakeModel):
        model = Counted(model)
    for rows in (range(len(case.request.prompts)), [0]):
        try:
            decode(model, case.request.of(rows))
        except ConfigError:
            calls.append(model.calls)
    expect(calls == [0, 0], "what is refused is refused at once, whatever the batch")


class Counted:
    """A decoder that counts its calls."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, 0
        self.spec, self.device, self.dtype = model.spec, model.device, model.dtype
        self.new_kv = model.new_kv

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.model(*args)


def windows_and_forwards(case: Case, whole: Run) -> None:
    """Commits stay in their windows, and forwards are those that the model really made."""
    model = case.source.model()
    if not isinstance(model, FakeModel):
        return  # a watched planner would count as one that looks at all masked positions
    planner = Watching(case.request.config.make("planner"))
    watched = case.request.replace(planner=planner)
    found = decode(model, watched)
    check_run(watched, found, planner.spans)
    check_model(watched, found, model)
    same(case, whole, found, "a planner that is watched plans the same")


def rows_alone(case: Case, whole: Run) -> None:
    """A row does not depend on what is beside it; its forwards are those of the model."""
    branches = 2 if case.request.config.cfg_scale else 1
    for row, output in whole.done.items():
        model = case.source.model()
        counted = model if isinstance(model, FakeModel) else Counted(model)
        alone = decode(counted, case.request.of([row]))
        expect(alone.done[0].nfe == counted.calls, "nfe is the number of forwards")
        expect(counted.calls % branches == 0, "both branches of guidance are computed")
        alike(output, alone.done[0], "a row is alone what it is in a batch")
        equal_commits(whole.told.commits(row), alone.told.commits(0), "told alike alone")


def rows_in_another_order(case: Case, whole: Run) -> None:
    other = decode(case.source.model(), case.request.of(case.order))
    for place, row in enumerate(case.order):
        alike(whole.done[row], other.done[place], "a row is the same in any place")


def without_guesses(case: Case, whole: Run) -> None:
    """A speculator changes the number of forwards and nothing else."""
    if case.request.config.speculator is None:
        return
    plain = decode(case.source.model(), case.request.replace(speculator=None))
    for row, output in plain.done.items():
        mine = whole.done[row]
        names = ("text", "token_ids", "finish_reason", "slots", "answer_tokens")
        for name in names:
            expect(getattr(mine, name) == getattr(output, name), f"guesses leave {name}")
        expect(mine.nfe <= output.nfe, "guesses save forwards")
        bare = [
            [replace(commit, nfe=min(commit.nfe, 1)) for commit in found.told.commits(row)]
            for found in (whole, plain)
        ]
        expect(bare[0] == bare[1], "guesses leave what is committed")


def without_cache(case: Case, whole: Run) -> None:
    """A cache that is computed anew at every step, or whose attention allows it, is exact."""
    cache = str(case.request.config.cache)
    if cache == "none" or cache not in EXACT[cache.partition(":")[0]]:
        return
    plain = decode(case.source.model(), case.request.replace(cache="none"))
    for row, output in plain.done.items():
        mine = whole.done[row]
        expect((mine.token_ids, mine.nfe) == (output.token_ids, output.nfe), "the cache is exact")
        told = whole.told.commits(row), plain.told.commits(row)
        equal_commits(*told, "the cache commits what no cache does")


def streamed(case: Case, whole: Run) -> None:
    """What consumers of events show is the answer, and nothing is taken back."""
    model = case.source.model()
    follower = Follower(case.request.ends)
    for event in whole.told.events:
        follower.apply(event)
    size = case.request.config.max_new_tokens
    for row, prompt in enumerate(case.request.prompts):
        *_, now = replay(prompt, whole.told.commits(row), size)
        expect(follower.rows[row].tokens == now[len(prompt) :], "a follower sees the canvas")
    one = case.request.of([case.order[0]])
    engine, streamer = Engine(model, FakeText()), Puts()
    events = engine.stream_steps(
        one.prompts, one.config, row_ids=one.row_ids, prefilled=one.prefilled
    )
    output = feed(events, streamer, engine, stop=one.config.stop)
    expect(streamer.ids == [*one.prompts[0], *output.token_ids], "a streamer is put the answer")


class Puts:
    """A streamer that keeps what it is put."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.tolist()

    def end(self) -> None:
        pass


def interrupted(case: Case, whole: Run) -> None:
    """Ctrl-C on any line keeps what was told, and the engine goes on."""
    model = case.source.model()
    traced = decode(model, case.request, Lines())
    same(case, whole, traced, "the same request gives the same")
    ran = traced.lines.ran()
    begun = next(i for i, line in enumerate(ran) if line.function == "RowBatch.events")
    for at in sorted({begun + int(share * (len(ran) - begun)) for share in case.cuts}):
        try:
            check_cut(case.request, traced, decode(model, case.request, Lines(at)), ran[at])
        except (AssertionError, KeyboardInterrupt) as error:
            what = str(error) or "it went through"
            raise AssertionError(f"Ctrl-C at line {at}, {ran[at]}: {what}") from error
    same(case, whole, decode(model, case.request), "after Ctrl-C the engine goes on")


def same(case: Case, one: Run, two: Run, guarantee: str) -> None:
    """Two runs of one request on equal models are equal to the last bit."""
    for row in range(len(case.request.prompts)):
        expect(summary(one.done[row]) == summary(two.done[row]), guarantee)
        expect(one.told.commits(row) == two.told.commits(row), guarantee)


def alike(one: Output, two: Output, guarantee: str) -> None:
    """Two outputs of one row, computed in batches of other shapes."""
    names = ("text", "token_ids", "finish_reason", "nfe", "canvases", "slots", "answer_tokens")
    for name in names:
        expect(getattr(one, name) == getattr(two, name), f"{guarantee}: {name}")


def equal_commits(one: list[Commit], two: list[Commit], guarantee: str) -> None:
    """Commits alike but for the row's number and rounding."""
    bare = [[replace(c, row=0, confidences=[]) for c in commits] for commits in (one, two)]
    expect(bare[0] == bare[1], guarantee)
    for a, b in zip(one, two, strict=True):
        near = zip(a.confidences, b.confidences, strict=True)
        expect(all(abs(x - y) <= ROUNDING for x, y in near), f"{guarantee}: confidences")


CHECKS: list[Check] = [
    windows_and_forwards,
    rows_alone,
    rows_in_another_order,
    without_guesses,
    without_cache,
    streamed,
    interrupted,
]
