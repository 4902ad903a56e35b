"""Prompts in, progress out: the input and the bar of a run over many prompts. Decodes nothing."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dllm.errors import DllmError
from dllm.files import parse_json, read_stdin, read_text
from dllm.output import Event, Finished
from dllm.text.prompts import check_text

Record = dict[str, Any]  # a line of the input: {"prompt": text or messages, ...}


def read_prompts(prompt: str | None, source: str | None) -> list[Record]:
    """The prompts of a command line: the one given, or those of a file or of stdin."""
    if prompt is not None and source is not None:
        raise DllmError("expected a prompt or --input, not both")
    if prompt is not None:
        return [{"prompt": typed(prompt)}]
    if source is None and (sys.stdin is None or sys.stdin.isatty()):
        raise DllmError("no prompt: expected one, or --input FILE, or text on stdin")
    if source is None or source == "-":
        name, text = "stdin", read_stdin()
    else:
        name, text = str(source), read_text(source, pipes=True)
    lines = text.split("\n")
    as_json = name.endswith(".jsonl") or lines[0].startswith("{")
    read = read_record if as_json else lambda line, _: {"prompt": line}
    records = [read(line, f"{name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise DllmError(f"{name}: no prompts in it")
    return records


def typed(prompt: str) -> str:
    """The prompt of a command line; DllmError where no text was meant."""
    check_text(prompt)
    if os.path.isfile(prompt):
        raise DllmError(
            f"prompt {prompt!r} is a file: give --input {shlex.quote(prompt)} for what is in it, "
            "or the name itself on stdin"
        )
    return prompt


def read_record(line: str, where: str) -> Record:
    record = parse_json(line, where)
    if isinstance(record, dict) and asks(record.get("prompt")):
        return record
    raise DllmError(
        f'{where}: expected a JSON object with "prompt", a text or a list of messages, not empty'
    )


def asks(prompt: Any) -> bool:
    """Whether it is a prompt: a text that is not blank, or messages."""
    if isinstance(prompt, str):
        return bool(prompt.strip())
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(m, dict) for m in prompt)


def title(record: Record) -> str:
    """A prompt on one line."""
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))


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

    def __init__(self, total: int, hidden: bool, done: int = 0) -> None:
        """done: prompts whose answers an earlier run has found."""
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
        self.task = self.bar.add_task("", total=total, completed=done, rate="–")
        self.count = self.nfe = self.tokens = 0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if not self.hidden and self.count > 1:
            self.console.print(
                f"{self.count} prompts · {self.tokens} tokens · {self.rate} tokens/forward",
                soft_wrap=True,
            )

    @property
    def rate(self) -> str:
        """Tokens per forward; rows that Ctrl-C ended before their first one have none."""
        return f"{self.tokens / self.nfe:.1f}" if self.nfe else "–"

    def show(self, event: Event, seconds: float) -> None:
        if isinstance(event, Finished):
            self.count += 1
            self.nfe += event.output.nfe
            self.tokens += event.output.answer_tokens
            self.bar.update(self.task, advance=1, rate=self.rate)
