"""`dllm eval run`, `tasks` and `regrade`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Option

from dllm.cli.app import eval_app, kept_on_interrupt, verb
from dllm.cli.eval_report import show as show_tables
from dllm.cli.fields import Given, OptionsOf, real
from dllm.cli.options import (
    MOST_GB,
    MOST_ROWS,
    MOST_SEED,
    SPEC,
    Chat,
    Load,
    Model,
    option,
)
from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.progress import ProgressDisplay

if TYPE_CHECKING:
    from dllm.eval.models import ModelUnderTest
    from dllm.eval.records import EvalSetting
    from dllm.eval.run import Unable
    from dllm.eval.tasks import Task

WHAT, HOW = "What is asked", "How it is decoded (each may be repeated)"
MOST_SAMPLES = 10**6  # of a task: the pieces of a run are all in memory
Decoding = Annotated[
    Given,
    OptionsOf(
        DecodeConfig,
        but=["seed", "top_k", "stop", "prefilled", "history", "cache_mib", "buckets"],
        panel=HOW,
        repeated=True,
        texts={
            "sampler": "A rule; threshold:threshold=0.5/0.9 is two settings. By default the "
            "grid's.",
            "max_new_tokens": "Most tokens of an answer; default: what the task's answers need.",
        },
    ),
]


@verb(eval_app)
def run(
    out: Annotated[Path, Option(help="Directory of the run; a run in it is continued.")],
    model: Model = "tiny",
    *,
    load: Load,
    chat: Chat = None,
    suite: Annotated[
        str | None,
        option(
            "A list of tasks; see dllm eval tasks. By default that of the model, else full.",
            panel=WHAT,
        ),
    ] = None,
    task: Annotated[
        list[str] | None, option("A task; may be repeated.", panel=WHAT, metavar=SPEC)
    ] = None,
    count: Annotated[
        int, option("Samples of each task.", panel=WHAT, min=1, max=MOST_SAMPLES)
    ] = 100,
    seed: Annotated[
        list[int] | None,
        option("Of samples and draws; may be repeated.", panel=WHAT, min=0, max=MOST_SEED),
    ] = None,
    grid: Annotated[
        str | None, option("quick, rules or presets; default: quick.", panel=HOW)
    ] = None,
    preset: Annotated[
        list[str] | None, option("A paper's components, or a preset file.", panel=HOW)
    ] = None,
    decoding: Decoding,
    batch_size: Annotated[int, Option(help="Samples decoded together.", min=1, max=MOST_ROWS)] = 32,
    memo: Annotated[
        float,
        Option(
            help="GB of logits shared by settings; above 0 nothing is timed.",
            min=0,
            max=MOST_GB,
            callback=real,
        ),
    ] = 0.0,
    figure: Annotated[
        Path | None, Option(help="Draw accuracy against parallelism, .png or .svg.")
    ] = None,
) -> None:
    """Decode tasks with settings, grade, count; interrupted, the same command goes on.

    All combinations of the options are run, each with every sampler, preset and grid. --model
    oracle is the exact model of every task whose distribution is known: what is lost there, no
    model can win. Under torchrun or accelerate launch the processes share the work.
    """
    console = Console(stderr=True, highlight=False)
    from dllm.eval.figures import check_target, draw
    from dllm.eval.grid import grid as combinations
    from dllm.eval.grid import rules
    from dllm.eval.run import Sweep
    from dllm.eval.run import run as start
    from dllm.eval.tasks import task_of
    from dllm.processes import Ranks

    options: dict[str, Sequence[Any]] = dict(decoding)
    if "block_length" in options:
        options["block_length"] = [length or None for length in options["block_length"]]
    grids = [grid] if grid else [] if "sampler" in options or preset else ["quick"]
    samplers, presets = rules(grids)
    options["sampler"] = [*options.get("sampler", ()), *samplers]
    presets = [*(preset or ()), *presets]
    tasks = chosen(task, suite, model)
    settings = combinations(options, presets=presets)
    check(settings)
    if figure is not None:
        check_target(figure)
    for note in notes(map(task_of, tasks)):
        console.print(note, markup=False)
    ranks = Ranks.here()
    if ranks.device:
        load = {"device": ranks.device, **load}
    subject = under_test(model, load, chat, memo)
    settings = combinations(options, presets=presets, family=subject.identity()["family"])
    work = Sweep(tasks, settings, count, seed or (0,), batch_size, memo > 0)
    with kept_on_interrupt(), ProgressDisplay(hidden=ranks.rank > 0) as display:

        def show(done: int, total: int, setting: EvalSetting) -> None:
            display.report("answers", done, total, setting.name[:40])

        def warn(skipped: Sequence[Unable]) -> None:
            for line in warnings(skipped, len(settings)):
                display.console.print(f"warning: {line}", style="bold", markup=False)

        summary = start(subject, work, out, ranks=ranks, on_progress=show, on_skipped=warn)
    if summary is not None:
        from dllm.eval.report import report as tables

        show_tables(tables([(out.name, summary)])[:1])
        if figure is not None:
            draw([(out.name, summary)], figure)
        print(f"written: {out}; more: dllm eval report {out}")


def warnings(skipped: Sequence[Unable], settings: int) -> list[str]:
    """A line for every task and size that cannot be run, by all of the `settings` or by some."""
    cells: dict[tuple[str, int], list[Unable]] = {}
    for each in skipped:
        cells.setdefault((each[1], each[2]), []).append(each)
    return [
        f"{spec} n={n} is not run"
        + (f" by {len(found)} of {settings} settings" if len(found) < settings else "")
        + f", and not in the mean: {found[0][3]}"
        for (spec, n), found in cells.items()
    ]


def chosen(tasks: Sequence[str] | None, suite: str | None, model: str) -> list[str]:
    """The specs of tasks that are asked for; by default the suite that suits the model."""
    from dllm.eval.tasks import SUITES, task_of

    if suite is not None and suite not in SUITES:
        raise DllmError(f"unknown suite {suite!r}: expected one of {', '.join(SUITES)}")
    if suite is None and not tasks:
        suite = model if model in SUITES else "full"
    specs = [*(SUITES[suite] if suite else ()), *(tasks or ())]
    for spec in specs:  # told at once, not after a long download
        task_of(spec)
    return specs


def notes(tasks: Iterable[Task]) -> list[str]:
    """What the user has to know about tasks before they run."""
    found = [(task.name, task.note) for task in tasks]
    return list(dict.fromkeys(f"{name}: {note}" for name, note in found if note))


def check(settings: Sequence[EvalSetting]) -> None:
    """Say what is wrong with a setting before a model is loaded."""
    from dllm.config import DecodeConfig

    for setting in settings:
        DecodeConfig().replace(**setting.options).check_components()


def under_test(model: str, options: Given, chat: bool | None, memo: float) -> ModelUnderTest:
    import dllm
    from dllm.engine import Engine
    from dllm.eval.models import ORACLE, Checkpoint, OracleModel
    from dllm.tuning.memo import MemoModel

    if model == ORACLE:
        return OracleModel()
    engine = dllm.load(model, **options)
    if memo:
        engine = Engine(MemoModel(engine.model, int(memo * 2**30)), engine.text, engine.tuned)
    return Checkpoint(engine, model, "auto" if chat is None else chat)


@verb(eval_app, "tasks")
def tasks_() -> None:
    """List every task with its options and defaults, and the suites."""
    from dllm.cli.listing import describe_component, listing_of
    from dllm.eval.tasks import SUITES, TASKS

    console = Console(highlight=False)
    listing = listing_of("task", "what it asks", "options")
    for name in TASKS.installed():
        listing.add_row(name, *describe_component(name, TASKS))
    console.print(listing)
    for name, specs in SUITES.items():
        console.print(f"[bold]--suite {name}[/]  {'  '.join(specs)}", soft_wrap=True)


@verb(eval_app)
def regrade(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task of your own (module:Class) that the run has; may be repeated."),
    ] = None,
) -> None:
    """Grade the stored answers again, without a model, and write the summary anew."""
    from dllm.eval.regrade import regrade as again
    from dllm.eval.store import Store
    from dllm.eval.tasks import tasks_of

    for note in notes(tasks_of(Store(run).plan().tasks, task or ())):
        Console(stderr=True, highlight=False).print(note, markup=False)
    changed, total = again(run, task or ())
    print(f"{total} answers graded, {changed} otherwise than before; written: {run}/summary.json")
