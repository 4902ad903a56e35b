"""DecodeConfig: everything that can be chosen about one generation, flat, frozen and checked."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Any, cast

from dllm.cache import POLICIES
from dllm.cache.policy import CachePolicy
from dllm.errors import DllmError
from dllm.samplers import PLANNERS, SAMPLERS
from dllm.samplers.planner import Planner
from dllm.samplers.rule import Rule
from dllm.specs import build_part

# Options that are numbers: their kind and least value.
NUMBERS: dict[str, tuple[type[Any], float]] = {
    "max_new_tokens": (Integral, 1),
    "block_length": (Integral, 1),
    "temperature": (Real, 0),
    "top_p": (Real, 0),
    "top_k": (Integral, 0),
    "seed": (Integral, -inf),
    "cfg_scale": (Real, 0),
}


class ConfigError(DllmError):
    """An option that does not exist or whose value makes no sense."""


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How to decode. Parts are given as objects or as specs ("name:key=value").

    max_new_tokens: holes behind every prompt, in tokens. block_length: tokens of a window (None:
    all). temperature 0 takes the argmax; top_p and top_k (0: off) truncate the law that tokens are
    drawn from and that Dream takes its scores from. seed: of the counter-based noise. stop: strings
    that end a text. cfg_scale: classifier-free guidance, which costs a second forward a step (0:
    off). history: keep the commits of every step in the Output.
    """

    max_new_tokens: int = 128
    block_length: int | None = 32
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    cfg_scale: float = 0.0
    history: bool = False
    sampler: str | Rule = "threshold"
    planner: str | Planner = "fixed"
    cache: str | CachePolicy = "none"

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, (kind, least) in NUMBERS.items():
            value = getattr(self, name)
            if name == "block_length" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < inf:
                number = "a whole number" if kind is Integral else "a number"
                above = "" if least == -inf else f" of at least {least}"
                none = ", or None" if name == "block_length" else ""
                raise ConfigError(f"{name}={value!r}: expected {number}{above}{none}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p!r}: expected a number above 0 and at most 1")
        stop = self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
            raise ConfigError(f"stop={stop!r}: expected non-empty strings (an empty one ends all)")
        object.__setattr__(self, "stop", tuple(stop))

    def replace(self, **changes: Any) -> DecodeConfig:
        """A copy with some options changed; ConfigError lists the known ones for an unknown."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}; known: {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def make_sampler(self) -> Rule:
        """The commit rule; SpecError names what is wrong with a spec."""
        return cast(Rule, self._part("sampler", "select", SAMPLERS, "dllm.samplers"))

    def make_planner(self) -> Planner:
        """The planner, given `block_length` unless its spec says otherwise."""
        size = {"block_length": self.block_length}
        part = self._part("planner", "windows", PLANNERS, "dllm.planners", **size)
        return cast(Planner, part)

    def make_cache(self) -> CachePolicy:
        """A cache policy for one request; one given as an object is copied, as it keeps state."""
        part = self._part("cache", "plan", POLICIES, "dllm.cache")
        return cast(CachePolicy, copy.deepcopy(part))

    def _part(
        self, option: str, method: str, table: Mapping[str, str], group: str, **defaults: Any
    ) -> Any:
        """The part that `option` gives as an object or describes as a spec."""
        given = getattr(self, option)
        part = build_part(given, table, group, **defaults) if isinstance(given, str) else given
        if isinstance(part, type) or not callable(getattr(part, method, None)):
            raise ConfigError(f"{option}={given!r}: expected a spec, or an object with {method}()")
        return part
