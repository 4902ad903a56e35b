"""The parts and presets as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import NoneType
from typing import get_type_hints

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dllm.config import PARTS, DecodeConfig
from dllm.errors import DllmError
from dllm.presets import PRESETS
from dllm.specs import describe, known_parts, part_class
from dllm.verify.parts import KINDS


def print_parts(console: Console) -> None:
    """Every part that an option of `dllm generate` takes, its presets, and its defaults; then the
    parts of `dllm speculate`.
    """
    for option, part in PARTS.items():
        print_kind(console, option, part.table, part.group)
    listing = listing_of("--preset", "paper", "stands for")
    for name, preset in PRESETS.items():
        words = Text(options_as_typed(preset.options))
        if preset.dream:
            words.append(f"\non Dream: {options_as_typed(preset.dream)}", "dim")
        listing.add_row(Text(name, "bold"), preset.paper, words)
    console.print(listing)
    defaults = {f.name: f.default for f in fields(DecodeConfig)}
    console.print(Text("defaults of generate: " + options_as_typed(defaults)))
    console.print(Text("\nof speculate:", "bold"))
    for option, kind in KINDS.items():
        print_kind(console, option, kind.table, kind.group)


def print_kind(console: Console, option: str, table: Mapping[str, str], group: str) -> None:
    """The parts that one option takes."""
    listing = listing_of(f"--{option.replace('_', '-')}", "what it does", "options, defaults")
    for name in sorted(known_parts(table, group)):
        listing.add_row(Text(name, "bold"), *describe_part(name, table, group))
    console.print(listing)


def listing_of(*columns: str) -> Table:
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, header_style="dim")


def options_as_typed(options: Mapping[str, object]) -> str:
    """Options of generate as a user types them."""
    return "  ".join(
        f"--{name.replace('_', '-')} {shown(value)}" for name, value in options.items()
    )


def describe_part(name: str, table: Mapping[str, str], group: str) -> tuple[Text, Text]:
    """What a part does and its paper; its options. A part that cannot be loaded says why."""
    try:
        part = part_class(name, table, group)
        hints = get_type_hints(part)
    except (DllmError, NameError) as error:
        return Text(str(error), "red"), Text()
    paper = getattr(part, "paper", "")  # a task has none
    about = Text(summary(part)).append(f"\n{paper}" if paper else "", "dim")
    options = [
        Text.assemble(f"{f.name}={shown(f.default)} ", (f"({describe(hints[f.name])})", "dim"))
        for f in fields(part)
        if f.init
    ]
    return about, Text("\n").join(options)


def summary(part: type) -> str:
    """The first sentence of a part's docstring."""
    paragraph = " ".join((part.__doc__ or "").strip().split("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()


def shown(value: object) -> str:
    """A default as a user would type it."""
    words = {None: "none", True: "true", False: "false"}
    if value is MISSING:
        return "(required)"
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return words[value] if isinstance(value, (bool, NoneType)) else str(value)
