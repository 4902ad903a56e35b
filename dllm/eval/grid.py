"""Settings that a run compares: the option values of each method, and all combinations of others.

A value "0.5/0.7/0.9" in a spec stands for one setting each; they are the points of one curve.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dllm.config import DecodeConfig
from dllm.errors import DllmError
from dllm.eval.records import EvalSetting
from dllm.presets import PRESETS, preset_options
from dllm.registry import split_spec

COUNTS = "1/2/4/8/16/64"
# Every option is swept to the end where all is committed at once, where it has one: else areas
# (LPA) do not compare.
QUICK = (
    f"quota:count={COUNTS}",
    f"quota:remasking=random,count={COUNTS}",
    "threshold:threshold=0.95/0.9/0.8/0.7/0.5/0.3/0.1/0",
)
RULES = (
    *QUICK,
    "factor:factor=0.5/1/1.5/2/3/5/1000",
    "frechet:delta=0.75/0.5/0.25/0.1/0",
    "localleap:relaxed=0.85/0.75/0.6/0.3/0",
    "entropy:threshold=0.05/0.1/0.5/1/2/100",
    "eb:bound=0.01/0.1/0.5/1/2/1000",
    "klass:kl_threshold=0.001/0.015/0.1/1",
    "hierarchical:low=0.7/0.4/0.2/0",
    "dus",
    "pc:steps=64/16/4/1",
    "saber:count=1/2/4/8/64",
)
GRIDS: dict[str, tuple[Sequence[str], Sequence[str]]] = {  # name -> samplers, presets
    "quick": (QUICK, ()),
    "rules": (RULES, ()),
    "presets": ((), tuple(PRESETS)),
}


def sweep(spec: str) -> list[tuple[str, str, str]]:
    """(method, option, spec) of every value that `spec` stands for, of one option at most."""
    name, options = split_spec(spec)
    swept = [key for key, value in options.items() if len(numbers(value)) > 1]
    if len(swept) > 1:
        raise DllmError(f"{spec!r}: expected one swept option, found {', '.join(swept)}")
    if not swept:
        return [(spec, "", spec)]
    option = swept[0]
    rest = {key: value for key, value in options.items() if key != option}
    method = written(name, rest)
    values = numbers(options[option])
    return [(method, f"{option}={v}", written(name, {**rest, option: v})) for v in values]


def numbers(value: str) -> list[str]:
    """The values of "0.5/0.7/0.9"; the value itself where it is no list of numbers (a path)."""
    pieces = value.split("/")
    try:
        [float(piece) for piece in pieces]
    except ValueError:
        return [value]
    return pieces


def written(name: str, options: Mapping[str, str]) -> str:
    """A spec of `name` with `options`."""
    return name + ":" * bool(options) + ",".join(f"{key}={value}" for key, value in options.items())


def grid(
    parts: Mapping[str, Sequence[Any]],
    *,
    presets: Sequence[str] = (),
    family: str = "llada",
) -> list[EvalSetting]:
    """One setting for every combination of `parts`: DecodeConfig options with the values to try,
    specs with swept options among them. The presets are tried with all parts but the sampler.
    """
    others = {name: values for name, values in parts.items() if name != "sampler"}
    ways = [
        (method, option, {"sampler": spec})
        for swept in parts.get("sampler", ())
        for method, option, spec in sweep(swept)
    ]
    ways += [(f"preset {name}", "", preset_options(name, family)) for name in presets]
    if not ways:
        raise DllmError("no settings: expected a sampler, a preset or a grid")
    return [
        named(method, option, options, dict(zip(others, values, strict=True)))
        for values in itertools.product(*others.values())
        for method, option, options in ways
    ]


def named(
    method: str, option: str, options: Mapping[str, Any], over: Mapping[str, Any]
) -> EvalSetting:
    """The setting of `options` with `over` put over them; what is not usual is in the name."""
    usual = DecodeConfig()
    said = [
        str(value) if isinstance(value, str) else f"{name}={value}"
        for name, value in over.items()
        if value != options.get(name, getattr(usual, name))
    ]
    return EvalSetting(" + ".join([method, *said]), option, {**options, **over})


def rules(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The samplers and the presets of named grids; DllmError for an unknown name."""
    samplers: list[str] = []
    presets: list[str] = []
    for name in names:
        if name not in GRIDS:
            raise DllmError(f"unknown grid {name!r}: expected one of {', '.join(GRIDS)}")
        more_samplers, more_presets = GRIDS[name]
        samplers += more_samplers
        presets += more_presets
    return samplers, presets
