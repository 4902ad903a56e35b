"""Components of one request, made from the config and bound to the model's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from dllm.cache.policy import CachePolicy
from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.canvas import Prefilled
from dllm.models.protocol import TokenIds
from dllm.samplers.protocols import Planner, Speculator, StopRule, Transform
from dllm.samplers.rule import CommitRule
from dllm.text.codec import TextCodec


@lru_cache(maxsize=2)  # a vocabulary of 126,464 takes a second to spell
def _pieces(codec: Any, size: int) -> tuple[str, ...]:
    """The text of every id on its own."""
    return tuple(codec.decode([token]) for token in range(size))


@dataclass(frozen=True)
class Words:
    """The vocabulary as a component that binds to it sees it: samplers.protocols.Vocabulary."""

    text: TextCodec | None
    spec: TokenIds

    @property
    def size(self) -> int:
        return self.spec.vocab_size

    @property
    def pieces(self) -> Sequence[str]:
        return _pieces(cast(Any, self._codec), self.spec.vocab_size)

    @property
    def mask_id(self) -> int:
        return self.spec.mask_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.spec.stop_ids

    @property
    def attention_block(self) -> int | None:
        return self.spec.block_length

    def encode(self, text: str) -> list[int]:
        return self._codec.encode(text)

    @property
    def _codec(self) -> TextCodec:
        if self.text is None:
            raise ConfigError(
                "a component that looks up text needs a tokenizer: load the engine with one"
            )
        return self.text


@dataclass(frozen=True, slots=True)
class DecodingComponents:
    """Components of a request; one that is left out is None."""

    rule: CommitRule
    planner: Planner
    policy: CachePolicy
    stop_rule: StopRule | None
    transform: Transform | None
    speculator: Speculator | None

    @classmethod
    def of(cls, config: DecodeConfig, text: TextCodec | None, spec: TokenIds) -> DecodingComponents:
        """Those that `config` names; ConfigError where two of them do not go together."""
        words = Words(text, spec)
        made = cls(
            rule=_bound(config, "sampler", words),
            planner=_bound(config, "planner", words),
            policy=_bound(config, "cache", spec),
            stop_rule=_bound(config, "stop_rule", words),
            transform=_bound(config, "transform", words),
            speculator=_bound(config, "speculator", words),
        )
        if config.stop and text is None:
            raise ConfigError("stop strings need a tokenizer: load the engine with one")
        if made.planner.narrows and int(getattr(made.rule, "spare_steps", 0)) > 0:
            raise ConfigError(
                f"{_named(config, 'sampler')} keeps windows open, but {_named(config, 'planner')} "
                "changes them behind the forward: choose another of the two"
            )
        if made.policy.uses_kv:
            made.check_cache(config)
        return made

    def check_cache(self, config: DecodeConfig) -> None:
        """Refuse what a cache that keeps keys and values, or narrows the view, cannot follow.

        config: what names the components.
        """
        cache = _named(config, "cache")
        if self.speculator is not None:
            raise ConfigError(
                f"{_named(config, 'speculator')} computes several canvases of a row, but {cache} "
                "keeps keys and values of one: use the cache 'none'"
            )
        if self.rule.remasks and self.policy.freezes:
            raise ConfigError(
                f"{_named(config, 'sampler')} masks committed positions again, but {cache} freezes "
                "them: choose a cache that does not, or a sampler that never remasks"
            )
        if self.policy.narrows:
            watchers = []
            if self.stop_rule is not None and self.stop_rule.whole_row:
                watchers.append("stop_rule")
            if self.planner.narrows:
                watchers.append("planner")
            for watcher in watchers:
                raise ConfigError(
                    f"{_named(config, watcher)} looks at all masked positions, but {cache} "
                    "predicts only some of them in a step: choose another of the two"
                )

    @property
    def needs(self) -> frozenset[str]:
        """Costly fields of `Candidates` that some component reads."""
        needs = self.rule.needs | self.planner.needs
        if self.stop_rule is not None:
            needs |= self.stop_rule.needs | {"best"}
        return needs | ({"best"} if "decoded" in needs else frozenset())


def encode_prefilled(
    prefilled: Sequence[str], text: TextCodec | None
) -> list[tuple[int, list[int]]]:
    """Texts "OFFSET:TEXT" as (offset, ids)."""
    if prefilled and text is None:
        raise ConfigError("prefilled text needs a tokenizer: load the engine with one")
    split = (item.partition(":") for item in prefilled)
    return [(int(offset), text.encode(words)) for offset, _, words in split if text is not None]


def check_prefilled(row: int, prefilled: Prefilled, max_new_tokens: int) -> None:
    """ConfigError where what stands in a row's answer does not fit, or leaves nothing to decode."""
    taken = set[int]()
    for offset, ids in prefilled:
        span = set(range(offset, offset + len(ids)))
        what = f"row {row}, prefilled at {offset}: its {len(ids)} tokens"
        if offset < 0 or offset + len(ids) > max_new_tokens:
            raise ConfigError(f"{what} reach out of {max_new_tokens=}")
        if span & taken:
            raise ConfigError(f"{what} overlap other prefilled ones")
        taken |= span
    if len(taken) == max_new_tokens:
        raise ConfigError(
            f"row {row}: what is prefilled leaves no masked position in {max_new_tokens=}"
        )


def _named(config: DecodeConfig, option: str) -> str:
    """A component as errors call it: by the spec that the user gave, or the object."""
    return f"{option.replace('_', ' ')} {getattr(config, option)!r}"


def _bound(config: DecodeConfig, option: str, facts: Words | TokenIds) -> Any:
    """The component of an option, told the facts it asks for: cache policies the model's, all
    others its words.
    """
    made = config.make(option)
    try:
        return made.bind(facts) if hasattr(made, "bind") else made
    except ValueError as error:
        raise ConfigError(f"{_named(config, option)}: {error}") from error
