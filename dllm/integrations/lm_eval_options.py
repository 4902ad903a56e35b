"""Options of this package from the arguments of lm-evaluation-harness. Needs no lm-eval."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.likelihood import DRAWS
from dllm.registry import split_spec

MODEL = ("pretrained", "model")  # two names of one thing
LOADING = ("dtype", "device", "revision")
OWN = ("preset", "mc_num", "check_greedy", "record", "batch_size", "max_batch_size")
DECODING = tuple(f.name for f in fields(DecodeConfig) if f.name != "history")  # nobody sees it
OPTIONAL = ("block_length", *(f.name for f in fields(DecodeConfig) if f.default is None))
BUDGET = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
GENERATION = ("until", "do_sample", "steps", *BUDGET)


@dataclass(frozen=True, slots=True)
class Options:
    """Arguments of the model class. model: a name for `dllm.load`, or an engine.

    loading: of `dllm.load`; decoding: of DecodeConfig, over `preset`. mc_num: masked copies that a
    likelihood is estimated from. check_greedy: also find out whether greedy decoding gives the
    answer. record: file for a JSON line per answer.
    """

    model: str | Engine
    loading: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    mc_num: int = DRAWS
    check_greedy: bool = False
    record: str | None = None
    batch_size: int = 1

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """The options in `given`; DllmError for an unknown one, or without a model."""
        known = (*MODEL, *LOADING, *OWN, *DECODING)
        refuse_unknown("model argument", given, known)
        models = [given[name] for name in MODEL if given.get(name) is not None]
        if len(models) != 1:
            raise DllmError(
                f"{len(models)} models: expected one, pretrained=tiny, a directory or a hub id"
            )
        return cls(
            model=models[0],
            loading={name: given[name] for name in LOADING if given.get(name) is not None},
            preset=given.get("preset"),
            decoding=decoding({name: given[name] for name in DECODING if name in given}),
            mc_num=whole("mc_num", given.get("mc_num", DRAWS)),
            check_greedy=bool(given.get("check_greedy", False)),
            record=given.get("record"),
            batch_size=batch_size(given.get("batch_size"), given.get("max_batch_size")),
        )


def decoding(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of DecodeConfig from values that lm-eval has parsed: "none" and block_length=0 are
    None, and a cache that is None is "none".
    """
    found = dict(given)
    for name, value in given.items():
        if name in OPTIONAL and isinstance(value, str) and value.lower() == "none":
            found[name] = None
    if found.get("block_length") == 0:
        found["block_length"] = None
    if "cache" in found and found["cache"] is None:
        found["cache"] = "none"
    return found


def generation(config: DecodeConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of `config` that a task's generation arguments ask for.

    until is added to the stop strings; max_gen_toks is max_new_tokens; do_sample=False is
    temperature 0; steps is the sampler's. All others are options of DecodeConfig; they stand in the
    task's file, so they name no code (dllm/registry.py). Raises DllmError.
    """
    refuse_unknown("generation argument", given, (*GENERATION, *DECODING))
    changes = decoding({name: given[name] for name in DECODING if name in given})
    DecodeConfig.from_file(changes)
    until = given.get("until") or ()
    stop = changes.get("stop", config.stop)
    texts = [*([stop] if isinstance(stop, str) else stop)]
    texts += [until] if isinstance(until, str) else until
    changes["stop"] = tuple(dict.fromkeys(filter(None, texts)))
    budget = [given[name] for name in BUDGET if given.get(name) is not None]
    if budget:
        changes["max_new_tokens"] = budget[0]
    if given.get("do_sample") is False:
        changes["temperature"] = 0.0
    if given.get("do_sample") and not changes.get("temperature", config.temperature):
        raise DllmError("do_sample=True at temperature 0: expected a temperature above 0")
    if given.get("steps") is not None:
        changes["sampler"] = with_steps(changes.get("sampler", config.sampler), given["steps"])
    return changes


def with_steps(sampler: Any, steps: int) -> str:
    """The spec `sampler` with its option `steps` set."""
    if not isinstance(sampler, str):
        raise DllmError(f"steps={steps}: expected a sampler given as text, found {sampler!r}")
    name, options = split_spec(sampler)
    options["steps"] = str(steps)
    return f"{name}:{','.join(f'{key}={value}' for key, value in options.items())}"


def batch_size(given: Any, most: Any) -> int:
    """Answers decoded together: `given` (None: 1), but not above `most` (None: any)."""
    size = whole("batch_size", 1 if given is None else given)
    return size if most is None else min(size, whole("max_batch_size", most))


def whole(name: str, value: Any) -> int:
    """`value` as a whole number of at least 1."""
    if str(value).isdecimal() and int(value) >= 1:
        return int(value)
    raise DllmError(f"{name}={value!r}: expected a whole number of at least 1")


def refuse_unknown(kind: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            listed = ", ".join(dict.fromkeys(known))
            raise DllmError(
                f"unknown {kind} {name!r} (quote a value that holds commas); known: {listed}"
            )


def stable_id(*parts: str | int) -> int:
    """63 bits that are a function of `parts` alone, on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
