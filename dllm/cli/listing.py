"""Listings of components and presets, for a terminal or as JSON: all, or one name in full."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, get_type_hints

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dllm.config import COMPONENTS, DecodeConfig
from dllm.errors import DllmError
from dllm.presets import PRESETS, Preset
from dllm.registry import Registry, describe, shown
from dllm.verify.components import COMPONENTS as OF_SPECULATION
from dllm.verify.components import SEARCHES
from dllm.verify.config import SpecConfig

PROMPT = "Sort the list: kiwi, fig, plum"  # the bundled models know what to do


class ListedOption(NamedTuple):
    """One option that names a component, and the verb that has it."""

    verb: str
    option: str
    registry: Registry[Any]

    @property
    def flag(self) -> str:
        return f"--{self.option.replace('_', '-')}"


ALL = (
    *(ListedOption("generate", option, registry) for option, registry in COMPONENTS.items()),
    *(ListedOption("speculate", option, registry) for option, registry in OF_SPECULATION.items()),
)


class Described(NamedTuple):
    """A component as its class tells of it. wrong: why that cannot be loaded."""

    kind: ListedOption
    name: str
    about: str = ""
    paper: str = ""
    options: tuple[tuple[str, object, str], ...] = ()  # name, default, what is expected
    example: str = ""
    wrong: str = ""

    def as_dict(self) -> dict[str, Any]:
        told = {"verb": self.kind.verb, "option": self.kind.option, **self._asdict()}
        options = [
            {"name": name, "expected": expected}
            | ({} if default is MISSING else {"default": default})
            for name, default, expected in self.options
        ]
        del told["kind"]
        return told | {"options": options}


def components_called(name: str | None) -> Iterator[Described]:
    """The components of a name, or all (None), in the order of their options."""
    for kind in ALL:
        known = sorted(kind.registry.installed())
        yield from (described(kind, each) for each in known if name in (None, each))


def described(kind: ListedOption, name: str) -> Described:
    try:
        component = kind.registry.find(name)
        hints = get_type_hints(component)
    except (DllmError, NameError) as error:
        return Described(kind, name, wrong=str(error))
    options = tuple(
        (f.name, f.default, describe(hints[f.name])) for f in fields(component) if f.init
    )
    spec = spec_like(kind, name, options)
    return Described(
        kind,
        name,
        about=unwrapped(component.__doc__ or ""),
        paper=getattr(component, "paper", None) or "",
        options=options,
        example=command(kind.verb, kind.flag, spec, *needed(kind, name, component)),
    )


def unwrapped(docstring: str) -> str:
    """A docstring with every paragraph on one line."""
    return "\n\n".join(" ".join(p.split()) for p in inspect.cleandoc(docstring).split("\n\n"))


def spec_like(kind: ListedOption, name: str, options: tuple[tuple[str, object, str], ...]) -> str:
    """A spec as a preset has it; else with the options that must be given, or one that may."""
    for preset in PRESETS.values():
        spec = preset.options.get(kind.option) or ""
        if spec.startswith(f"{name}:"):
            return str(spec)
    must = [f"{each}={each.upper()}" for each, default, _ in options if default is MISSING]
    may = [
        f"{each}={shown(default)}"
        for each, default, _ in options
        if default not in (MISSING, None, ()) and default != ""
    ]
    return ":".join([name, *([",".join(must)] if must else may[:1])])


def needed(kind: ListedOption, name: str, component: type) -> list[str]:
    """What an acceptance rule needs beside it."""
    if kind.option != "accept" or name == "greedy":
        return []
    if not getattr(component, "lossless", True):
        return ["--lossy"]
    fits = (s for s in SEARCHES if name in SEARCHES.find(s).accepts)
    return ["--search", next(fits, "product"), "--temperature", "1"]


def command(verb: str, *options: str) -> str:
    """A command line that may be typed as it stands."""
    return f'dllm {verb} "{PROMPT}" {shlex.join(options)}'


def check_name(name: str) -> None:
    """DllmError where no component and no preset has this name."""
    known = {*PRESETS}.union(*(kind.registry.installed() for kind in ALL))
    if name not in known:
        choices = ", ".join(sorted(known))
        raise DllmError(f"no component or preset {name!r}: expected one of {choices}")


def print_components(console: Console) -> None:
    """Every component that an option of `dllm generate` takes, and its presets; then those of
    `dllm speculate`.
    """
    for kind in ALL:
        if kind.verb == "generate":
            print_kind(console, kind.flag, kind.registry)
    listing = listing_of("--preset", "paper", "stands for")
    for name, preset in PRESETS.items():
        listing.add_row(Text(name, "bold"), preset.paper, as_typed(preset))
    console.print(listing)
    console.print(Text("\nof speculate:", "bold"))
    for kind in ALL:
        if kind.verb == "speculate":
            print_kind(console, kind.flag, kind.registry)
    console.print("dllm samplers NAME shows one of them in full", style="dim")


def print_named(console: Console, name: str) -> None:
    """All components that are called `name`, and a preset, in full."""
    for component in components_called(name):
        console.print(
            Text.assemble((f"{component.kind.flag} {name}", "bold"), f"  {component.paper}")
        )
        console.print(Text(f"\n{component.wrong or component.about}"))
        if component.options:
            listing = listing_of("option", "default", "expected")
            for option, default, expected in component.options:
                listing.add_row(option, shown(default), expected)
            console.print(listing)
        console.print(Text(f"\n    {component.example}\n"), soft_wrap=True)
    if preset := PRESETS.get(name):
        console.print(Text.assemble((f"--preset {name}", "bold"), f"  {preset.paper}\n"))
        console.print(as_typed(preset))
        console.print(Text(f"\n    {command('generate', '--preset', name)}\n"), soft_wrap=True)


def as_json(name: str | None = None) -> dict[str, Any]:
    """All components and presets, or those of a name, as values that JSON has."""
    presets = [
        {"name": each, "paper": p.paper, "options": {**p.options}, "on_dream": {**p.dream}}
        for each, p in PRESETS.items()
        if name in (None, each)
    ]
    defaults = {
        verb: {f.name: f.default for f in fields(config) if f.default is not MISSING}
        for verb, config in (("generate", DecodeConfig), ("speculate", SpecConfig))
    }
    components = [component.as_dict() for component in components_called(name)]
    return {"components": components, "presets": presets, "defaults": defaults}


def print_kind(console: Console, head: str, registry: Registry[Any]) -> None:
    """The components of one kind. head: over the column of their names."""
    listing = listing_of(head, "what it does", "options, defaults")
    for name in sorted(registry.installed()):
        listing.add_row(Text(name, "bold"), *describe_component(name, registry))
    console.print(listing)


def listing_of(*columns: str) -> Table:
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, header_style="dim")


def as_typed(preset: Preset) -> Text:
    """What a preset stands for, as a user types it."""
    words = Text(options_as_typed(preset.options))
    if preset.dream:
        words.append(f"\non Dream: {options_as_typed(preset.dream)}", "dim")
    return words


def options_as_typed(options: Mapping[str, object]) -> str:
    """Options of generate as a user types them: one of several values comes again."""
    words = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        # a block of no length is written 0 on the command line
        typed = ["0" if each is None else shlex.quote(shown(each)) for each in values]
        words += [f"--{name.replace('_', '-')} {each}" for each in typed]
    return "  ".join(words)


def describe_component(name: str, registry: Registry[Any]) -> tuple[Text, Text]:
    """What a component does and its paper; its options. One that cannot be loaded says why."""
    component = described(ListedOption("", "", registry), name)
    if component.wrong:
        return Text(component.wrong, "red"), Text()
    paper = f"\n{component.paper}" if component.paper else ""
    about = Text(summary(component.about)).append(paper, "dim")
    options = [
        Text.assemble(f"{option}={shown(default)} ", (f"({expected})", "dim"))
        for option, default, expected in component.options
    ]
    return about, Text("\n").join(options)


def summary(about: str) -> str:
    """The first sentence of what a component says of itself."""
    sentence, stop, _ = about.partition("\n\n")[0].partition(". ")
    return sentence + stop.strip()
