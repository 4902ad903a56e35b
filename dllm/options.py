"""Checks that the frozen configurations of decoding and of speculation share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import inf
from numbers import Integral
from typing import Any, TypeVar

from dllm.errors import DllmError

Config = TypeVar("Config")


class ConfigError(DllmError):
    """An option that does not exist or whose value makes no sense."""


def check_numbers(
    config: object, numbers: Mapping[str, tuple[type[Any], float]], may_be_none: Sequence[str] = ()
) -> None:
    """ConfigError for an option that is not of its kind, below its least value, or a whole number
    of more than 63 bits.
    """
    for name, (kind, least) in numbers.items():
        value = getattr(config, name)
        if name in may_be_none and value is None:
            continue
        most = 2**63 if kind is Integral else inf
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < most:
            number = "a whole number" if kind is Integral else "a number"
            below = " and below 2**63" if isinstance(value, Integral) and int(value) >= most else ""
            none = ", or None" if name in may_be_none else ""
            raise ConfigError(
                f"{name}={value!r}: expected {number} of at least {least}{below}{none}"
            )


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
