"""DecodeConfig: the options of one generation, flat, frozen and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm.cache import POLICIES
from dllm.checks import (
    LARGEST,
    check_number,
    check_positive,
    check_switches,
    check_whole,
    checked_stop,
    replaced,
)
from dllm.checks import ConfigError as ConfigError
from dllm.registry import Registry, check_types
from dllm.samplers import PLANNERS, SAMPLERS, SPECULATORS, STOP_RULES, TRANSFORMS

if TYPE_CHECKING:  # they need torch, which `--help` does without
    from dllm.cache.policy import CachePolicy
    from dllm.samplers.protocols import Planner, Speculator, StopRule, Transform
    from dllm.samplers.rule import CommitRule

AUTO = "auto"  # as a sampler: what `dllm tune` has found for the model

COMPONENTS: dict[str, Registry[Any]] = {  # options that name a component
    "sampler": SAMPLERS,
    "planner": PLANNERS,
    "transform": TRANSFORMS,
    "stop_rule": STOP_RULES,
    "speculator": SPECULATORS,
    "cache": POLICIES,
}
MAY_BE_LEFT_OUT = ("transform", "stop_rule", "speculator")


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Options of one generation; components are objects or specs ("name:key=value").

    The command line has an option for every field, and takes its help from here (cli/fields.py).

    Decoding:
        sampler (SPEC): Which tokens a step commits; threshold:threshold=0.9, say.
        planner (SPEC): In which window it may commit them.
        transform (SPEC): A change of the logits.
        stop_rule (SPEC): What may end an answer early.
        speculator (SPEC): Guesses canvases ahead; the answer stays the same.
        cache (SPEC): Which positions are computed anew.
        cache_mib: MiB that the keys and values of a batch may take at most.
        buckets: Pad a cached forward's queries to 8, 16, 32, ..., so that compiled shapes repeat;
            spare places compute the stalest positions anew.
        max_new_tokens: Most tokens of an answer: masked positions behind the prompt.
        block_length: Tokens of a window; 0 (in Python None): the whole answer.
        temperature: 0 takes the most likely token.
        top_p: Draw from the fewest tokens with this probability.
        top_k: Draw from this many tokens; 0: from all.
        seed: Of all random draws.
        stop: Text that ends an answer; may be repeated.
        prefilled: OFFSET:TEXT that stands in the answer from the start, OFFSET tokens behind the
            prompt; may be repeated.
        cfg_scale: Classifier-free guidance, by a second forward; 0: off.
        history: Keep the tokens of every step in the JSON.
    """

    max_new_tokens: int = 128
    block_length: int | None = 32
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    prefilled: tuple[str, ...] = ()
    cfg_scale: float = 0.0
    history: bool = False
    sampler: str | CommitRule = "threshold"
    planner: str | Planner = "fixed"
    transform: str | Transform | None = None
    stop_rule: str | StopRule | None = None
    speculator: str | Speculator | None = None
    cache: str | CachePolicy = "none"
    cache_mib: float | None = None
    buckets: bool = False

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, 1, 2**20)
        check_whole("block_length", self.block_length, 1, none=True)
        check_number("temperature", self.temperature, 0, LARGEST)
        check_positive("top_p", self.top_p, 1)
        check_whole("top_k", self.top_k, 0)
        check_whole("seed", self.seed, 0)
        check_number("cfg_scale", self.cfg_scale, 0, LARGEST)
        check_number("cache_mib", self.cache_mib, 0, LARGEST, none=True)
        check_switches(self, "history", "buckets")
        object.__setattr__(self, "stop", checked_stop(self.stop))
        if isinstance(self.prefilled, str):
            object.__setattr__(self, "prefilled", (self.prefilled,))
        if not isinstance(self.prefilled, Sequence):
            raise ConfigError(f"prefilled={self.prefilled!r:.99}: expected texts like OFFSET:TEXT")
        for item in self.prefilled:
            offset, colon, text = item.partition(":") if isinstance(item, str) else ("", "", "")
            if not (offset.isascii() and offset.isdigit() and colon and text):
                raise ConfigError(
                    f"prefilled={item!r}: expected OFFSET:TEXT, a whole number and text"
                )
        object.__setattr__(self, "prefilled", tuple(self.prefilled))

    def replace(self, **changes: Any) -> DecodeConfig:
        """A copy with some options changed; ConfigError lists the known ones for an unknown."""
        return replaced(self, changes)

    def make(self, option: str) -> Any:
        """The component that an option gives as an object or describes as a spec, or None.

        SpecError or ConfigError names what is wrong with it.
        """
        made = value = getattr(self, option)
        registry = COMPONENTS[option]
        if value is None and option in MAY_BE_LEFT_OUT:
            return None
        if isinstance(value, str):
            # a planner works in blocks of block_length unless its spec says otherwise
            size = {"block_length": self.block_length} if option == "planner" else {}
            made = registry.build(value, **size)
        if isinstance(made, type) or not callable(getattr(made, registry.method, None)):
            raise ConfigError(
                f"{option}={value!r}: expected a spec, or an object with {registry.method}()"
            )
        check_types(made)
        return made

    def check_components(self) -> None:
        """Raise what is wrong with any component, before a model is loaded."""
        for option in COMPONENTS:
            if getattr(self, option) != AUTO:
                self.make(option)

    @classmethod
    def from_file(cls, options: Mapping[str, Any]) -> DecodeConfig:
        """The config of options that stand in a file, none of which may import code: see
        registry.py.

        The files that components name are not read yet. Raises ConfigError or SpecError.
        """
        config = cls().replace(**options)
        for option, registry in COMPONENTS.items():
            spec = getattr(config, option)
            if not isinstance(spec, str) and not (spec is None and option in MAY_BE_LEFT_OUT):
                raise ConfigError(f"{option}={spec!r}: expected a spec, name:key=value")
            if isinstance(spec, str) and (option, spec) != ("sampler", AUTO):
                registry.resolve(spec, imports=False)
        return config
