"""Search for the rule and options that suit a user's own model and prompts: measured, not guessed.

Every setting of a grid decodes all prompts; its answers are compared with those of one token per
forward. Knows configs, outputs and a log file; nothing here depends on a method.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

from dllm.config import ConfigError, DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.jsonlog import JsonLog
from dllm.models.fingerprint import fingerprint
from dllm.models.protocol import Model
from dllm.output import Finished, Output, Timings
from dllm.text.prompts import Prompt
from dllm.tuning.memo import MEMO_BYTES, MemoModel
from dllm.tuning.results import Report, TunedSetting, TuningResult, by_forwards, preset_options

__all__ = ["GRID", "REFERENCE", "MemoModel", "Report", "TunedSetting", "TuningResult", "tune"]

LOG_FORMAT = "dllm-tune-1"
LOGGED = tuple(f.name for f in fields(Output) if f.name not in ("timings", "history"))


def _setting(sampler: str, **more: str | None) -> TunedSetting:
    others = ["whole canvas" if each is None else each for each in more.values()]
    return TunedSetting(" + ".join([*others, sampler]), {"sampler": sampler, **more})


def _sweep(rule: str, option: str, *values: float) -> list[TunedSetting]:
    return [_setting(f"{rule}:{option}={value}") for value in values]


ALONE = {"planner": "fixed", "cache": "none", "transform": None, "stop_rule": None}
REFERENCE = TunedSetting(
    "quota, one token per forward", {"sampler": "quota", "speculator": None, **ALONE}
)
ROBUST = ("threshold:threshold=0.9", "factor:factor=1.0", "frechet:delta=0.25")
GRID: tuple[TunedSetting, ...] = (
    *_sweep("threshold", "threshold", 0.95, 0.9, 0.85, 0.8, 0.7, 0.6),
    *_sweep("factor", "factor", 0.5, 0.75, 1.0, 1.25, 1.5),
    *_sweep("frechet", "delta", 0.5, 0.25, 0.1, 0.0),
    *_sweep("localleap", "relaxed", 0.85, 0.75, 0.6),
    *_sweep("entropy", "threshold", 0.05, 0.1, 0.3, 0.5),
    *_sweep("eb", "bound", 0.01, 0.05, 0.1, 0.3),
    _setting("hierarchical"),
    _setting("klass"),
    _setting(ROBUST[0], transform="credit"),
    _setting(ROBUST[0], planner="adablock"),
    _setting(ROBUST[2], planner="adablock"),
    *(_setting(rule, block_length=None) for rule in ROBUST),
    *(_setting(rule, speculator="freedave:length=4") for rule in ROBUST),
    _setting(ROBUST[0], block_length=None, speculator="freedave:length=4"),
)


def tune(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    config: DecodeConfig | None = None,
    grid: Sequence[TunedSetting] = GRID,
    max_loss: float = 0.005,
    batch_size: int = 16,
    log: Path | None = None,
    memo_bytes: int = MEMO_BYTES,
    score: Callable[[int, Output], bool] | None = None,
    chat: bool | Literal["auto"] = "auto",
    model: str = "",
    on_progress: Callable[[int, int, TunedSetting], None] | None = None,
) -> Report:
    """Decode `prompts` with every setting of `grid` and with one token per forward; compare.

    config: what all settings start from; the reference is uncached and has its own components.
    score: whether an answer (prompt index, Output) is right, in place of agreement with the
    reference. log: JSON lines of all answers; a run continues from it, also with another grid,
    score or max_loss. on_progress: called with answers done, answers in all and the setting at
    work. model: the name it was loaded by, for log and preset.

    Ctrl-C raises KeyboardInterrupt once what is finished is in the log. Raises DllmError for a
    temperature above 0, options that are wrong, prompts that do not fit, or a log made with others.
    """
    config = config or DecodeConfig()
    if not 0 <= max_loss <= 1:
        raise DllmError(f"max_loss={max_loss}: expected a share of the prompts, from 0 to 1")
    if batch_size < 1 or not prompts:
        raise DllmError(f"{batch_size=}, {len(prompts)} prompts: expected at least 1 of each")
    ids = [engine.encode(prompt, chat) for prompt in prompts]
    configs, skipped = _configs(engine, ids, config, (REFERENCE, *grid))
    memo = MemoModel(engine.model, memo_bytes)
    decoder = Engine(memo, engine.text)
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    total, finished = len(configs) * len(ids), 0
    with Log(log, _fingerprint(engine.model, model, ids, config)) as done:
        for at in range(0, len(ids), batch_size):
            batch = by_length[at : at + batch_size]
            for setting, how in configs:
                missing = [i for i in batch if (setting.key, i) not in done.outputs]
                done.add(setting, _decode(decoder, ids, missing, how))
                if any((setting.key, i) not in done.outputs for i in batch):
                    raise KeyboardInterrupt
                finished += len(batch)
                if on_progress is not None:
                    on_progress(finished, total, setting)
    answers = {s.key: [done.outputs[s.key, i] for i in range(len(ids))] for s, _ in configs}
    reference, *results = (
        _result(setting, answers[setting.key], answers[REFERENCE.key], score)
        for setting, _ in configs
    )
    ordered = tuple(sorted(results, key=by_forwards))
    return Report(
        reference, ordered, max_loss, config, model, tuple(skipped), memo.rows, memo.reused
    )


def _configs(
    engine: Engine, ids: list[list[int]], base: DecodeConfig, settings: Sequence[TunedSetting]
) -> tuple[list[tuple[TunedSetting, DecodeConfig]], list[tuple[TunedSetting, str]]]:
    """Each setting once, with its config; and those that cannot run here, with the reason."""
    found: dict[str, tuple[TunedSetting, DecodeConfig]] = {}
    skipped = []
    longest = max(ids, key=len)
    for setting in settings:
        config = base.replace(**setting.options)
        if config.temperature > 0:
            raise ConfigError(
                f"temperature={config.temperature}: expected 0, as drawn answers differ by chance"
            )
        preset_options(config)
        try:  # begins a request, runs no forward
            next(engine.stream_steps(ids if setting is REFERENCE else [longest], config))
        except ConfigError as error:
            if setting is REFERENCE:
                raise
            skipped.append((setting, str(error)))
            continue
        found.setdefault(setting.key, (setting, config))
    return list(found.values()), skipped


def _decode(
    engine: Engine, ids: list[list[int]], which: list[int], config: DecodeConfig
) -> dict[int, Output]:
    """Outputs of the prompts `which`; those that Ctrl-C cut short are left out."""
    # their own numbers, so that a draw of a rule does not depend on the batch
    events = engine.stream_steps([ids[i] for i in which], config, row_ids=which)
    ends = {which[event.row]: event.output for event in events if isinstance(event, Finished)}
    return {i: output for i, output in ends.items() if output.finish_reason != "interrupted"}


def _result(
    setting: TunedSetting,
    outputs: list[Output],
    reference: list[Output],
    score: Callable[[int, Output], bool] | None,
) -> TuningResult:
    same = [a.token_ids == b.token_ids for a, b in zip(outputs, reference)]
    right, expected = same, [True] * len(same)
    if score is not None:
        right = [bool(score(i, output)) for i, output in enumerate(outputs)]
        expected = [bool(score(i, output)) for i, output in enumerate(reference)]
    nfe = sum(output.nfe for output in outputs)
    return TuningResult(
        setting=setting,
        count=len(outputs),
        agree=sum(same),
        lost=sum(old and not new for old, new in zip(expected, right)),
        gained=sum(new and not old for old, new in zip(expected, right)),
        forwards=nfe / len(outputs),
        tokens_per_forward=sum(output.answer_tokens for output in outputs) / max(nfe, 1),
        scored=score is not None,
        canvases=sum(output.canvases for output in outputs) / len(outputs),
    )


class Log:
    """Answers by (setting key, prompt index), and the file they are kept in, if any.

    Its header says what the answers belong to; FileError names what is different.
    """

    def __init__(self, path: Path | None, header: Mapping[str, str]) -> None:
        self.outputs: dict[tuple[str, int], Output] = {}
        self.file: JsonLog | None = None
        if path is None:
            return
        self.file = JsonLog(path, {"format": LOG_FORMAT, **header})
        for number, record in enumerate(self.file, 2):
            try:
                answer = {name: record[name] for name in LOGGED}
                key = TunedSetting("", record["setting"]).key, int(record["prompt"])
            except (ValueError, KeyError, TypeError) as error:
                self.file.close()
                raise DllmError(f"{path}, line {number}: expected a log of dllm tune") from error
            self.outputs[key] = Output(**answer, timings=Timings(0.0, 0.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, setting: TunedSetting, outputs: Mapping[int, Output]) -> None:
        """Keep the outputs of a setting by prompt index; they are in the file on return."""
        records = []
        for i, output in outputs.items():
            self.outputs[setting.key, i] = output
            record = {name: getattr(output, name) for name in LOGGED}
            records.append({"setting": dict(setting.options), "prompt": i, **record})
        if self.file is not None and records:
            self.file.append(*records)


def _fingerprint(
    model: Model, name: str, ids: list[list[int]], config: DecodeConfig
) -> dict[str, str]:
    """Settings that answers depend on, by the words a user has for them."""
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "history"}
    return {
        "set of prompts": _digest(ids),
        "model": fingerprint(model, name),
        "base config": _digest(options),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=repr).encode()).hexdigest()
