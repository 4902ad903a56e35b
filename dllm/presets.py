"""Named presets: the components and defaults of each paper, for LLaDA and Dream; and preset files.

A preset is a dictionary of DecodeConfig options. `dllm tune` writes files of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllm.config import AUTO, ConfigError, DecodeConfig
from dllm.errors import DllmError
from dllm.files import FileError, read_json

FORMAT = "dllm-preset-1"
TUNED = "preset.json"  # beside a checkpoint: what sampler="auto" stands for


@dataclass(frozen=True, slots=True)
class Preset:
    """A method as its paper runs it; `dream` holds what differs on Dream."""

    paper: str
    options: Mapping[str, Any]
    dream: Mapping[str, Any] = field(default_factory=dict)

    def for_family(self, family: str) -> dict[str, Any]:
        """The options on a model of `family` (ModelSpec.family); LLaDA's where none are its own."""
        return {**self.options, **(self.dream if family == "dream" else {})}


WHOLE = {"block_length": None}
QUOTA = {"sampler": "quota"}  # one token per forward
ADABLOCK = {"planner": "adablock:threshold=0.3,exact=true", "sampler": "threshold:threshold=0.9"}

PRESETS: dict[str, Preset] = {
    "llada": Preset("2502.09992, one token per forward", QUOTA),
    "dream": Preset("2508.15487, one token per forward", {"sampler": "dream:alg=entropy", **WHOLE}),
    "fast-dllm": Preset("2505.22618, threshold", {"sampler": "threshold:threshold=0.9"}),
    "fast-dllm-factor": Preset("2505.22618, factor", {"sampler": "factor:factor=1.0"}),
    "fast-dllm-factor-copied": Preset(
        "2505.22618, factor as widely copied code has it",
        {"sampler": "factor:factor=1.0,compat=true"},
    ),
    "fast-dllm-cache": Preset(
        "2505.22618, threshold and dual cache",
        {"sampler": "threshold:threshold=0.9", "cache": "dual"},
    ),
    "fast-dllm-v2": Preset(  # sub-blocks of the model's blocks of 32
        "2509.26328", {"sampler": "threshold:threshold=0.9", "block_length": 8, "cache": "block"}
    ),
    "frechet": Preset("2606.02955", {"sampler": "frechet:delta=0.25"}),
    "localleap": Preset(
        "2510.07081",
        {"sampler": "localleap:threshold=0.9,relaxed=0.75,radius=4"},
        {"sampler": "localleap:threshold=0.9,relaxed=0.8,radius=4"},
    ),
    "adablock": Preset("2509.26432", ADABLOCK, {"planner": "adablock:threshold=0.5"}),
    "prophet": Preset(
        "2508.19982, the release's suffix constraint",
        {
            **QUOTA,
            "max_new_tokens": 256,
            "prefilled": ("200:The answer is",),
            "stop_rule": "prophet:marker=answer is,skip=1,length=5",
        },
    ),
    "dparallel": Preset(
        "2509.26488", {"sampler": "entropy:threshold=0.5"}, {"sampler": "entropy:threshold=0.45"}
    ),
    "eb": Preset("2505.24857", {"sampler": "eb:bound=0.1"}),
    "klass": Preset(
        "2511.05664",
        {"sampler": "klass:threshold=0.6,kl_threshold=0.015", "block_length": 64},
        {"sampler": "klass:threshold=0.9,kl_threshold=0.001", **WHOLE},
    ),
    "hierarchical": Preset("2510.08666", {"sampler": "hierarchical:low=0.4,high=0.9"}),
    "credit": Preset("2510.06133", {"sampler": "threshold:threshold=0.9", "transform": "credit"}),
    "dus": Preset("2506.19037", {"sampler": "dus"}),
    "slowfast": Preset(
        "2506.10848",
        {"planner": "slowfast:block_length=none", "sampler": "threshold:threshold=0.9"},
    ),
    "pc": Preset("2508.13021", {"sampler": "pc:decay=0.25,clip=10", **WHOLE}),
    "fhs": Preset("2409.02908", {"sampler": "fhs", "temperature": 1.0, **WHOLE}),
    "saber": Preset("2510.18165", {"sampler": "saber", **WHOLE}),
    "d2f": Preset(
        "2508.09192, its decoding alone", {"planner": "multi", "sampler": "threshold:threshold=0.9"}
    ),
    "d3llm": Preset(
        "2601.07568, its decoding alone",
        {"planner": "multi", "sampler": "entropy:threshold=0.5"},
        {"sampler": "entropy:threshold=0.4"},
    ),
    "freedave": Preset(
        "2510.00294",
        {**QUOTA, "speculator": "freedave:length=4"},
        {"speculator": "freedave:length=8"},
    ),
    "dkv-cache": Preset(
        "2505.15781, the released loops",
        {**QUOTA, "cache": "delayed:refresh=8"},
        {"cache": "delayed:refresh=4,first=1"},
    ),
    "dllm-cache": Preset("2506.06295", {**QUOTA, "cache": "interval:prompt=50,answer=7"}),
    "elastic-cache": Preset(
        "2510.14973",
        {"sampler": "threshold:threshold=0.9", "cache": "elastic:window=32,gamma=0.9", **WHOLE},
    ),
    "elastic-cache-released": Preset(
        "2510.14973, its code: every layer tests what any layer tracks",
        {
            "sampler": "threshold:threshold=0.9",
            "cache": "elastic:window=32,gamma=0.9,union=true",
            **WHOLE,
        },
    ),
    "sparse-dllm": Preset("2508.02558", {**QUOTA, "cache": "sparse:keep=0.5"}),
    "dinfer-vicinity": Preset(
        "2510.08666",
        {"sampler": "threshold:threshold=0.9", "cache": "vicinity", "block_length": 64},
    ),
    "ssd": Preset("2510.04147", {**QUOTA, "speculator": "ssd:length=4"}),
}


def preset_options(name: str, family: str = "llada") -> dict[str, Any]:
    """The DecodeConfig options of a named preset, or of a preset file (a path ending in .json).

    Raises ConfigError for an unknown name, a file that is no preset, or an option that is unknown.
    """
    if name.endswith(".json"):
        return read_preset(Path(name))
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}, or a .json file"
        )
    return PRESETS[name].for_family(family)


def read_preset(path: Path) -> dict[str, Any]:
    """The options of a preset file; see `preset_options`. They import nothing: see specs.py."""
    try:
        content = read_json(path)
    except FileError as error:
        raise ConfigError(f"cannot read the preset: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f'{str(path)!r} is no preset: expected "format": "{FORMAT}"')
    options = content.get("options")
    if not isinstance(options, dict):
        raise ConfigError(f"{str(path)!r} is no preset: it has no options")
    try:
        config = DecodeConfig.from_file(options)
    except DllmError as error:
        raise ConfigError(f"preset {str(path)!r}: {error}") from error
    if config.sampler == AUTO:
        raise ConfigError(f"preset {str(path)!r}: sampler={AUTO!r} stands for a preset itself")
    return options
