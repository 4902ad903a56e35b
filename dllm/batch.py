"""Prompts in, answers out: the files and the progress bar of a run over many prompts.

Knows lines and outputs; decodes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dllm.errors import DllmError
from dllm.output import Event, Finished
from dllm.streaming import output_to_dict

Record = dict[str, Any]  # a line of the input: {"prompt": text or messages, ...}


def read_prompts(prompt: str | None, source: str | None) -> list[Record]:
    """The prompts of a command line: the one given, or those of a file or of stdin."""
    if prompt is not None and source is not None:
        raise DllmError("expected a prompt or --input, not both")
    if prompt is not None:
        return [{"prompt": prompt}]
    if source is None and sys.stdin.isatty():
        raise DllmError("no prompt: expected one, or --input FILE, or text on stdin")
    if source in (None, "-"):
        name, lines = "stdin", sys.stdin.read().split("\n")
    else:
        name, lines = str(source), Path(str(source)).read_text(encoding="utf-8").split("\n")
    as_json = name.endswith(".jsonl") or lines[0].startswith("{")
    read = read_record if as_json else lambda line, _: {"prompt": line}
    records = [read(line, f"{name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise DllmError(f"{name}: no prompts in it")
    return records


def read_record(line: str, where: str) -> Record:
    with suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("prompt"), (str, list)):
            return record
    raise DllmError(f'{where}: expected a JSON object with "prompt", a text or a list of messages')


def title(record: Record) -> str:
    """A prompt on one line."""
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))


class Answer(Protocol):
    """The output of any engine."""

    @property
    def text(self) -> str: ...


@contextmanager
def answers_to(
    path: Path | None,
    as_json: bool,
    silent: bool,
    to_dict: Callable[[Any], dict[str, Any]] = output_to_dict,
) -> Iterator[Callable[[Record, Answer], None]]:
    """Where answers go: JSON lines to a file or stdout, texts to stdout, or nowhere.

    to_dict: the fields of a line. A file is named ".partial" behind until all answers are in it.
    """

    def write(file: TextIO | None, record: Record, output: Answer) -> None:
        line = json.dumps({**record, **to_dict(output)}, ensure_ascii=False)
        print(line if as_json or path else output.text, file=file, flush=True)

    if path is None:
        yield (lambda *_: None) if silent else partial(write, None)
        return
    part = path.with_name(path.name + ".partial")
    with part.open("w", encoding="utf-8") as file:
        try:
            yield partial(write, file)
        except BaseException:
            print(f"what was finished is in {part}", file=sys.stderr)
            raise
    part.replace(path)


@contextmanager
def located(at: int, count: int, total: int) -> Iterator[None]:
    """Say in errors which of many prompts they are about: `count` of them from index `at`."""
    try:
        yield
    except DllmError as error:
        if total == 1:
            raise
        raise DllmError(f"prompts {at + 1} to {at + count}: {error}") from error


class Bar:
    """Progress of a batch run on stderr, and a line about it at the end."""

    def __init__(self, total: int, hidden: bool) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.hidden = hidden
        self.bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts  {task.fields[rate]} tokens/forward "),
            TimeRemainingColumn(),
            console=self.console,
            disable=hidden or not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=total, rate="–")
        self.count = self.nfe = self.tokens = 0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if not self.hidden and self.count > 1:
            self.console.print(
                f"{self.count} prompts · {self.tokens} tokens · {self.tokens / self.nfe:.1f} "
                "tokens/forward",
                soft_wrap=True,
            )

    def show(self, event: Event, seconds: float) -> None:
        if isinstance(event, Finished):
            self.count += 1
            self.nfe += event.output.nfe
            self.tokens += event.output.answer_tokens
            self.bar.update(self.task, advance=1, rate=f"{self.tokens / self.nfe:.1f}")
