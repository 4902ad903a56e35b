"""Checks of options: every configuration and every component uses these, with one form of message.

Each raises ConfigError, "name=value: expected ...", where a value is none that the option may have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import inf
from numbers import Integral, Real
from typing import Any, TypeVar

from dllm.errors import DllmError

Config = TypeVar("Config")
LARGEST = 2**63 - 1  # whole number that a tensor can hold


class ConfigError(DllmError):
    """An option that does not exist or whose value makes no sense."""


def refused(name: str, value: object, expected: str) -> ConfigError:
    """The error to raise; a long value is cut."""
    return ConfigError(f"{name}={value!r:.99}: expected {expected}")


def check_whole(
    name: str, value: object, least: int, most: int = LARGEST, *, none: bool = False
) -> None:
    """A whole number from `least` to `most`; None too if `none`."""
    _check_bounds(name, value, (Integral, "a whole number"), least, most, none)


def check_number(
    name: str,
    value: object,
    least: float,
    most: float = inf,
    *,
    kind: str = "a number",
    none: bool = False,
) -> None:
    """A real number from `least` to `most`; None too if `none`. kind: its name in the message."""
    _check_bounds(name, value, (Real, kind), least, most, none)


def _check_bounds(
    name: str, value: Any, kind: tuple[type[Any], str], least: float, most: float, none: bool
) -> None:
    if value is None and none:
        return
    good = _is(value, kind[0])
    if not (good and least <= value <= most):  # NaN is in no range
        above = f" and at most {most}" if good and value > most else ""
        raise refused(name, value, f"{kind[1]} of at least {least}{above}{', or none' * none}")


def _is(value: object, kind: type[Any]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # True is an int to Python


def check_positive(name: str, value: Any, most: float = inf) -> None:
    """A number above 0 and at most `most`."""
    if not (_is(value, Real) and 0 < value <= most):
        raise refused(
            name, value, "a number above 0" + (f" and at most {most}" if most < inf else "")
        )


def check_share(name: str, value: Any, kind: str = "a number") -> None:
    """A number from 0 to 1. kind: its name in the message."""
    if not (_is(value, Real) and 0 <= value <= 1):
        raise refused(name, value, f"{kind} from 0 to 1")


def check_probability(name: str, value: Any) -> None:
    """A number from 0 to 1, called a probability."""
    check_share(name, value, "a probability")


def check_choice(name: str, value: object, *choices: object) -> None:
    """One of `choices`."""
    if value not in choices:
        raise refused(name, value, f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}")


def check_switches(config: object, *names: str) -> None:
    """True or False in each of these fields of `config`."""
    for name in names:
        if not isinstance(value := getattr(config, name), bool):
            raise refused(name, value, "True or False")


def checked_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings, of which a single one may be given by itself."""
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
        raise refused("stop", stop, "non-empty strings (an empty one ends all)")
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
