"""Prompt files: a prompt a line, or JSON lines with a field "prompt"; stdin is read alike."""

from __future__ import annotations

from typing import Any

from dllm.errors import DllmError
from dllm.files import parse_json, read_stdin, read_text

Record = dict[str, Any]  # a line: {"prompt": text or messages, ...}


def read_prompts(source: str) -> list[Record]:
    """The prompts in a file, or on stdin ("-"); DllmError where a line is none, or all are blank.

    JSON lines are what ends in .jsonl or begins with a brace.
    """
    if source == "-":
        name, text = "stdin", read_stdin()
    else:
        name, text = source, read_text(source, pipes=True)
    lines = text.split("\n")
    as_json = name.endswith(".jsonl") or lines[0].startswith("{")
    read = read_record if as_json else lambda line, _: {"prompt": line}
    records = [read(line, f"{name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise DllmError(f"{name}: no prompts in it")
    return records


def read_record(line: str, where: str) -> Record:
    """The record of a JSON line. where: what errors call it."""
    record = parse_json(line, where)
    if isinstance(record, dict) and is_prompt(record.get("prompt")):
        return record
    raise DllmError(
        f'{where}: expected a JSON object with "prompt", a text or a list of messages, not empty'
    )


def is_prompt(prompt: Any) -> bool:
    """Whether it is a text that is not blank, or messages."""
    if isinstance(prompt, str):
        return bool(prompt.strip())
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(m, dict) for m in prompt)


def title(record: Record) -> str:
    """A prompt on one line."""
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
