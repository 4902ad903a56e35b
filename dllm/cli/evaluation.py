"""The verbs below `dllm eval`; each has a module of its own."""

from __future__ import annotations

import typer

from dllm.cli.app import app

eval_app = typer.Typer(
    help="Measure what a way to decode costs and gets right.", no_args_is_help=True
)
app.add_typer(eval_app, name="eval")
