"""The run that `generate` and `speculate` have in common: prompts in, batches, answers out."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import typer
from rich.console import Console

from dllm.cli.answers import answers_to, check_files
from dllm.cli.app import INTERRUPTED
from dllm.cli.options import AnswerOptions
from dllm.decoding.driving import Stream, drive
from dllm.errors import DllmError
from dllm.output import Finished
from dllm.progress import ProgressDisplay
from dllm.text.prompt_files import Record, read_prompts, title
from dllm.text.prompts import check_text

Template = bool | Literal["auto"]  # whether prompts go into the chat template


@dataclass(frozen=True)
class AnsweringEngine:
    """An engine with what the answers of a run need of it.

    stream: the events of some records, with their numbers among all.  follower: a new one.  view:
    shows a follower's rows.  belongs: what the answers depend on beside the prompts, by the words a
    user has for it.  to_dict: the fields of a JSON line.  cost: tokens and forwards of an answer.
    """

    model: str
    config: Any
    stream: Callable[[Sequence[Record], range], Stream]
    follower: Callable[[], Any]
    view: Callable[..., Any]
    belongs: Callable[[], dict[str, Any]]
    to_dict: Callable[[Any], dict[str, Any]]
    cost: Callable[[Any], tuple[int, int]]
    rate: str = "tokens/forward"


def checked_prompts(prompt: str | None, options: AnswerOptions) -> list[Record]:
    """The prompts that are asked for; DllmError, before a model is loaded, where options clash or
    a file cannot be written.
    """
    records = [{"prompt": typed(prompt)}] if prompt is not None else []
    if records and options.input is not None:
        raise DllmError("expected a prompt or --input, not both")
    if not records:
        if options.input is None and (sys.stdin is None or sys.stdin.isatty()):
            raise DllmError("no prompt: expected one, or --input FILE, or text on stdin")
        records = read_prompts(options.input or "-")
    if options.watch and (options.json or options.output):
        raise DllmError("--watch shows text: leave it out, or leave out --json and --output")
    if options.record and len(records) > options.batch_size:
        raise DllmError(
            f"--record takes one batch: there are {len(records)} prompts, --batch-size "
            f"{options.batch_size}"
        )
    writes = {"--output": options.output, "--record": options.record}
    check_files({"--input": options.input}, writes, options.overwrite)
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


def answer(records: Sequence[Record], engine: AnsweringEngine, options: AnswerOptions) -> None:
    """Answer all prompts, batch by batch; Ctrl-C ends it with what is committed."""
    as_text = not (options.json or options.output)
    with_view = as_text and bool(options.watch or len(records) == 1)

    def consumers(titles: list[str]) -> Iterator[Any]:
        if options.record:
            from dllm.recording import Recorder

            how: Any = {"model": engine.model, "prompts": titles}
            yield Recorder(options.record, engine.follower(), engine.config, **how)
        if with_view:
            live = options.watch is not False
            yield engine.view(engine.follower(), titles, delay=options.delay, live=live)

    size = options.batch_size
    with (
        answers_to(
            options.output,
            records,
            size,
            engine.belongs() if options.output else {},
            as_json=options.json,
            silent=with_view,
            overwrite=options.overwrite,
            to_dict=engine.to_dict,
        ) as answers,
        PromptsDisplay(engine, len(records), answers.batches.start, hidden=with_view) as display,
    ):
        for at in answers.batches:
            batch = records[at : at + size]
            with ExitStack() as stack, located(at, len(batch), len(records)):
                # the rows' own numbers, so that a draw does not depend on the size of a batch
                events = engine.stream(batch, range(at, at + len(batch)))
                shown_to = map(stack.enter_context, consumers([title(each) for each in batch]))
                done, cut = drive(events, display, *shown_to)
            answers.put({at + row: output for row, output in done.items()})
            if cut:
                raise typer.Exit(INTERRUPTED)


@contextmanager
def located(at: int, count: int, total: int) -> Iterator[None]:
    """Say in errors which of many prompts they are about: `count` of them from index `at`."""
    try:
        yield
    except DllmError as error:
        if total == 1:
            raise
        raise DllmError(f"prompts {at + 1} to {at + count}: {error}") from error


class PromptsDisplay:
    """Progress of many prompts on stderr, and a line about them at the end."""

    def __init__(self, engine: AnsweringEngine, total: int, done: int, *, hidden: bool) -> None:
        """done: prompts whose answers an earlier run has found."""
        self.engine, self.total, self.done, self.hidden = engine, total, done, hidden
        self.bar = ProgressDisplay(hidden=hidden)
        self.count = self.tokens = self.forwards = 0

    def __enter__(self) -> Self:
        self._report()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.__exit__()
        if not self.hidden and self.count > 1:
            numbers = f"{self.count} prompts · {self.tokens} tokens · {self._rate()}"
            Console(stderr=True, highlight=False).print(numbers, soft_wrap=True)

    def show(self, event: Any, seconds: float) -> None:
        """Take in an event of the engine."""
        if isinstance(event, Finished):
            tokens, forwards = self.engine.cost(event.output)
            self.count, self.tokens = self.count + 1, self.tokens + tokens
            self.forwards += forwards
            self._report()

    def _report(self) -> None:
        self.bar.report("prompts", self.done + self.count, self.total, self._rate())

    def _rate(self) -> str:
        """Rows that Ctrl-C ended before their first forward have none."""
        rate = f"{self.tokens / self.forwards:.1f}" if self.forwards else "–"
        return f"{rate} {self.engine.rate}"
