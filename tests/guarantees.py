"""Guarantees of every decoding, as checks of one run or of two, whatever decoded it.

They raise AssertionError with the guarantee that was broken; tests and the random search share
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas, Prefilled, Windows
from dllm.decoding.driving import drive
from dllm.decoding.state import Fields
from dllm.engine import Engine
from dllm.output import Commit, Event, Finished, Output, Started
from dllm.samplers.candidates import Candidates, State
from dllm.samplers.protocols import HostState, Planner
from tests.fakes import EOS, EOT, MASK, FakeModel, FakeText
from tests.interrupting import Line, Lines

Spans = dict[tuple[int, int], list[range]]  # by (row id, step): where the step may commit


def expect(holds: bool, guarantee: str) -> None:
    """Plain asserts say nothing outside of pytest."""
    if not holds:
        raise AssertionError(guarantee)


@dataclass(frozen=True)
class Request:
    """What a user asks for, by token ids. ends: the model's end tokens."""

    prompts: Sequence[Sequence[int]]
    config: DecodeConfig
    row_ids: Sequence[int] | None = None
    prefilled: Sequence[Prefilled] | None = None
    ends: Sequence[int] = (EOS, EOT)

    def of(self, rows: Sequence[int]) -> Request:
        """The same of these rows alone, in this order."""
        ids = self.row_ids or range(len(self.prompts))
        prefilled = self.prefilled or [()] * len(self.prompts)
        return Request(
            [self.prompts[row] for row in rows],
            self.config,
            [ids[row] for row in rows],
            [prefilled[row] for row in rows],
            self.ends,
        )

    def replace(self, **options: Any) -> Request:
        return replace(self, config=self.config.replace(**options))


class Told:
    """A consumer that keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def show(self, event: Event, seconds: float) -> None:
        self.events.append(event)

    def commits(self, row: int) -> list[Commit]:
        """Of a row, what was given with it included."""
        return [event for event in self.events if isinstance(event, Commit) and event.row == row]

    def made(self, row: int) -> list[Commit]:
        return [commit for commit in self.commits(row) if commit.nfe]


@dataclass
class Run:
    """What was told, the Outputs by row, and the lines that ran."""

    told: Told
    done: dict[int, Output]
    lines: Lines

    @property
    def outputs(self) -> list[Output]:
        return [self.done[row] for row in sorted(self.done)]


def decode(model: Any, request: Request, lines: Lines | None = None) -> Run:
    """Decode a request; `lines`: what counts or interrupts them."""
    told, engine = Told(), Engine(model, FakeText())
    events = engine.stream_steps(
        request.prompts, request.config, row_ids=request.row_ids, prefilled=request.prefilled
    )
    if lines is None:
        return Run(told, drive(events, told)[0], Lines())
    with lines:
        done, _ = drive(events, told)
    return Run(told, done, lines)


def run(
    model: Any,
    batch: Sequence[Sequence[int]],
    config: DecodeConfig,
    row_ids: Sequence[int] | None = None,
) -> list[Output]:
    """The Outputs of prompts, whose histories are what was told."""
    found = decode(model, Request(batch, config, row_ids))
    for row, output in found.done.items():
        expect(output.history == found.told.commits(row), "the history is what was told")
    return found.outputs


def replay(
    prompt: Sequence[int], commits: Sequence[Commit], size: int
) -> Iterator[list[int | None]]:
    """The row (masked ones are None) before the first commit and after each."""
    row: list[int | None] = [*prompt, *[None] * size]
    yield list(row)
    for commit in commits:
        for pos, token in zip(commit.positions, commit.token_ids, strict=True):
            expect(row[pos] is None, "nothing is committed twice, or inside the prompt")
            row[pos] = token
        for pos in commit.remasked:
            expect(row[pos] is not None, "no masked position is masked again")
            expect(pos >= len(prompt), "the prompt stays")
            row[pos] = None
        yield list(row)


def summary(output: Output) -> tuple[Any, ...]:
    """All of an Output that does not depend on the clock or the row's number."""
    names = ("text", "token_ids", "finish_reason", "nfe", "canvases", "slots", "answer_tokens")
    history = [replace(commit, row=0) for commit in output.history or ()]
    return (*(getattr(output, name) for name in names), history)


def ended(
    answer: Sequence[int | None], ends: Sequence[int] = (EOS, EOT)
) -> tuple[list[int], str] | None:
    """Tokens and reason of a finished answer, None where it is not."""
    found: list[int] = []
    for token in answer:
        if token is None:
            return None
        if token in ends:
            return found, "eos"
        found.append(token)
    return found, "length"


def drops(config: DecodeConfig) -> bool:
    """Whether a stop rule may drop tokens that were committed, behind a likely end."""
    return "eotp" in str(config.stop_rule)


# --- one run -------------------------------------------------------------------------------------


