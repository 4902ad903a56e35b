"""Every commit rule on the bundled model: accuracy against forwards, at each knob value.

Held-out prompts of all task families, seed 11, none of them among those watched during training
(single calculations have no others); 128 holes behind each, in blocks of 32 and as one window. The
papers' defaults are marked; the floor is EGP, which knows what one-token decoding would answer. A
forward's logits are remembered per canvas (dllm.memo): that changes the time, not the counts.
Run: python -m benchmarks.samplers [--count 19], then python -m benchmarks.samplers_report
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import dllm
from benchmarks.common import unseen, write_result
from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval.tasks import TASKS, Example
from dllm.memo import MemoModel
from dllm.output import Output
from dllm.samplers.egp import ExtremelyGreedy

BLOCKWISE, WHOLE = "block 32", "whole canvas"
HOLES, SEED = 128, 11
BLOCKS = {BLOCKWISE: 32, WHOLE: None}


@dataclass(frozen=True)
class Setting:
    """A method at one knob value; `only` names the block setting it is run in (None: both)."""

    method: str
    knob: str
    options: dict[str, Any] = field(default_factory=dict)
    paper: bool = False
    only: str | None = None


def sweep(method: str, spec: str, values: list[Any], paper: Any, **options: Any) -> list[Setting]:
    """One setting per value of the knob that ends `spec`; `paper` is the published value."""
    knob = spec.rpartition(":")[2].rpartition(",")[2].removesuffix("=")
    return [
        Setting(method, f"{knob}={v}", {**options, "sampler": f"{spec}{v}"}, paper=v == paper)
        for v in values
    ]


THRESHOLD = {"sampler": "threshold:threshold=0.9"}
SETTINGS = [
    *(
        Setting("quota", f"{k} a step", {"sampler": f"quota:steps={HOLES // k}"}, paper=k == 1)
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
    Setting("saber", "count=2", {"sampler": "saber:count=2"}, True, WHOLE),
    *sweep("pc", "pc:decay=0.25,steps=", [HOLES, HOLES // 2, HOLES // 4], HOLES),
    Setting("dus", "", {"sampler": "dus"}, paper=True),
    Setting("fhs", "", {"sampler": "fhs", "temperature": 1.0}, True, WHOLE),
    *(
        Setting(
            "adablock",
            f"threshold={v}",
            {**THRESHOLD, "planner": f"adablock:threshold={v}"},
            v == 0.3,
            BLOCKWISE,
        )
        for v in (0.1, 0.3, 0.5)
    ),
    Setting("slowfast", "", {**THRESHOLD, "planner": "slowfast"}, True),
    *(
        Setting(
            "multi", f"add={v}", {**THRESHOLD, "planner": f"multi:add={v}"}, v == 0.1, BLOCKWISE
        )
        for v in (0.1, 0.5)
    ),
    Setting(
        "prophet", "Answer:", {"sampler": "quota", "stop_rule": "prophet:marker=Answer:"}, True
    ),
    Setting("eotp", "", {**THRESHOLD, "stop_rule": "eotp"}, True),
    Setting(
        "freedave",
        "length=4",
        {"sampler": "quota", "speculator": "freedave:length=4"},
        True,
        BLOCKWISE,
    ),
    Setting("ssd", "length=4", {"sampler": "quota", "speculator": "ssd:length=4"}, True, BLOCKWISE),
    Setting("freedave on threshold", "length=4", {**THRESHOLD, "speculator": "freedave:length=4"}),
]


def decode(engine: Engine, prompts: list[str], options: dict[str, Any]) -> list[Output]:
    config = DecodeConfig(max_new_tokens=HOLES).replace(**options)
    outputs: list[Output] = engine.generate(prompts, config)
    return outputs


def measure(name: str, count: int, settings: list[Setting]) -> dict[str, Any]:
    """Counts of every setting on one task, by block setting."""
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
            if setting.only not in (None, block):
                continue
            outputs = decode(engine, prompts, {**base, **setting.options})
            rows.append(row(name, block, setting, chosen, outputs, reference))
        outputs = decode(engine, prompts, {**base, "sampler": oracle(plain, reference)})
        egp = Setting("egp", "oracle", paper=True)
        rows.append(row(name, block, egp, chosen, outputs, reference))
    return {"task": name, "rows": rows}


def oracle(engine: Engine, reference: list[Output]) -> ExtremelyGreedy:
    """EGP on what one-token decoding gave; end of text behind it."""
    end = engine.model.spec.eos_id
    answers = [(*o.token_ids, *[end] * (HOLES - len(o.token_ids))) for o in reference]
    return ExtremelyGreedy(tuple(answers))


def row(
    name: str,
    block: str,
    setting: Setting,
    chosen: list[Example],
    outputs: list[Output],
    reference: list[Output],
) -> dict[str, Any]:
    task = TASKS[name]
    grades = Counter(task.grade(e, o.text) for e, o in zip(chosen, outputs, strict=True))
    same = sum(o.token_ids == r.token_ids for o, r in zip(outputs, reference, strict=True))
    return {
        "task": name,
        "group": task.group,
        "block": block,
        "method": setting.method,
        "knob": setting.knob,
        "paper": setting.paper,
        "count": len(chosen),
        "right": grades["ok"],
        "same_as_one_by_one": same,
        "nfe": sum(o.nfe for o in outputs),
        "canvases": sum(o.canvases for o in outputs),
        "answer_tokens": sum(o.answer_tokens for o in outputs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=19, help="prompts per task, of 18 tasks")
    parser.add_argument("--methods", nargs="*", help="only these (nothing is written)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    settings = [s for s in SETTINGS if not args.methods or s.method in args.methods]
    # the longest first, so that the workers end together
    names = sorted(TASKS, key=lambda name: TASKS[name].group == "structured", reverse=True)
    with ProcessPoolExecutor(args.workers) as pool:
        jobs = [pool.submit(measure, name, args.count, settings) for name in names]
        rows = [r for job in track(jobs, "decoding") for r in job.result()["rows"]]
    if args.methods:
        Console().print(rows)
        return
    setting = {"holes": HOLES, "seed": SEED, "blocks": BLOCKS, "count_per_task": args.count}
    print(write_result("samplers", {**setting, "rows": rows}))


if __name__ == "__main__":
    main()
