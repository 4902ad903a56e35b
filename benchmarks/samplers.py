"""Every commit rule on the bundled model: accuracy against forwards, at each value of its option.

Held-out prompts of all task families, seed 11, none of them among those watched during training
(single calculations have no others); 128 masked positions behind each, in blocks of 32 and as one
window. The papers' defaults are marked; the floor is EGP, which knows what one-token decoding would
answer. Logits are remembered per canvas (dllm.tuning.memo): that changes the time, not the counts.
Run: python -m benchmarks.samplers [--count 19], then python -m benchmarks.samplers_report; with
--missing, only what the committed result does not have yet for the same prompts and weights,
written after every task.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import dllm
from benchmarks.common import arguments, by_length, is_right, read_result, unseen, write_result
from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval.tasks import Sample
from dllm.eval.tasks.datasets import DATASETS
from dllm.output import Output
from dllm.samplers.egp import ExtremelyGreedy
from dllm.tuning.memo import MemoModel

Row = dict[str, Any]
Key = tuple[str, str, str, str]  # task, block setting, method, value
BLOCKWISE, WHOLE = "block 32", "whole canvas"
BUDGET, SEED = 128, 11
BLOCKS = {BLOCKWISE: 32, WHOLE: None}


@dataclass(frozen=True)
class Setting:
    """A method at one value of its option; `only`: the block setting it is run in (None: both)."""

    method: str
    value: str
    options: dict[str, Any] = field(default_factory=dict)
    paper: bool = False
    only: str | None = None


def key(task: str, block: str, setting: Setting) -> Key:
    return task, block, setting.method, setting.value


def sweep(
    method: str, spec: str, values: list[Any], paper: Any, option: str = "sampler", **others: Any
) -> list[Setting]:
    """One setting per value of the option that ends `spec`; `paper` is the published value."""
    name = spec.rpartition(":")[2].rpartition(",")[2].removesuffix("=")
    return [
        Setting(method, f"{name}={v}", {**others, option: f"{spec}{v}"}, paper=v == paper)
        for v in values
    ]


def part(
    method: str,
    option: str,
    spec: str,
    values: list[Any],
    paper: Any,
    base: dict[str, Any],
    only: str | None = None,
) -> list[Setting]:
    """One setting per value of the option that ends the `spec` of another component."""
    settings = sweep(method, spec, values, paper, option, **base)
    return [replace(setting, only=only) for setting in settings]


THRESHOLD = {"sampler": "threshold:threshold=0.9"}
QUOTA = {"sampler": "quota"}
SETTINGS = [
    *(
        Setting("quota", f"{k} a step", {"sampler": f"quota:steps={BUDGET // k}"}, paper=k == 1)
        for k in (1, 4)
    ),
    *sweep("threshold", "threshold:threshold=", [0.95, 0.9, 0.8, 0.7, 0.5], 0.9),
    *sweep("factor", "factor:factor=", [0.5, 0.75, 1.0, 1.5], 1.0),
    *sweep("frechet", "frechet:delta=", [0.5, 0.25, 0.1, 0.0], 0.25),
    *sweep("localleap", "localleap:relaxed=", [0.85, 0.75, 0.6], 0.75),
    *sweep("entropy", "entropy:threshold=", [0.05, 0.1, 0.3, 0.5], 0.5),
    *sweep("eb", "eb:bound=", [0.01, 0.1, 0.3, 1.0], 0.1),
    *sweep("klass", "klass:kl_threshold=", [0.001, 0.015, 0.1], 0.015),
    *sweep("hierarchical", "hierarchical:low=", [0.7, 0.4, 0.2], 0.4),
    *sweep("credit", "threshold:threshold=", [0.9, 0.7], 0.9, transform="credit"),
    *sweep("saber", "saber:count=", [2, 4, 8], 2),
    *sweep("pc", "pc:decay=0.25,steps=", [BUDGET, BUDGET // 2, BUDGET // 4], BUDGET),
    Setting("dus", "", {"sampler": "dus"}, paper=True),
    # its only option is the length of a window, which the whole canvas does not have
    *(
        Setting(
            "dus",
            f"window={v}",
            {"sampler": "dus", "planner": f"fixed:block_length={v}"},
            False,
            BLOCKWISE,
        )
        for v in (8, 16)
    ),
    *sweep("fhs", "fhs:count=", [1, 2, 4], 1, temperature=1.0),
    *part("adablock", "planner", "adablock:threshold=", [0.1, 0.3, 0.5], 0.3, THRESHOLD),
    *part("slowfast", "planner", "slowfast:reach=", [0.1, 0.3, 0.6], 0.3, THRESHOLD),
    # with one block there is nothing to pipeline
    *part("multi", "planner", "multi:add=", [0.1, 0.5], 0.1, THRESHOLD, BLOCKWISE),
    *(
        Setting("prophet", value, {**QUOTA, "stop_rule": f"prophet:marker=Answer:,{gaps}"}, paper)
        for value, gaps, paper in (
            ("gaps 7.5, 5, 2.5", "early=7.5,middle=5,late=2.5", True),
            ("gaps 3, 2, 1", "early=3,middle=2,late=1", False),
            ("gaps 15, 10, 5", "early=15,middle=10,late=5", False),
        )
    ),
    *part("eotp", "stop_rule", "eotp:threshold=", [0.5, 0.96], 0.96, THRESHOLD),
    *part("freedave", "speculator", "freedave:length=", [2, 4, 8], 4, QUOTA),
    *part("ssd", "speculator", "ssd:length=", [2, 4, 8], 4, QUOTA),
    *part("freedave on threshold", "speculator", "freedave:length=", [2, 4], 4, THRESHOLD),
]


def decode(engine: Engine, prompts: list[str], options: dict[str, Any]) -> list[Output]:
    config = DecodeConfig(max_new_tokens=BUDGET).replace(**options)
    outputs: list[Output] = engine.generate(prompts, config)
    return outputs


def measure(name: str, count: int, settings: list[Setting], known: set[Key]) -> list[Row]:
    """Counts of every setting on one task, by block setting; those `known` left out."""
    torch.set_num_threads(1)
    plain = dllm.load("tiny")
    engine = Engine(MemoModel(plain.model, 2**31), plain.text)
    chosen = unseen(name, count, SEED)
    prompts = [e.prompt for e in chosen]
    rows = []
    for block, length in BLOCKS.items():
        base = {"block_length": length}
        reference = decode(engine, prompts, {**base, "sampler": "quota"})
        for setting in settings:
            if setting.only not in (None, block) or key(name, block, setting) in known:
                continue
            outputs = decode(engine, prompts, {**base, **setting.options})
            rows.append(row(name, block, setting, chosen, outputs, reference))
        egp = Setting("egp", "oracle", paper=True)
        if key(name, block, egp) not in known:
            outputs = decode(engine, prompts, {**base, "sampler": oracle(plain, reference)})
            rows.append(row(name, block, egp, chosen, outputs, reference))
    return rows


def oracle(engine: Engine, reference: list[Output]) -> ExtremelyGreedy:
    """EGP on what one-token decoding gave; end of text behind it."""
    end = engine.model.spec.eos_id
    answers = [(*o.token_ids, *[end] * (BUDGET - len(o.token_ids))) for o in reference]
    return ExtremelyGreedy(tuple(answers))


def row(
    name: str,
    block: str,
    setting: Setting,
    chosen: list[Sample],
    outputs: list[Output],
    reference: list[Output],
) -> Row:
    right = sum(is_right(name, e, o.text) for e, o in zip(chosen, outputs, strict=True))
    same = sum(o.token_ids == r.token_ids for o, r in zip(outputs, reference, strict=True))
    return {
        "task": name,
        "group": DATASETS[name].group,
        "block": block,
        "method": setting.method,
        "knob": setting.value,
        "paper": setting.paper,
        "count": len(chosen),
        "right": right,
        "same_as_one_by_one": same,
        "nfe": sum(o.nfe for o in outputs),
        "canvases": sum(o.canvases for o in outputs),
        "answer_tokens": sum(o.answer_tokens for o in outputs),
    }


def main() -> None:
    options = {
        "--count": (19, "prompts per task, of 18 tasks"),
        "--methods": {"nargs": "*", "help": "only these (nothing is written)"},
        "--missing": (False, "keep what the result file has"),
        "--workers": (os.cpu_count() or 1, "processes"),
    }
    args = arguments(__doc__, options)
    settings = [s for s in SETTINGS if not args.methods or s.method in args.methods]
    names = by_length()
    header = {
        "holes": BUDGET,
        "seed": SEED,
        "blocks": BLOCKS,
        "count_per_task": args.count,
        "weights": fingerprint(),
    }
    rows = measured(header, settings) if args.missing else []
    known = {(r["task"], r["block"], r["method"], r["knob"]) for r in rows}
    order = [*((s.method, s.value) for s in settings), ("egp", "oracle")]
    place = {each: i for i, each in enumerate(order)}
    with ProcessPoolExecutor(args.workers) as pool:
        jobs = [pool.submit(measure, name, args.count, settings, known) for name in names]
        for done, job in enumerate(track(as_completed(jobs), "decoding", len(jobs)), 1):
            rows += job.result()
            rows.sort(
                key=lambda r: (names.index(r["task"]), r["block"], place[r["method"], r["knob"]])
            )
            # A run for what is missing, if it is killed, leaves less missing to the next one.
            if not args.methods and (args.missing or done == len(jobs)):
                path = write_result("samplers", {**header, "rows": rows})
    if args.methods:
        Console().print(rows)
    else:
        print(path)


def fingerprint() -> str:
    """The start of the SHA-256 of the bundled weights."""
    weights = Path(dllm.__file__).parent / "assets" / "tiny" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def measured(header: Row, settings: list[Setting]) -> list[Row]:
    """Rows of the result file of these `settings`, marked if a paper's; SystemExit if it was
    made otherwise than `header` says.
    """
    result = read_result("samplers")
    for name, value in header.items():
        if result.get(name) != value:
            raise SystemExit(f"--missing: {name} is {result.get(name)!r} there, expected {value!r}")
    paper = {(s.method, s.value): s.paper for s in settings} | {("egp", "oracle"): True}
    rows = [r for r in result["rows"] if (r["method"], r["knob"]) in paper]
    return [{**r, "paper": paper[r["method"], r["knob"]]} for r in rows]


if __name__ == "__main__":
    main()
