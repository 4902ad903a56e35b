"""Everything that can be chosen about one speculative generation, flat, frozen and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from dllm.options import ConfigError, check_numbers, check_top_p, checked_stop, replaced

if TYPE_CHECKING:  # they need torch, which `--help` does without
    from dllm.verify.loop import Parts

NUMBERS: dict[str, tuple[type[Any], float]] = {
    "max_new_tokens": (Integral, 1),
    "temperature": (Real, 0),
    "top_p": (Real, 0),
    "top_k": (Integral, 0),
    "seed": (Integral, 0),
    "reuse": (Integral, 0),
}

PARTS = ("search", "accept", "control", "sources", "reuse", "lossless")


@dataclass(frozen=True, slots=True)
class SpecConfig:
    """How to draft, accept and stop. Parts are specs ("name:key=value").

    max_new_tokens, temperature (0: greedy), top_p, top_k (0: off), seed, stop: of the target's own
    decoding, which speculation does not change.  search: lattice to tree.  accept: the acceptance
    rule ("auto": the search's usual one).  control: how much to draft and to verify.  sources:
    model-free drafts, in addition to the drafter's.  reuse: the rest of a draft is used again while
    it has that many columns (0: never).  lossless: False lets a rule change the target's output.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    search: str = "product"
    accept: str = "auto"
    control: str = "cost"
    sources: tuple[str, ...] = ("ngram", "suffix")
    reuse: int = 0
    lossless: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, NUMBERS)
        check_top_p(self.top_p)
        object.__setattr__(self, "stop", checked_stop(self.stop))
        for name in ("search", "accept", "control"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}: expected a spec, name:key=value"
                )
        if isinstance(self.sources, str):
            object.__setattr__(self, "sources", (self.sources,))
        if not isinstance(self.sources, Sequence):
            raise ConfigError(f"sources={self.sources!r}: expected specs, name:key=value")
        object.__setattr__(self, "sources", tuple(self.sources))

    def replace(self, **changes: Any) -> SpecConfig:
        """A copy with some options changed; ConfigError lists the known ones for an unknown."""
        return replaced(self, changes)

    def parts(self) -> Parts:
        """The parts that the specs name; SpecError says what is wrong with one."""
        from dllm.verify.loop import Parts
        from dllm.verify.parts import control_of, rule_of, search_of, sources_of

        search = search_of(self.search)
        rule = rule_of(self.accept, search, temperature=self.temperature, lossless=self.lossless)
        control, sources = control_of(self.control), sources_of(self.sources)
        return Parts(search, rule, control, sources, self.reuse)


class PartsCache:
    """The parts of configurations, each made once: a datastore stays open, and a controller and the
    sources' rates go on learning how these parts do. Seeds and lengths make no difference.
    """

    def __init__(self) -> None:
        self._parts: dict[SpecConfig, Parts] = {}

    def of(self, config: SpecConfig) -> Parts:
        """The parts of a configuration; SpecError says what is wrong with one."""
        # whether the temperature is 0 decides between greedy and drawing rules
        chosen = {name: getattr(config, name) for name in PARTS}
        key = SpecConfig(temperature=float(config.temperature > 0), **chosen)
        if key not in self._parts:
            self._parts[key] = config.parts()
        return self._parts[key]
