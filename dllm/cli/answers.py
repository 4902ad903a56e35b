"""Answer files: answers on stdout, in a pipe, or in a file that a rerun goes on with.

Knows lines and outputs; decodes nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dllm.cli.terminal import printable
from dllm.errors import DllmError
from dllm.files import FileError, destination, is_stream, replacing, to_json
from dllm.jsonlog import JsonLog, LineStream, read_records
from dllm.output import Output
from dllm.text.prompt_files import Record

FORMAT = "dllm-answers-1"
REMEDY = "give --overwrite to start anew, or another --output"


class AnyOutput(Protocol):
    """The output of any engine."""

    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...


@dataclass(frozen=True)
class AnswerSink:
    """What takes the answers of a run. put: of some prompts, by their index in the input.

    batches: where the batches begin that are to be decoded.
    """

    put: Callable[[Mapping[int, Any]], None]
    batches: range


def partial_of(path: Path) -> Path:
    """The file in which the answers of an unfinished run lie."""
    target = destination(path)
    return target.with_name(target.name + ".partial")


def check_files(
    reads: Mapping[str, str | os.PathLike[str] | None],
    writes: Mapping[str, Path | None],
    overwrite: bool,
) -> None:
    """DllmError, before anything is computed, for a file that cannot be written, that another
    option reads or writes as well, or, unless `overwrite`, that stands there already.

    reads, writes: paths by the options that name them.
    """
    taken = {name: Path(path) for name, path in reads.items() if path is not None and path != "-"}
    for name, path in writes.items():
        if path is None:
            continue
        if is_stream(path):
            destination(path)
            continue
        target = destination(path)
        for other, there in taken.items():
            if any(same_file(there, each) for each in (target, partial_of(target))):
                raise DllmError(f"{name} {path}: expected another file than that of {other}")
        if target.exists() and not overwrite:
            raise DllmError(
                f"{name} {path}: stands there already: give --overwrite to replace it, or another"
            )
        taken[name] = target


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths name one file, be it by links, or would if it existed."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


@contextmanager
def answers_to(
    path: Path | None,
    records: Sequence[Record],
    batch_size: int,
    belongs: Mapping[str, Any],
    *,
    as_json: bool = False,
    silent: bool = False,
    overwrite: bool = False,
    to_dict: Callable[[Any], dict[str, Any]] = Output.as_dict,
) -> Iterator[AnswerSink]:
    """What takes the answers to `records`: JSON lines to a file or stdout, or texts to stdout.

    to_dict: the fields of a line. belongs: what the answers depend on beside the prompts. A regular
    file is named ".partial" behind until all answers are in it; one that an earlier run left is
    gone on with. Raises FileError where it belongs to something else, or is in use.
    """

    def lines(answers: Mapping[int, AnyOutput]) -> list[dict[str, Any]]:
        return [{**records[row], **to_dict(answers[row])} for row in sorted(answers)]

    def print_all(answers: Mapping[int, AnyOutput]) -> None:
        ascii_only = codecs.lookup(sys.stdout.encoding).name != "utf-8"
        for row, line in zip(sorted(answers), lines(answers), strict=True):
            print(to_json(line, ascii_only=ascii_only) if as_json else on_screen(answers[row].text))
        sys.stdout.flush()

    everything = range(0, len(records), batch_size)
    if path is None:
        closed = sys.stdout is None
        yield AnswerSink((lambda _: None) if silent or closed else print_all, everything)
    elif is_stream(path):
        with LineStream(path) as stream:
            yield AnswerSink(lambda answers: stream.append(*lines(answers)), everything)
    else:
        with Partial(path, records, belongs, overwrite) as kept:
            done = kept.answered()
            if done:
                print(f"{kept.log.name} has {done} of {len(records)} answers", file=sys.stderr)
            whole = len(everything) if done == len(records) else done // batch_size

            def keep(answers: Mapping[int, AnyOutput]) -> None:
                kept.add(answers, lines(answers))

            yield AnswerSink(keep, everything[whole:])
            kept.finish(path)


def on_screen(text: str) -> str:
    """What a model wrote as a terminal may have it; a file or a pipe gets what it wrote."""
    return printable(text) if sys.stdout.isatty() else text


class Partial:
    """The log of an unfinished run: a line for each answer, with its row and prompt told.

    Batches are decoded in order; one of which an answer is missing is decoded again, as the numbers
    of a model may depend on what is in the batch. So a row's last line counts, and those are in
    order.
    """

    def __init__(
        self, path: Path, records: Sequence[Record], belongs: Mapping[str, Any], overwrite: bool
    ) -> None:
        self.prompts = [
            hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()[:16]
            for each in records
        ]
        header = {"format": FORMAT, **belongs}
        self.log = JsonLog(partial_of(path), header, fresh=overwrite, remedy=REMEDY)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.log.close()
        if kind is not None:
            print(f"what was finished is in {self.log.name}", file=sys.stderr)

    def add(self, answers: Mapping[int, AnyOutput], lines: Sequence[dict[str, Any]]) -> None:
        """Keep the answers to a batch; all of them are in the file on return, or none."""
        self.log.append(
            *(
                {"row": row, "prompt": self.prompts[row], "answer": line}
                for row, line in zip(sorted(answers), lines, strict=True)
            )
        )

    def answered(self) -> int:
        """How many prompts from the first on have their answers."""
        done = set()
        for row, answer in self._answers():
            if answer.get("finish_reason") != "interrupted":
                done.add(row)
        return next(row for row in range(len(self.prompts) + 1) if row not in done)

    def finish(self, path: Path) -> None:
        """Write the answers to `path`, and drop the log."""
        last = {row: number for number, (row, _) in enumerate(self._answers())}
        with replacing(path) as temp, temp.open("w", encoding="utf-8", newline="\n") as file:
            for number, (row, answer) in enumerate(self._answers()):
                if last[row] == number:
                    file.write(to_json(answer) + "\n")
        self.log.path.unlink()

    def _answers(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows and answers in the order in which they came."""
        for number, record in read_records(self.log.path, self.log.name):
            if number == 1:
                continue
            row, answer = record.get("row"), record.get("answer")
            if not isinstance(row, int) or not isinstance(answer, dict):
                raise FileError(f"{self.log.name}, line {number}: expected an answer; {REMEDY}")
            if not 0 <= row < len(self.prompts) or record.get("prompt") != self.prompts[row]:
                raise FileError(
                    f"{self.log.name}: made for another prompt {row + 1} than the input has; "
                    f"{REMEDY}"
                )
            yield row, answer
