"""Dataclasses out of JSON that anybody may have written."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**63  # what arrays hold
DEEPEST = 32  # levels of what has no type of its own
SIGNED = {"seed", "seeds"}  # other whole numbers are counts, indices and tokens


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def shaped(cls: type[T], given: object, where: str = "", name: str = "") -> T:
    """The `cls` with the values `given`: a mapping with its fields, each of the field's type; other
    keys are left out. ValueError names what is wrong; where, name: its place, and what it is.
    """
    hints, values = _hints(cls), dict[str, Any]()  # type: ignore[arg-type]
    name = where or name or cls.__name__
    if not isinstance(given, dict):
        raise ValueError(f"{name}: expected a JSON object, found {_short(given)}")
    for field in fields(cls):  # type: ignore[arg-type]
        key = field.metadata.get("key", field.name)  # what it is called in files
        if key in given:
            values[field.name] = _value(
                given[key],
                hints[field.name],
                f"{where}.{key}".lstrip("."),
                field.name,
            )
        elif field.default is field.default_factory is MISSING:
            raise ValueError(f"{name}: expected the key {key!r}")
    return cls(**values)


def _value(given: object, hint: Any, where: str, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:  # one kind of value, or none
        if given is None:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        if _depth(given) > DEEPEST:
            raise ValueError(f"{where}: nested deeper than {DEEPEST} levels")
        return given
    if is_dataclass(hint):
        return shaped(hint, given, where)  # type: ignore[arg-type]
    if origin in (list, tuple):
        if not isinstance(given, list):
            raise ValueError(f"{where}: expected a list, found {_short(given)}")
        return origin(
            _value(each, arguments[0], f"{where}[{at}]", name) for at, each in enumerate(given)
        )
    if origin in (dict, Mapping):
        if not isinstance(given, dict):
            raise ValueError(f"{where}: expected a JSON object, found {_short(given)}")
        return {
            key: _value(each, arguments[1], f"{where}.{key}", name) for key, each in given.items()
        }
    if hint is int:
        least = -LARGEST if name in SIGNED else 0
        if type(given) is int and least <= given < LARGEST:
            return given
        bounds = "below 2^63" if name in SIGNED else "of at least 0, below 2^63"
        raise ValueError(f"{where}: expected a whole number {bounds}, found {_short(given)}")
    if hint is float:
        if type(given) in (int, float) and abs(given) < LARGEST:  # type: ignore[arg-type]
            return given
        raise ValueError(f"{where}: expected a finite number, found {_short(given)}")
    if type(given) is not hint:
        kind = "text" if hint is str else "true or false"
        raise ValueError(f"{where}: expected {kind}, found {_short(given)}")
    return given


def _depth(value: object) -> int:
    """Levels of lists and objects; looked at no further than one beyond `DEEPEST`."""
    level, deep = [value], 0
    while deep <= DEEPEST and (inner := [each for each in level if isinstance(each, (list, dict))]):
        level = [
            item for each in inner for item in (each.values() if isinstance(each, dict) else each)
        ]
        deep += 1
    return deep


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of many digits"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
