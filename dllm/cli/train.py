"""The verb that trains what decoding methods need: train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dllm.cli.app import INTERRUPTED, app, verb
from dllm.cli.options import MODEL, MOST_ROWS, MOST_SEED, Device, Dtype, defaults_of, option, real
from dllm.cli.saving import check_files
from dllm.errors import DllmError

if TYPE_CHECKING:
    from dllm.train.job import TrainingRun

MOST_EXAMPLES = 10**7  # all of them are in memory
DATA, TRAINING, RESULT = "Data", "Training", "Result"
FOLDER = "checkpoint"  # in the directory of a run
OF_RECIPE = ("model", "steps", "batch_size", "parts", "lr", "muon_lr")


def asking() -> dict[str, str]:
    """The defaults of a job; some are its recipe's."""
    from dllm.train.asked import Asked

    return defaults_of(Asked) | dict.fromkeys(OF_RECIPE, "the recipe's")


@app.command(cls=verb(asking))
def train(
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Its name, with options if it has any: drafter:decay=1.02.", metavar="RECIPE"
        ),
    ] = None,
    out: Annotated[
        Path | None, option("Directory of the run; a run in it is resumed.", panel=RESULT)
    ] = None,
    model: Annotated[
        str | None,
        option("The model to train: a bundled name, a directory, or a hub id.", panel=MODEL),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    data: Annotated[
        str | None,
        option(
            "generators (the bundled tasks), generators:TASK+TASK, or a file of prompts as "
            "generate takes it, where needed with a field answer.",
            panel=DATA,
        ),
    ] = None,
    distill_from: Annotated[
        str | None, option("An AR model: its answers are learned, not the data's.", panel=DATA)
    ] = None,
    rollouts: Annotated[
        Path | None,
        option(
            "File of answers made for this run, or for another one with the same prompts; by "
            "default in --out.",
            panel=DATA,
        ),
    ] = None,
    examples: Annotated[
        int | None,
        option(
            "Prompts used; by default 4096, or all of a file.", panel=DATA, min=1, max=MOST_EXAMPLES
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, option("Of an answer made for this run.", panel=DATA, min=1, max=2**20)
    ] = None,
    steps: Annotated[int | None, option("Updates.", panel=TRAINING, min=1, max=10**9)] = None,
    batch_size: Annotated[
        int | None, option("Rows of an update.", panel=TRAINING, min=1, max=MOST_ROWS)
    ] = None,
    parts: Annotated[
        int | None,
        option(
            "Compute a batch in so many pieces, for want of memory.",
            panel=TRAINING,
            min=1,
            max=MOST_ROWS,
        ),
    ] = None,
    lr: Annotated[
        float | None, option("Highest learning rate.", panel=TRAINING, min=0, max=10, callback=real)
    ] = None,
    muon_lr: Annotated[
        float | None,
        option("Of the layers' matrices, by Muon.", panel=TRAINING, min=0, max=10, callback=real),
    ] = None,
    seed: Annotated[
        int | None, option("Of all random draws.", panel=TRAINING, min=0, max=MOST_SEED)
    ] = None,
    lora: Annotated[
        str | None,
        option("Train a low-rank adapter: rank=16,alpha=32.", panel=TRAINING, metavar="OPTIONS"),
    ] = None,
    merge: Annotated[
        bool | None,
        option(
            "Write whole weights (the default), or the adapter alone.",
            "--merge/--adapter",
            panel=RESULT,
        ),
    ] = None,
) -> None:
    """Train a model for a decoding method; without a recipe, list them.

    Interrupted, the same command goes on from its last checkpoint. Under torchrun every process
    takes its share of a batch.
    """
    from dllm.train.recipes import RECIPES

    if recipe is None:
        from dllm.cli.listing import print_kind

        print_kind(Console(highlight=False), "recipe", RECIPES)
        return
    if out is None:
        raise DllmError("--out is missing: expected a directory for the run")
    from dllm.train.job import Job

    chosen = RECIPES.build(recipe)
    job = Job(**{name: value for name, value in ctx.params.items() if value is not None})
    check_files({"--data": data}, {"--rollouts": rollouts}, overwrite=True)
    job.check()
    with Watch() as watch:
        try:
            run = chosen.prepare(job, watch.report)
            job.note()
            watch.train(run)
        except KeyboardInterrupt:
            watch.console.print("interrupted; the same command goes on from the last checkpoint")
            raise typer.Exit(INTERRUPTED) from None
    if run.trainer.rank == 0:  # of the processes under torchrun
        run.export(out / FOLDER)
        print(f"written: {out / FOLDER}; try: {run.use.format(out / FOLDER)}")


class Watch:
    """Bars on stderr: of what is done before the first step, and of the steps."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tasks:  # else it prints an empty line
            self.bar.stop()

    def report(self, what: str, done: int, total: int, numbers: str = "") -> None:
        """`done` of `total` of something are done."""
        self.bar.start()
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total, numbers="")
        self.bar.update(self.tasks[what], completed=done, numbers=numbers)

    def train(self, run: TrainingRun) -> None:
        """Run to the end; only the first of several processes shows it."""
        trainer = run.trainer
        if trainer.rank > 0:
            trainer.run()
            return

        def log(numbers: Mapping[str, float]) -> None:
            loss, rate = numbers["loss"], numbers["tokens_per_second"]
            shown = f"loss {loss:.3f}  {rate:.0f} tokens/s"
            self.report("training", int(numbers["step"]), trainer.total_steps, shown)

        self.report("training", trainer.step, trainer.total_steps)
        trainer.run(on_log=log)
        self.report("training", trainer.step, trainer.total_steps)
