"""The verb that trains what decoding methods need: train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dllm.cli.answers import check_files
from dllm.cli.app import kept_on_interrupt, verb
from dllm.cli.fields import Given, OptionsOf
from dllm.errors import DllmError
from dllm.progress import ProgressDisplay
from dllm.train.asked import Asked

if TYPE_CHECKING:
    from dllm.train.job import TrainingRun

FOLDER = "checkpoint"  # in the directory of a run


@verb()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Its name, with options if it has any: drafter:decay=1.02.", metavar="RECIPE"
        ),
    ] = None,
    *,
    asked: Annotated[Given, OptionsOf(Asked, but=["recipe"])],
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
    if "out" not in asked:
        raise DllmError("--out is missing: expected a directory for the run")
    from dllm.train.job import Job

    chosen = RECIPES.build(recipe)
    job = Job(recipe, **asked)
    check_files({"--data": job.data}, {"--rollouts": job.rollouts}, overwrite=True)
    job.check()
    with kept_on_interrupt("the last checkpoint"), ProgressDisplay(stays=True) as display:
        run = chosen.prepare(job, display.report)
        job.note()
        watched(run, display)
    if run.trainer.rank == 0:  # of the processes under torchrun
        result = job.out / FOLDER
        run.export(result)
        print(f"written: {result}; try: {run.use.format(result)}")


def watched(run: TrainingRun, display: ProgressDisplay) -> None:
    """Run to the end; only the first of several processes shows it."""
    trainer = run.trainer
    if trainer.rank > 0:
        trainer.run()
        return

    def log(numbers: Mapping[str, float]) -> None:
        loss, rate = numbers["loss"], numbers["tokens_per_second"]
        note = f"loss {loss:.3f}  {rate:.0f} tokens/s"
        display.report("training", int(numbers["step"]), trainer.total_steps, note)

    display.report("training", trainer.step, trainer.total_steps)
    trainer.run(on_log=log)