def check_run(request: Request, found: Run, spans: Spans | None = None) -> None:
    """Every row of a whole run keeps every guarantee that can be seen on it alone."""
    check_order(request, found)
    for row, output in found.done.items():
        commits, history = found.told.commits(row), found.told.made(row)
        kept = history if request.config.history else None
        expect(output.history == kept, "the history is what was told, kept if asked for")
        check_commits(request, row, commits)
        check_end(request, row, commits, output)
        if spans is not None:
            check_spans(request, row, history, spans)


def check_order(request: Request, found: Run) -> None:
    """Every row starts, is given what stands in it, and ends once."""
    rows = list(range(len(request.prompts)))
    events = found.told.events
    started, finished = (
        [event.row for event in events if isinstance(event, kind)] for kind in (Started, Finished)
    )
    expect(sorted(found.done) == rows, "every row has an Output")
    expect(started == rows, "every row starts once, in order")
    expect(sorted(finished) == rows, "every row ends once")
    prefilled = request.prefilled or [()] * len(rows)
    for row in rows:
        own = [event for event in events if event.row == row]
        expect(isinstance(own[0], Started) and isinstance(own[-1], Finished), "in order")
        stands = {
            pos + len(request.prompts[row]) + i: token
            for pos, ids in prefilled[row]
            for i, token in enumerate(ids)
        }
        told = {
            pos: token
            for event in own
            if isinstance(event, Commit) and not event.nfe
            for pos, token in zip(event.positions, event.token_ids, strict=True)
        }
        expect(told == stands, "what is given is told")


def check_commits(request: Request, row: int, commits: Sequence[Commit]) -> None:
    """Progress in every step, nothing of the prompt touched, what is settled stays."""
    size, prompt = request.config.max_new_tokens, request.prompts[row]
    prefilled = {pos for commit in commits if not commit.nfe for pos in commit.positions}
    states = list(replay(prompt, commits, size))
    before, settled = 0, 0
    for commit, state in zip(commits, states[1:], strict=True):
        changed = [*commit.positions, *commit.remasked]
        expect(commit.positions == sorted(commit.positions), "positions ascend")
        expect(len(commit.positions) > len(commit.remasked), "every step gains a token")
        expect(commit.nfe == 0 or prefilled.isdisjoint(changed), "what is given stays")
        expect(commit.nfe == 0 or MASK not in commit.token_ids, "the mask is never committed")
        expect(commit.nfe >= before, "forwards are counted up")
        expect(min(changed, default=size) >= settled, "what is settled stays")
        settled, before = max(settled, commit.settled), commit.nfe
        expect(None not in state[:settled], "what is settled is known")


def check_end(request: Request, row: int, commits: Sequence[Commit], output: Output) -> None:
    """A row stops when its first end token, or a stop string, has no masked position before it."""
    config, size = request.config, request.config.max_new_tokens
    branches = 2 if config.cfg_scale else 1
    made = [commit for commit in commits if commit.nfe]
    expect(bool(made), "every row commits")
    expect(output.nfe == made[-1].nfe, "a row leaves with its last commit")
    expect(output.nfe <= size * branches, "a step gains a token")
    expect(output.canvases * branches >= output.nfe, "a forward computes a canvas")
    expect(output.slots == sum(len(c.positions) - len(c.remasked) for c in made), "slots")
    answers = [
        state[len(request.prompts[row]) :] for state in replay(request.prompts[row], commits, size)
    ]
    known = answers[-1][: answers[-1].index(None) if None in answers[-1] else size]
    ends = [i for i, token in enumerate(known) if token in request.ends]
    known = known[: ends[0]] if ends else known
    expect(not any(stop in output.text for stop in config.stop), "no stop string in the text")
    if output.finish_reason == "stop":
        text = FakeText().decode([token for token in known if token is not None])
        expect(text.startswith(output.text), "a cut text is the answer's beginning")
        expect(any(stop in text for stop in config.stop), "there was a stop string")
        expect(output.token_ids == known[: len(output.token_ids)], "its tokens are the answer's")
    elif drops(config):
        expect(output.token_ids == known[: len(output.token_ids)], "tokens are the answer's")
    else:
        expect((output.token_ids, output.finish_reason) == ended(answers[-1], request.ends), "end")
        earlier = answers[1 + len(commits) - len(made) : -1]
        expect(
            all(ended(answer, request.ends) is None for answer in earlier), "a row ends when it may"
        )
    if output.finish_reason != "stop":
        expect(output.text == FakeText().decode(output.token_ids), "text and tokens agree")


