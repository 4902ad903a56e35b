"""Typer options from the fields of a dataclass: each is declared where its default stands.

The dataclass's docstring has the help, in sections that --help shows as panels:

    Decoding:
        sampler (SPEC): Which tokens a step commits.
        stop: Text that ends an answer; may be repeated.

The word in parentheses stands for the value in --help. A field's metadata has what else Typer is to
know: "min" and "max" of a number, and "flags" where an option is not called as its field is.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from typer import BadParameter, Option

from dllm.registry import shown

Given = dict[str, Any]  # the options of a dataclass that the user gave, by field
SECTION = re.compile(r"([A-Z][\w ]*):")
ENTRY = re.compile(r" {4}(\w+)(?: \((\w[^)]*)\))?: (.*)")
TYPES = {"int": int, "float": float, "bool": bool, "Path": Path}  # all else is text


class FieldHelp(NamedTuple):
    """What a docstring says of a field."""

    panel: str | None = None
    metavar: str | None = None
    text: str = ""


def described_fields(config: type) -> dict[str, FieldHelp]:
    """The fields that the docstring of `config` describes, in its order."""
    found: dict[str, FieldHelp] = {}
    panel = name = ""
    for line in inspect.cleandoc(config.__doc__ or "").splitlines():
        if section := SECTION.fullmatch(line):
            panel = section[1]
        elif panel and (entry := ENTRY.fullmatch(line)):
            name = entry[1]
            found[name] = FieldHelp(panel, entry[2], entry[3])
        elif name and line.startswith(" " * 8):
            found[name] = found[name]._replace(text=f"{found[name].text} {line.strip()}")
    return found


def defaults_of(config: type) -> dict[str, str]:
    """The defaults of a dataclass as a user types them; those of a tuple one by one."""
    return {
        f.name: ", ".join(f.default) or "none" if isinstance(f.default, tuple) else shown(f.default)
        for f in fields(config)
        if f.default is not MISSING
    }


@dataclass(frozen=True)
class OptionsOf:
    """The options of a verb that are a dataclass's fields; annotates the parameter that gets them.

    but: fields that are none.  only: those that are, if not all.  panel: where all of them stand,
    in place of the docstring's sections.  repeated: whether each may be given several times.
    texts: help in place of the docstring's, by field.
    """

    config: type
    but: Sequence[str] = ()
    only: Sequence[str] | None = None
    panel: str | None = None
    repeated: bool = False
    texts: Mapping[str, str] | None = None

    def fields(self) -> Iterator[tuple[Field[Any], FieldHelp]]:
        """Fields and what is said of them, in the order of the docstring."""
        there, told = {f.name: f for f in fields(self.config)}, described_fields(self.config)
        for name in dict.fromkeys([*told, *there]):
            if name not in self.but and (self.only is None or name in self.only):
                yield there[name], told.get(name, FieldHelp())

    def defaults(self) -> dict[str, str]:
        """What --help shows of defaults, by field."""
        return defaults_of(self.config)

    def parameters(self) -> Iterator[inspect.Parameter]:
        """What Typer makes the options of; none of them has a default here."""
        for field, told in self.fields():
            hint: Any = Annotated[self._type(field), self._option(field, told)]
            yield inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint
            )

    def _type(self, field: Field[Any]) -> Any:
        words = str(field.type).split(" | ")  # a string: no type of a component is imported
        kind: Any = next((TYPES[word] for word in words if word in TYPES), str)
        many = self.repeated or "tuple[str, ...]" in words
        return list[kind] | None if many else kind | None

    def _option(self, field: Field[Any], told: FieldHelp) -> Any:
        metadata = dict(field.metadata)
        # one of several values comes under the name of one
        name = field.name.removesuffix("s") if field.type == "tuple[str, ...]" else field.name
        plain = f"--{name.replace('_', '-')}"
        is_switch = field.type == "bool" and field.default is False
        renamed = is_switch or name != field.name
        flags = metadata.pop("flags", plain if renamed else None)
        if "float" in str(field.type) and "min" in metadata:
            metadata["callback"] = real
        return Option(
            *([flags] if flags else []),
            help=(self.texts or {}).get(field.name, told.text),
            metavar=told.metavar,
            rich_help_panel=self.panel or told.panel,
            **metadata,
        )

    def take(self, values: Given) -> Given:
        """The options that the user gave, out of the values of all options."""
        found = {field.name: values.pop(field.name) for field, _ in self.fields()}
        return {name: value for name, value in found.items() if value not in (None, [], ())}


def real(value: float | None) -> float | None:
    """A number from the command line; NaN compares with nothing, so that bounds let it through."""
    if value is not None and value != value:
        raise BadParameter("nan is no number.")
    return value


def expanded(function: Callable[..., None]) -> tuple[Callable[..., None], dict[str, str]]:
    """`function` with options in place of every parameter that an `OptionsOf` annotates, and their
    defaults.

    The parameter gets the dataclass, if that is its type, else a dictionary of what was given.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, tuple[Any, OptionsOf]] = {}
    parameters: list[inspect.Parameter] = []
    for name, own in inspect.signature(function).parameters.items():
        marks = get_args(hints[name])[1:] if get_origin(hints[name]) is Annotated else ()
        group = next((mark for mark in marks if isinstance(mark, OptionsOf)), None)
        if group is None:
            own = own.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            parameters.append(own)
        else:
            kind = get_args(hints[name])[0]
            groups[name] = kind if is_dataclass(kind) else dict, group
            parameters += group.parameters()

    @functools.wraps(function)
    def run(**values: Any) -> None:
        for name, (kind, group) in groups.items():
            values[name] = kind(**group.take(values))
        function(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    defaults: dict[str, str] = {}
    for _, group in groups.values():
        defaults |= group.defaults()
    return run, defaults
