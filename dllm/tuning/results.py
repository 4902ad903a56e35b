"""Results of `dllm tune`: of each setting, their frontier, the chosen one.

Numbers only; nothing is decoded here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from dllm.config import ConfigError, DecodeConfig
from dllm.errors import DllmError
from dllm.files import write_json
from dllm.intervals import paired, wilson
from dllm.presets import FORMAT


@dataclass(frozen=True)
class TunedSetting:
    """A choice of DecodeConfig options, all of them JSON values, and its name for readers."""

    name: str
    options: Mapping[str, Any] = field(hash=False)

    @cached_property
    def key(self) -> str:
        """The options as canonical JSON."""
        try:
            return json.dumps(dict(self.options), sort_keys=True)
        except TypeError as error:
            raise DllmError(f"setting {self.name!r}: expected options as JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class TuningResult:
    """Result of one setting on all prompts.

    count: prompts; agree: those answered with the reference's token ids. lost, gained: prompts that
    the reference alone, or the setting alone, got right; without a user's own score the reference
    is right by definition. forwards: mean of a prompt; canvases: mean of those they computed, more
    only where a speculator guesses ahead; tokens_per_forward: all answer tokens by all forwards.
    """

    setting: TunedSetting
    count: int
    agree: int
    lost: int
    gained: int
    forwards: float
    tokens_per_forward: float
    scored: bool = False
    canvases: float = 0.0

    @property
    def agreement(self) -> float:
        return self.agree / self.count

    @property
    def loss(self) -> float:
        """Share of prompts lost: 1 - agreement, or the reference's score minus the setting's."""
        return (self.lost - self.gained) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the loss: Wilson's; with a score Agresti and Min's for matched pairs."""
        if self.scored:
            return paired(self.lost, self.gained, self.count)
        return wilson(self.lost, self.count)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.setting.name,
            "options": dict(self.setting.options),
            "forwards": self.forwards,
            "canvases": self.canvases,
            "tokens_per_forward": self.tokens_per_forward,
            "agreement": self.agreement,
            "loss": self.loss,
            "loss_interval": list(self.interval),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Report of `tune`. results: all settings, fewest forwards first; reference: one token per
    forward, not among them. skipped: settings that this model or its tokenizer cannot run, and why.
    rows, reused: canvases that forwards asked for in this run, and those that were remembered.
    """

    reference: TuningResult
    results: tuple[TuningResult, ...]
    max_loss: float
    config: DecodeConfig = field(default_factory=DecodeConfig)
    model: str = ""
    skipped: tuple[tuple[TunedSetting, str], ...] = ()
    rows: int = 0
    reused: int = 0

    @property
    def chosen(self) -> TuningResult:
        """Fewest forwards with a loss of at most `max_loss`, then the least loss; if no setting
        has that: the reference.
        """
        good = [t for t in (*self.results, self.reference) if t.loss <= self.max_loss]
        return min(good, key=by_forwards)

    @property
    def falls_back(self) -> bool:
        """Whether no setting is better than one token per forward at this `max_loss`."""
        return self.chosen is self.reference

    @property
    def frontier(self) -> tuple[TuningResult, ...]:
        """Trials, the reference among them, that no other beats in both forwards and loss."""
        found: list[TuningResult] = []
        for result in sorted((*self.results, self.reference), key=by_forwards):
            if not found or result.loss < found[-1].loss:
                found.append(result)
        return tuple(found)

    def to_preset(self) -> dict[str, Any]:
        """The content of a preset file: the chosen options, and what was measured."""
        return {
            "format": FORMAT,
            "options": preset_options(self.config.replace(**self.chosen.setting.options)),
            "model": self.model,
            "measured": {
                **self.chosen.as_dict(),
                "prompts": self.chosen.count,
                "max_loss": self.max_loss,
                "reference_forwards": self.reference.forwards,
                "falls_back": self.falls_back,
                "frontier": [result.as_dict() for result in self.frontier],
            },
        }

    def write(self, path: Path) -> None:
        """Write the preset file; an old one is replaced at once or not at all."""
        write_json(path, self.to_preset())


def by_forwards(result: TuningResult) -> tuple[float, float, int]:
    """Sort key: fewest forwards, then the least loss, then the most answers in agreement."""
    return result.forwards, result.loss, -result.agree


def preset_options(config: DecodeConfig) -> dict[str, Any]:
    """The options that make `config`, for a file: the sampler, the block length, and whatever
    differs from its default. ConfigError where a component is an object and not a spec.
    """
    found = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "history"}
    kept = ("sampler", "block_length")
    default = DecodeConfig()
    found = {k: v for k, v in found.items() if k in kept or v != getattr(default, k)}
    for name, value in found.items():
        if not isinstance(value, (str, int, float, tuple, type(None))):
            raise ConfigError(f"{name}={value!r}: expected a spec, which a preset file can hold")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