def check_spans(request: Request, row: int, made: Sequence[Commit], spans: Spans) -> None:
    """Commits stay inside the windows, and every step makes one in the first."""
    number = row if request.row_ids is None else request.row_ids[row]
    for step, commit in enumerate(made):
        if step == len(made) - 1 and "prophet" in str(request.config.stop_rule):
            continue  # it may fill the row
        windows = [span for span in spans[number, step] if span]
        inside = {pos for span in windows for pos in span}
        expect(inside.issuperset([*commit.positions, *commit.remasked]), "inside the windows")
        first = min(windows, key=lambda span: span.start)
        expect(not set(first).isdisjoint(commit.positions), "progress in the first window")
    expect((number, len(made)) not in spans, "a row that ended decides nothing")


def check_model(request: Request, found: Run, model: FakeModel) -> None:
    """Forwards and canvases are those that were really computed, of what the events say."""
    outputs, branches = found.outputs, 1 + bool(request.config.cfg_scale)
    expect(max(o.nfe for o in outputs) == model.calls, "nfe is the number of forwards")
    computed = branches * sum(output.canvases for output in outputs)
    expect(computed == sum(model.batches), "canvases are those computed; rows that end leave")
    for call, ids in list(enumerate(model.seen))[::branches]:  # those that see the prompt
        rows = [row for row, output in sorted(found.done.items()) if output.nfe > call]
        left = ids.tolist()  # rows take any place
        for row in rows:
            before = [commit for commit in found.told.commits(row) if commit.nfe <= call]
            *_, now = replay(request.prompts[row], before, request.config.max_new_tokens)
            shown = [MASK if token is None else token for token in now]
            at = [i for i, seen in enumerate(left) if starts_alike(seen, shown)]
            expect(bool(at), "the model is shown what was told")
            del left[at[0]]


def starts_alike(one: Sequence[int], two: Sequence[int]) -> bool:
    return all(a == b for a, b in zip(one, two))


# --- two runs ------------------------------------------------------------------------------------


def check_cut(request: Request, whole: Run, cut: Run, line: Line) -> None:
    """Ctrl-C before `line`: what was told stands, in every row, and nothing else."""
    expect(sorted(cut.done) == sorted(whole.done), "every row has an Output")
    if line.function == "drive":  # whoever was about to be shown an event may not have seen it
        return
    check_order(request, cut)
    for row, output in cut.done.items():
        commits, full = cut.told.commits(row), whole.told.commits(row)
        kept = cut.told.made(row) if request.config.history else None
        expect(output.history == kept, "the history is what was told, kept if asked for")
        expect(commits == full[: len(commits)], "what was told is a beginning of the whole")
        if output.finish_reason != "interrupted":
            expect(summary(output) == summary(whole.done[row]), "a row that ended has ended")
            continue
        prompt, made = request.prompts[row], cut.told.made(row)
        *_, answer = replay(prompt, commits, request.config.max_new_tokens)
        known = [token for token in answer[len(prompt) :] if token is not None]
        ends = [i for i, token in enumerate(known) if token in request.ends]
        expected = known[: ends[0]] if ends else known
        if drops(request.config):
            expected = expected[: len(output.token_ids)]
        expect(output.token_ids == expected, "tokens are those told, masked positions left out")
        expect(output.text == FakeText().decode(expected), "text and tokens agree")
        expect(output.nfe == (made[-1].nfe if made else 0), "forwards are those told")
        expect(output.slots == sum(len(c.positions) - len(c.remasked) for c in made), "slots")
        timings = output.timings
        expect(timings.total >= timings.forward >= timings.prompt, "timings are of one moment")


@dataclass
class Watching:
    """A planner that notes in which spans each step of each row may commit."""

    planner: Planner
    spans: Spans = field(default_factory=dict)
    asked: dict[int, list[range]] = field(default_factory=dict)
    narrows = True

    @property
    def needs(self) -> frozenset[str]:
        return self.planner.needs

    @property
    def fields(self) -> Fields:
        return self.planner.fields

    def bind(self, vocabulary: Any) -> Watching:
        if hasattr(self.planner, "bind"):
            self.planner = self.planner.bind(vocabulary)
        return self

    def windows(self, canvas: Canvas, state: HostState) -> Windows:
        windows = self.planner.windows(canvas, state)
        spans = [
            [*map(range, *pair)]
            for pair in zip(windows.start.tolist(), windows.end.tolist(), strict=True)
        ]
        # first the rows themselves, then what a speculator guesses
        self.asked = dict(reversed([*zip(canvas.row.tolist(), spans, strict=True)]))
        return windows

    def narrow(self, view: Candidates, state: State) -> tuple[Tensor, Tensor]:
        start, end = self.planner.narrow(view, state)
        for b in range(len(view.row)):
            if view.valid[b].any():
                key = int(view.row[b]), int(view.step[b])
                expect(key not in self.spans, "a step is decided once")
                first, rest = range(int(start[b]), int(end[b])), self.asked[key[0]][1:]
                self.spans[key] = [first, *rest]
        return start, end
