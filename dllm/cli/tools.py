"""The verbs around decoding: samplers, env, train."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Option

from dllm.cli.app import app
from dllm.errors import DllmError

# name -> module with trainer(directory), export, and USE: how to try what it wrote
RECIPES = {"mdlm": "dllm.train.tiny", "ar": "dllm.train.twin"}


@app.command()
def samplers() -> None:
    """List all parts, their options with defaults and their papers; then the presets."""
    from dllm.listing import print_parts

    print_parts(Console(highlight=False))


@app.command()
def env(as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices and threads."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    import dllm

    found: dict[str, Any] = {"dllm": dllm.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found |= {
        "platform": platform.platform(),
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        value = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<14}{value or 'none'}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=f"One of: {', '.join(RECIPES)}.")],
    out: Annotated[Path, Option(help="Directory of the run; a run in it is resumed.")],
) -> None:
    """Run a training recipe; interrupted, the same command goes on from its last checkpoint."""
    if recipe not in RECIPES:
        raise DllmError(f"no recipe {recipe!r}: expected one of {', '.join(RECIPES)}")
    module = importlib.import_module(RECIPES[recipe])
    trainer = module.trainer(out)
    if trainer.rank > 0:  # of a run under torchrun; the first process shows and writes
        trainer.run()
        return
    columns = ("{task.description}", "loss {task.fields[loss]}", "{task.fields[rate]} tokens/s")
    show, *numbers = (TextColumn(column) for column in columns)
    bar = Progress(show, BarColumn(), MofNCompleteColumn(), *numbers, TimeRemainingColumn())
    with bar:
        task = bar.add_task("training", total=trainer.total_steps, loss="–", rate="–")
        bar.update(task, completed=trainer.step)

        def report(numbers: Mapping[str, float]) -> None:
            loss, rate = f"{numbers['loss']:.3f}", f"{numbers['tokens_per_second']:.0f}"
            bar.update(task, completed=numbers["step"], loss=loss, rate=rate)

        trainer.run(on_log=report)
        bar.update(task, completed=trainer.step)
    module.export(trainer, out / "checkpoint")
    print(f"written: {out / 'checkpoint'}; try: {module.USE.format(out / 'checkpoint')}")
