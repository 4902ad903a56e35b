"""Runs of the suite: every task and size with every setting, in batches, resumable, by ranks.

A batch is fixed by task, size, seed and sample numbers alone, so that neither the number of
processes nor an interruption changes what is computed together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.environment import environment
from dllm.errors import DllmError
from dllm.eval.models import Checkpoint, ModelUnderTest, Questions
from dllm.eval.records import Cell, EvalSetting, RunPlan, SampleRecord, Skipped, Summary
from dllm.eval.store import Store, write_summary
from dllm.eval.summary import add, summarize
from dllm.eval.tasks import SUITE, Sample, Task, draw, task_of, tasks_of
from dllm.output import Commit, Finished, Output
from dllm.processes import Ranks

T = TypeVar("T")
Progress = Callable[[int, int, EvalSetting], None]
# a setting that cannot run this task (spec) at this size, for this reason
Unable = tuple[EvalSetting, str, int, str]
MOST = 10**6  # samples of a task: the pieces of a run are all in memory


class Work(NamedTuple):
    """Samples `first` .. `last` - 1 of a task (index in the plan) at size n; decoded together."""

    task: int
    n: int
    seed: int
    first: int
    last: int


@dataclass(frozen=True)
class Sweep:
    """Tasks (specs), settings, seeds and samples to run: so many of every task, spread over its
    sizes. A seed chooses samples and random draws. memo: as in records.RunPlan.
    """

    tasks: Sequence[str]
    settings: Sequence[EvalSetting]
    count: int = 100
    seeds: Sequence[int] = (0,)
    batch_size: int = 32
    memo: bool = False

    def __post_init__(self) -> None:
        for name in ("tasks", "settings", "seeds"):
            if not getattr(self, name):
                raise DllmError(f"{name}: expected at least one")
        for name in ("count", "batch_size"):
            if not 1 <= (value := getattr(self, name)) <= MOST:
                raise DllmError(f"{name}={value}: expected at least 1 and at most {MOST}")

    def plan(self, model: ModelUnderTest) -> RunPlan:
        return RunPlan(
            suite=SUITE,
            model=model.identity(),
            tasks=tuple(dict.fromkeys(self.tasks)),
            settings=tuple({setting.identity: setting for setting in self.settings}.values()),
            seeds=tuple(self.seeds),
            count=self.count,
            batch_size=self.batch_size,
            memo=self.memo,
            environment=environment(),
        )


def run(
    model: ModelUnderTest,
    sweep: Sweep,
    out: Path,
    *,
    ranks: Ranks | None = None,
    on_progress: Progress | None = None,
    on_skipped: Callable[[Sequence[Unable]], None] | None = None,
) -> Summary | None:
    """Decode what `out` does not have yet and write its summary; what is there is kept.

    on_progress: called with answers done, answers to do, and the setting at work. on_skipped:
    called with what cannot be run, before the rest is, if there is something. Ctrl-C raises
    KeyboardInterrupt once all finished batches are in `out`. Returns None in every process but the
    first. Raises DllmError for tasks or settings that do not exist or none of which can be run.
    """
    ranks = ranks or Ranks()
    store = Store(out, ranks.rank)
    tasks = {spec: task_of(spec) for spec in sweep.tasks}
    wanted = sweep.plan(model)
    skipped = list(unable(model, tasks, wanted.settings))
    if len(skipped) == len(wanted.settings) * sum(len(task.n) for task in tasks.values()):
        raise DllmError(f"nothing can be run: {skipped[0][3]}")
    if ranks.rank == 0:
        store.fits(wanted)
        if skipped and on_skipped is not None:
            on_skipped(skipped)
    with store:
        return _run(model, sweep, store, wanted, tasks, skipped, ranks, on_progress)


def _run(
    model: ModelUnderTest,
    sweep: Sweep,
    store: Store,
    wanted: RunPlan,
    tasks: Mapping[str, Task],
    skipped: Sequence[Unable],
    ranks: Ranks,
    on_progress: Progress | None,
) -> Summary | None:
    """`run` with its store open and what cannot be run known."""
    if ranks.rank == 0:
        store.begin(wanted)
    ranks.wait()
    plan = store.plan()
    every = tasks_of(plan.tasks, said=sweep.tasks)  # now: a plan of two runs may name others
    index = {setting.identity: at for at, setting in enumerate(plan.settings)}
    without = {
        Skipped(index[setting.identity], plan.tasks.index(spec), n, why)
        for setting, spec, n, why in skipped
    }
    settings = [(index[setting.identity], setting) for setting in wanted.settings]
    work = ranks.share(list(pieces(plan, tasks, sweep)))
    decode(model, store, plan, tasks, work, settings, without, on_progress)
    ranks.wait()
    if ranks.rank > 0:
        return None
    plan = replace(plan, skipped=tuple(sorted({*plan.skipped, *without})))
    store.merge(plan, every)
    summary = summarize(plan, store.rows(), every)
    write_summary(store.path, summary)
    return summary


def decode(
    model: ModelUnderTest,
    store: Store,
    plan: RunPlan,
    tasks: Mapping[str, Task],
    work: Sequence[Work],
    settings: Sequence[tuple[int, EvalSetting]],
    without: Collection[Skipped],
    on_progress: Progress | None,
) -> None:
    """Answer every piece of `work` with all `settings` (and their indices) that can and have not
    yet; a batch is in the store before the next one begins.
    """
    known = {row.key for row in store.rows()}
    skipped = {(each.setting, each.task, each.n) for each in without}
    done, total = 0, sum(piece.last - piece.first for piece in work) * len(settings)
    for piece in work:
        task = tasks[plan.tasks[piece.task]]
        samples = {i: draw(task, piece.n, piece.seed, i) for i in range(piece.first, piece.last)}
        keys = {at: {(*piece[:3], i, at) for i in samples} for at, _ in settings}
        missing = {
            at for at in keys if (at, piece.task, piece.n) not in skipped and keys[at] - known
        }
        began = time.perf_counter()
        questions = model.ask(task, piece.n, piece.seed, samples) if missing else None
        asking = time.perf_counter() - began
        for at, setting in settings:
            if questions is not None and at in missing:
                config = configure(task, questions, setting, piece.seed)
                store.append(answer(model, task, questions, piece, at, config, asking))
            done += len(samples)
            if on_progress is not None:
                on_progress(done, total, setting)


def pieces(plan: RunPlan, tasks: Mapping[str, Task], sweep: Sweep) -> Iterator[Work]:
    """The batches of a sweep: its count of samples, shared out among the sizes of each task."""
    for spec, task in tasks.items():
        for at, n in enumerate(task.n):
            share = sweep.count // len(task.n) + (at < sweep.count % len(task.n))
            there = task.count(n)
            count = share if there is None else min(share, there)
            for seed in sweep.seeds:
                for first in range(0, count, sweep.batch_size):
                    last = min(first + sweep.batch_size, count)
                    yield Work(plan.tasks.index(spec), n, seed, first, last)


def unable(
    model: ModelUnderTest, tasks: Mapping[str, Task], settings: Sequence[EvalSetting]
) -> Iterator[Unable]:
    """(setting, task spec, n, reason) of what cannot be run; no forward is made."""
    for spec, task in tasks.items():
        for n in task.n:
            try:
                questions = model.ask(task, n, 0, {0: draw(task, n, 0, 0)})
            except DllmError as error:
                yield from ((setting, spec, n, str(error)) for setting in settings)
                continue
            for setting in settings:
                try:
                    next(begin(questions, configure(task, questions, setting, 0)))
                except DllmError as error:
                    yield setting, spec, n, str(error)


def configure(task: Task, questions: Questions, setting: EvalSetting, seed: int) -> DecodeConfig:
    """A setting for one task: the size of its canvas, unless the setting has its own."""
    config = DecodeConfig(stop=task.stop, seed=seed, history=True)
    if questions.prefilled is not None or "max_new_tokens" not in setting.options:
        return config.replace(**{**setting.options, "max_new_tokens": questions.budget})
    return config.replace(**setting.options)


def begin(questions: Questions, config: DecodeConfig) -> Iterator[object]:
    return questions.engine.stream_steps(
        questions.prompts, config, row_ids=questions.row_ids, prefilled=questions.prefilled
    )


def answer(
    model: ModelUnderTest,
    task: Task,
    questions: Questions,
    piece: Work,
    at: int,
    config: DecodeConfig,
    asking: float = 0.0,
) -> list[SampleRecord]:
    """Decode one batch with the setting number `at`, which is `config`, and grade it; `asking`:
    seconds that putting the questions took. KeyboardInterrupt where Ctrl-C cut it short.
    """
    began = time.perf_counter()
    events = list(begin(questions, config))
    outputs = {event.row: event.output for event in events if isinstance(event, Finished)}
    if any(output.finish_reason == "interrupted" for output in outputs.values()):
        raise KeyboardInterrupt
    read = [
        (model.read(task, sample, outputs[row]), outputs[row])
        for row, sample in enumerate(questions.samples)
    ]
    grades = [
        task.grade(sample, found.text)
        for sample, (found, _) in zip(questions.samples, read, strict=True)
    ]
    wall = asking + time.perf_counter() - began
    longest = max((output.timings for output in outputs.values()), key=lambda t: t.total)
    prompt, forward = longest.prompt, longest.forward - longest.prompt
    phases = (prompt, forward, longest.total - longest.forward, wall - longest.total)
    seconds = [round(phase / len(read), 7) for phase in phases]
    steps = [made(output, len(questions.prompts[row])) for row, (_, output) in enumerate(read)]
    return [
        SampleRecord(
            setting=at,
            task=piece.task,
            n=piece.n,
            seed=piece.seed,
            i=piece.first + row,
            score=grade.score,
            strict=grade.strict,
            reason=grade.reason,
            nfe=output.nfe,
            canvases=output.canvases,
            tokens=sum(step > 0 for step in steps[row]),
            filled=output.slots,
            budget=config.max_new_tokens,
            prompt_tokens=len(questions.prompts[row]),
            finish=output.finish_reason,
            text=found.text,
            ids=output.token_ids,
            steps=steps[row][: len(output.token_ids)],
            places=found.places,
            seconds=seconds,
        )
        for row, ((found, output), grade) in enumerate(zip(read, grades, strict=True))
    ]


def evaluate(
    engine: Engine,
    task: Task,
    samples: Sequence[Sample],
    config: DecodeConfig,
    *,
    batch_size: int = 32,
) -> Cell:
    """The counts of `samples` of any size, decoded with `config` in batches of like length; nothing
    is stored.
    """
    model, config = Checkpoint(engine, task.name), config.replace(history=True)
    cell, ordered = Cell(0, 0, 0), sorted(samples, key=lambda sample: len(sample.prompt))
    for batch in batches(ordered, batch_size):
        prompts = [model.prompt(task, sample) for sample in batch]
        questions = Questions(engine, batch, prompts, list(range(len(batch))))
        piece = Work(0, 0, config.seed, 0, len(batch))
        for row in answer(model, task, questions, piece, 0, config):
            add(cell, row)
    return cell


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, `size` at a time."""
    for at in range(0, len(items), size):
        yield items[at : at + size]


def made(output: Output, prompt: int) -> list[int]:
    """The decision (1, 2, ...) that committed each of the answer's tokens for good, the end token
    among them; 0 for a prefilled token.
    """
    found = [0] * output.answer_tokens
    history: list[Commit] = output.history or []
    for step, commit in enumerate(history, 1):
        for position in commit.positions:
            if position - prompt < len(found):
                found[position - prompt] = step
    return found
