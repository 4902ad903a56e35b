"""The verb that finds out how to decode a model fast: tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer import Option

from dllm.cli.answers import check_files
from dllm.cli.app import kept_on_interrupt, verb
from dllm.cli.fields import Given, OptionsOf, real
from dllm.cli.options import MOST_GB, MOST_ROWS, Chat, Load, Model, prepare
from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.progress import ProgressDisplay
from dllm.text.prompt_files import Record, read_prompts

if TYPE_CHECKING:
    from dllm.output import Output
    from dllm.tuning.results import Report, TuningResult


@verb()
def tune(
    prompts: Annotated[str, Option(help="A file of prompts, as --input of generate takes.")],
    model: Model = "tiny",
    *,
    load: Load,
    max_loss: Annotated[
        str, Option(help="Answers that may differ from one-by-one decoding's, 0.5% or 0.005.")
    ] = "0.5%",
    decoding: Annotated[Given, OptionsOf(DecodeConfig, only=["max_new_tokens", "block_length"])],
    chat: Chat = None,
    output: Annotated[Path, Option(help="The preset file to write.")] = Path("preset.json"),
    batch_size: Annotated[int, Option(help="Prompts decoded together.", min=1, max=MOST_ROWS)] = 16,
    memo: Annotated[
        float,
        Option(help="GB of logits remembered between settings.", min=0, max=MOST_GB, callback=real),
    ] = 2.0,
) -> None:
    """Measure rules and their options on your model and prompts; write the fastest that fits.

    Every setting's answers are compared with those of one token per forward; where all prompts have
    a field "answer" it is compared with that. The answers are kept in a .jsonl file beside the
    output: a run that was interrupted goes on from there. Use the file as --preset, or put it into
    the model's directory as preset.json and use --sampler auto.
    """
    loss = share(max_loss)
    records = read_prompts(prompts)
    log = output.with_suffix(".jsonl")
    check_files({"--prompts": prompts}, {"--output": output, "its log": log}, overwrite=True)
    config, engine = prepare(model, load, None, decoding)
    from dllm.tuning.tune import tune as run

    answers = [record.get("answer") for record in records]

    def right(row: int, found: Output) -> bool:
        return found.text.strip() == str(answers[row]).strip()

    with kept_on_interrupt(), ProgressDisplay() as bar:
        report = run(
            engine,
            [record["prompt"] for record in records],
            config=config,
            max_loss=loss,
            batch_size=batch_size,
            log=log,
            memo_bytes=int(memo * 2**30),
            score=None if None in answers else right,
            chat="auto" if chat is None else chat,
            model=model,
            on_progress=lambda done, total, _: bar.report("tuning", done, total),
        )
    report.write(output)
    show(report, records, output)


def share(text: str) -> float:
    """ "0.5%" or "0.005" as a number."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise DllmError(f"--max-loss {text!r}: expected a share from 0 to 1, or a percentage")
    return value


def show(report: Report, records: Sequence[Record], output: Path) -> None:
    """The frontier, what was chosen, and how sure that is."""
    table = Table(
        "setting", "forwards", "canvases", "tokens/forward", "loss", "95%", box=SIMPLE_HEAD
    )
    for result in report.frontier:
        table.add_row(*cells(result), style="bold" if result is report.chosen else "")
    console = Console(highlight=False)
    console.print(table)
    for setting, why in report.skipped:
        console.print(f"left out: {setting.name} ({why})")
    chosen, count = report.chosen, len(records)
    if report.falls_back:
        console.print(f"no setting loses at most {report.max_loss:.2%} of {count} answers")
    if report.max_loss * count < 1 and not chosen.scored:
        console.print(
            f"{count} prompts and a loss of {report.max_loss:.2%}: not a single answer may differ"
        )
    speed = report.reference.forwards / chosen.forwards
    console.print(
        f"chosen: {chosen.setting.name}, {speed:.1f}x fewer forwards than one by one\n"
        f"written: {output}; try: dllm generate --preset {output} PROMPT"
    )


def cells(result: TuningResult) -> tuple[str, ...]:
    low, high = result.interval
    return (
        result.setting.name,
        f"{result.forwards:.1f}",
        f"{result.canvases:.1f}",
        f"{result.tokens_per_forward:.2f}",
        f"{result.loss:.1%}",
        f"{low:.1%} – {high:.1%}",
    )
