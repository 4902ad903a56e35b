"""Checks that the frozen configurations of decoding and of speculation share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, TypeVar

from dllm.errors import DllmError

Config = TypeVar("Config")


class ConfigError(DllmError):
    """An option that does not exist or whose value makes no sense."""


class Number(NamedTuple):
    """What an option may be: a kind of number, and from where to where; a tensor can hold it."""

    kind: type[Any]
    least: float
    most: int = 2**63 - 1

    def holds(self, value: Any) -> bool:
        """Whether `value` is such a number."""
        if isinstance(value, bool) or not isinstance(value, self.kind):
            return False
        return bool(self.least <= value <= self.most)


def check_numbers(
    config: object, numbers: Mapping[str, Number], may_be_none: Sequence[str] = ()
) -> None:
    """ConfigError for an option that is not of its kind, or outside its bounds."""
    for name, may in numbers.items():
        value = getattr(config, name)
        if name in may_be_none and value is None:
            continue
        if not may.holds(value):
            number = "a whole number" if may.kind is Integral else "a number"
            above = isinstance(value, may.kind) and not isinstance(value, bool) and value > may.most
            most = f" and at most {may.most}" if above else ""
            none = ", or None" if name in may_be_none else ""
            raise ConfigError(
                f"{name}={value!r:.99}: expected {number} of at least {may.least}{most}{none}"
            )


def check_switches(config: object, *names: str) -> None:
    """ConfigError for an option that is neither True nor False."""
    for name in names:
        if not isinstance(value := getattr(config, name), bool):
            raise ConfigError(f"{name}={value!r:.99}: expected True or False")


def check_top_p(top_p: float) -> None:
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p!r}: expected a number above 0 and at most 1")


def checked_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings, of which a single one may be given by itself."""
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
        raise ConfigError(f"stop={stop!r}: expected non-empty strings (an empty one ends all)")
    return tuple(stop)


def replaced(config: Config, changes: Mapping[str, Any], also: Sequence[str] = ()) -> Config:
    """A copy with some options changed; ConfigError lists the known ones for an unknown.

    also: options that are known elsewhere, to be listed behind the fields.
    """
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; known: {', '.join([*known, *also])}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]
