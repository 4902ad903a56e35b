"""Registries of components by name, and specs: "threshold:threshold=0.9" becomes an object.

A component is a dataclass whose fields are its options, converted by their types. It is found in a
table of this package, in an entry-point group, or as "module:Class".

Who wrote a spec decides what it may name. A spec that a user types or writes in Python may name any
code. One that stands in a file (a preset, the plan of a run) may name what is installed: the
tables, and the entry points of a package that the user chose to install. It imports nothing else:
no "module:Class", and no option that is an `ImportPath`.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from math import inf
from numbers import Integral, Real
from typing import (
    Any,
    Generic,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from dllm.errors import DllmError

Component = TypeVar("Component", covariant=True)

ImportPath = NewType("ImportPath", str)  # the type of an option that names code to import
LARGEST = 2**31 - 1  # of a whole number: what numbers a place in a tensor
FLOATS = sys.float_info.max
TOO_LARGE = re.compile(r"[+-]?[0-9]{10,}")
NUMBER = re.compile(r"[0-9]{1,9}")  # of a list
WORDS = {"true": True, "false": False, "none": None}


class SpecError(DllmError):
    """A component or option that does not exist, or a value that does not fit it."""


@dataclass(frozen=True, eq=False)
class Registry(Mapping[str, str], Generic[Component]):
    """The components of one kind: a mapping from the name of each to its "module:Class".

    kind: the word for one, in messages. group: the entry-point group in which other packages name
    theirs. table: ours, loaded on first use. method: what every component has, if it is checked.
    """

    kind: str
    group: str
    table: Mapping[str, str]
    method: str = ""

    def __getitem__(self, name: str) -> str:
        return self.table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def installed(self) -> dict[str, str]:
        """Ours and those of other packages; where both have a name, ours."""
        return {point.name: point.value for point in entry_points(group=self.group)} | {**self}

    def find(self, name: str, *, imports: bool = True) -> type[Any]:
        """The class behind a name or a "module:Class" path. Raises SpecError.

        imports: False where the name stands in a file (see above): it is refused unless installed.
        """
        # ours at once: looking for entry points reads the metadata of every package
        known = self.table if name in self.table else self.installed()
        path, choices = known.get(name, name), ", ".join(sorted(known))
        first, colon, rest = name.partition(":")
        if name not in known and not imports:
            raise SpecError(
                f"{self.kind} {name!r}: expected one of {choices}; a file may name no other code, "
                "only you may"
            )
        if colon and (first in known or not first or not rest):
            raise SpecError(f"{self.kind} {name!r}: expected name:key=value, or module:Class")
        if ":" not in path:
            raise SpecError(
                f"unknown {self.kind} {name!r}: expected one of {choices}, or module:Class"
            )
        module, _, attribute = path.partition(":")
        try:
            with _working_directory_searched(path == name):
                found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a module may raise anything while it is imported
            raise SpecError(f"cannot load {self.kind} {name!r} from {path!r}: {error}") from error
        if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
            raise SpecError(f"{self.kind} {name!r} is {found!r}: expected a dataclass")
        return found

    def resolve(self, spec: str, *, imports: bool = True) -> tuple[type[Any], dict[str, Any]]:
        """The class that `spec` names and its options, converted; nothing is made of them yet.

        imports: as in `find`. Raises SpecError naming the value and the known choices.
        """
        name, options = split_spec(spec)
        cls = self.find(name, imports=imports)
        hints = get_type_hints(cls)
        fields = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}
        values = {}
        for key, text in options.items():
            if key not in fields:
                known = ", ".join(fields) or "none"
                raise SpecError(f"{name!r} has no option {key!r}; its options: {known}")
            if not imports and ImportPath in alternatives(fields[key]):
                raise SpecError(f"{name}:{key}={text!r}: a file may name no code, only you may")
            values[key] = convert(text, fields[key], f"{name}:{key}")
        return cls, values

    def build(self, spec: str, **defaults: Any) -> Component:
        """The component that `spec` ("name" or "name:key=value,key=value") describes.

        `defaults` are given to it where it has such a field and the spec does not set it.
        Raises SpecError naming the value and the known choices.
        """
        cls, options = self.resolve(spec)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        values = {key: value for key, value in defaults.items() if key in fields} | options
        missing = [
            key
            for key, field in fields.items()
            if key not in values and field.default is field.default_factory is dataclasses.MISSING
        ]
        if missing:
            name = split_spec(spec)[0]
            raise SpecError(f"{spec!r}: {missing[0]} is missing: expected {name}:{missing[0]}=...")
        hints = get_type_hints(cls)
        typed = any(ImportPath in alternatives(hints[key]) for key in options)
        try:
            with _working_directory_searched(typed):
                made: Component = cls(**values)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{spec!r:.99}: {error}") from error
        return made


@contextmanager
def _working_directory_searched(typed: bool) -> Iterator[None]:
    """Search the working directory behind all else while typed code is imported.

    The `dllm` command has it not on its path, and nothing but what was typed may come from there:
    not what stands behind a name, and no package that happens to be missing.
    """
    here = os.getcwd() if typed else None
    if here is None or here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Name (or module:Class) and options of a spec, all as text."""
    pieces = spec.strip().split(":")
    # options begin with the first piece behind the name that holds "="; a value may hold ":"
    first = next((i for i, piece in enumerate(pieces) if i and "=" in piece), len(pieces))
    path, last = pieces[:first], ":".join(pieces[first:])
    options = {}
    for item in filter(None, (piece.strip() for piece in last.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise SpecError(f"{spec!r}: expected key=value, found {item!r}")
        if key.strip() in options:
            raise SpecError(f"{spec!r}: the option {key.strip()!r} is given twice")
        options[key.strip()] = value.strip()
    return ":".join(path), options


def convert(text: str, hint: Any, name: str) -> Any:
    """`text` as a value of the type `hint`: int, float, bool, str, Literal, or a union of them."""
    choices = alternatives(hint)
    for choice in choices:
        if get_origin(choice) is Literal:
            if text in get_args(choice):
                return text
        elif choice in (bool, type(None)):
            if text.lower() in WORDS and isinstance(WORDS[text.lower()], choice):
                return WORDS[text.lower()]
        elif get_origin(choice) is tuple:
            pieces = [piece for piece in text.split("+") if piece]
            if get_args(choice)[0] is str:
                return tuple(pieces)
            if pieces and all(NUMBER.fullmatch(piece) for piece in pieces):
                return tuple(map(int, pieces))
        elif choice is ImportPath:
            return text
        elif choice in (int, float, str):
            try:
                value = choice(text)
            except ValueError:  # also for an integer of thousands of digits
                continue
            if fits(value, choice) or value != value:  # a component says itself why NaN is none
                return value
    expected = describe(hint)
    if TOO_LARGE.fullmatch(text):
        expected += f", at most {LARGEST}"
    raise SpecError(f"{name}={text!r:.99}: expected {expected}")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is one of the type `hint`, within what a tensor can hold where it is a number
    (NaN is none); True for types that are no option's in a spec.
    """
    for choice in alternatives(hint):
        if get_origin(choice) is Literal:
            good = value in get_args(choice)
        elif get_origin(choice) is tuple:
            item = get_args(choice)[0]
            good = isinstance(value, tuple) and all(fits(each, item) for each in value)
        elif get_origin(choice) is list:
            item = get_args(choice)[0]
            good = isinstance(value, list) and all(fits(each, item) for each in value)
        elif choice is int:
            good = _is_number(value, Integral) and abs(value) <= LARGEST
        elif choice is float:  # infinity is one; 10**400 is none
            good = _is_number(value, Real) and (abs(value) <= FLOATS or value in (inf, -inf))
        elif (get_origin(choice) or choice) is dict:
            good = isinstance(value, dict)
        elif choice in (bool, str, type(None)):
            good = isinstance(value, choice)
        else:
            good = True
        if good:
            return True
    return False


def _is_number(value: Any, kind: type[Any]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_types(component: Any) -> None:
    """SpecError where an option of a component made in Python is not of its field's type."""
    cls = type(component)
    if not dataclasses.is_dataclass(cls):
        return
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        value = getattr(component, field.name)
        if field.init and not fits(value, hints[field.name]):
            expected = describe(hints[field.name])
            raise SpecError(f"{cls.__name__}: {field.name}={value!r:.99}: expected {expected}")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows: those of a union, or the one it is."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def describe(hint: Any) -> str:
    """A type as a user reads it."""
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{'names' if get_args(hint)[0] is str else 'whole numbers'} joined by +"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in get_args(hint))
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "none",
        ImportPath: "module:Class",
        Any: "an object",
    }
    return names.get(hint, str(hint))


def shown(value: object) -> str:
    """A value of an option as a user would type it: what `convert` reads."""
    if value is dataclasses.MISSING:
        return "(required)"
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
