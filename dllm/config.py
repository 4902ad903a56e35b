"""DecodeConfig: everything that can be chosen about one generation, flat, frozen and checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from dllm.cache import POLICIES
from dllm.cache.policy import CachePolicy
from dllm.errors import DllmError
from dllm.samplers import PLANNERS, SAMPLERS
from dllm.samplers.planner import Planner
from dllm.samplers.rule import Rule
from dllm.specs import build_part


class ConfigError(DllmError):
    """An option that does not exist or whose value makes no sense."""


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How to decode. Parts are given as objects or as specs ("name:key=value").

    max_new_tokens: holes behind every prompt, in tokens. block_length: tokens of a window (None:
    all). temperature 0 takes the argmax; top_p and top_k (0: off) need a temperature. seed: of the
    counter-based noise. stop: strings that end a text. cfg_scale: classifier-free guidance, which
    costs a second forward a step (0: off). history: keep the commits of every step in the Output.
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
        object.__setattr__(self, "stop", tuple(self.stop))
        at_least = {"max_new_tokens": 1, "temperature": 0, "top_k": 0, "cfg_scale": 0}
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected at least {least}")
        if self.block_length is not None and self.block_length < 1:
            raise ConfigError(f"block_length={self.block_length}: expected at least 1, or None")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p!r}: expected a number above 0 and at most 1")
        if not all(self.stop):
            raise ConfigError("stop: an empty string would end every text at once")

    def replace(self, **changes: Any) -> DecodeConfig:
        """A copy with some options changed; ConfigError lists the known ones for an unknown."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"unknown option {name!r}; known: {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def make_sampler(self) -> Rule:
        """The commit rule; SpecError names what is wrong with a spec."""
        if not isinstance(self.sampler, str):
            return self.sampler
        return cast(Rule, build_part(self.sampler, SAMPLERS, "dllm.samplers"))

    def make_planner(self) -> Planner:
        """The planner, given `block_length` unless its spec says otherwise."""
        if not isinstance(self.planner, str):
            return self.planner
        part = build_part(self.planner, PLANNERS, "dllm.planners", block_length=self.block_length)
        return cast(Planner, part)

    def make_cache(self) -> CachePolicy:
        """A cache policy for one request."""
        if not isinstance(self.cache, str):
            return self.cache
        return cast(CachePolicy, build_part(self.cache, POLICIES, "dllm.cache"))
