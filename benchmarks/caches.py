"""What every cache policy saves and costs: speed, agreement with no cache, growth with length.

speed: a random 30 M parameter model, prompt 256, answers of 256 and 1,024 tokens, batches of 1 and
4 (how: benchmarks/cache_cost.py). long: the same, how the time of a token grows with the answer.
quality: the bundled model on the prompts of benchmarks.samplers, with the threshold rule and token
by token: right answers, forwards, and what `dllm.eval.staleness` measures. small: from which answer
length on the dual cache pays on the bundled model.
Run on an idle machine: python -m benchmarks.caches [--only speed long quality small], then
python -m benchmarks.caches_report. A section that is run replaces its own numbers only.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import dllm
from benchmarks.cache_cost import BLOCK, PER_STEP, PROMPT, Contender, measure, slope
from benchmarks.common import (
    RESULTS,
    arguments,
    by_length,
    is_right,
    read_result,
    unseen,
    write_result,
)
from dllm.cache import POLICIES
from dllm.config import ConfigError, DecodeConfig
from dllm.engine import Engine
from dllm.environment import environment
from dllm.eval.staleness import Meter
from dllm.tuning.memo import MemoModel

# How a policy is measured where that is not with its defaults; for speed vicinity's first forwards
# are left out, since every look into a generation would begin with them.
SPECS: dict[str, str] = {}
SPEED_SPECS = {"vicinity": "vicinity:warmup=1"}
CAUSAL = ("block",)  # policies for block-causal models, measured against `none` on such a model
GENERATED, BATCHES = (256, 1024), (1, 4)
LONG, LONG_POLICIES = (256, 512, 1024, 2048), ("none", "dual", "elastic", "block")
BUDGET, SEED = 128, 11  # as in benchmarks.samplers
SAMPLERS = {"threshold 0.9": "threshold:threshold=0.9", "one by one": "quota"}
SMALL = (8, 16, 32, 64, 128, 256, 480)  # with the prompt, the bundled model has 512 positions


def spec(policy: str) -> str:
    return SPECS.get(policy, policy)


def contenders(policies: list[str]) -> list[Contender]:
    """`none` first on each of the two models, which makes it the reference there."""
    specs = {p: SPEED_SPECS.get(p, spec(p)) for p in policies if p != "none"}
    found = [Contender("none"), *(Contender(s) for p, s in specs.items() if p not in CAUSAL)]
    causal = [Contender(s, True) for p, s in specs.items() if p in CAUSAL]
    return [*found, Contender("none", True), *causal] if causal else found


def speed(policies: list[str], repeats: int, count: int) -> dict[str, Any]:
    cells = [(generated, batch) for batch in BATCHES for generated in GENERATED]
    rows = [
        row
        for generated, batch in track(cells, "speed")
        for row in measure(contenders(policies), generated, batch, repeats)
    ]
    return {"prompt": PROMPT, "block": BLOCK, "tokens_per_step": PER_STEP, "rows": rows}


def long(policies: list[str], repeats: int, count: int) -> dict[str, Any]:
    entrants = contenders([p for p in policies if p in LONG_POLICIES])
    rows = [
        row for size in track(LONG, "long") for row in measure(entrants, size, batch=1, repeats=1)
    ]
    slopes = {}
    for c in entrants:
        mine = [r for r in rows if (r["cache"], r["block_causal"]) == (c.cache, c.causal)]
        per_token = [r["seconds"] / r["generated"] for r in mine]
        name = "none, block-causal" if c == Contender("none", True) else c.policy
        slopes[name] = slope(LONG, per_token)
    return {"prompt": PROMPT, "slopes": slopes, "rows": rows}


def quality(policies: list[str], repeats: int, count: int) -> dict[str, Any]:
    """Sums over all prompts; a policy that refuses the bundled model is left out."""
    wanted = [p for p in policies if p != "none"]
    # spawned: a fork would inherit the threads of the timed sections
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(decode_task, name, count, wanted) for name in by_length()]
        rows = [row for job in track(jobs, "quality") for row in job.result()]
    return {"holes": BUDGET, "seed": SEED, "count_per_task": count, "rows": rows}


def decode_task(name: str, count: int, policies: list[str]) -> list[dict[str, Any]]:
    """One task's prompts with every policy and sampler; uncached forwards are remembered."""
    torch.set_num_threads(1)
    plain = dllm.load("tiny")
    memo = MemoModel(plain.model, 2**30)
    chosen = unseen(name, count, SEED)
    rows = []
    for sampler, rule in SAMPLERS.items():
        config = DecodeConfig(max_new_tokens=BUDGET, block_length=BLOCK, sampler=rule)
        reference: list[Any] = []
        for policy in ("none", *policies):
            meter = Meter(memo if policy == "none" else plain.model, memo)
            prompts = [e.prompt for e in chosen]
            try:
                outputs = Engine(meter, plain.text).generate(prompts, config, cache=spec(policy))
            except ConfigError:
                if policy in CAUSAL:
                    continue
                raise
            reference = reference or outputs
            pairs = list(zip(chosen, outputs, reference, strict=True))
            row = {
                "task": name,
                "policy": policy,
                "cache": spec(policy),
                "sampler": sampler,
                "count": len(chosen),
                "right": sum(is_right(name, e, o.text) for e, o, _ in pairs),
                "same": sum(o.token_ids == r.token_ids for _, o, r in pairs),
                "nfe": sum(o.nfe for o in outputs),
                "answer_tokens": sum(o.answer_tokens for o in outputs),
            }
            rows.append(row | asdict(meter.total))
    return rows


def small(policies: list[str], repeats: int, count: int) -> dict[str, Any]:
    """Seconds of whole answers on the bundled model, without a cache and with the dual one."""
    engine = dllm.load("tiny")
    prompt = engine.encode(unseen("sort", 1, SEED)[0].prompt)
    rows = []
    for size in track(SMALL, "small"):
        config = DecodeConfig(
            max_new_tokens=size,
            block_length=BLOCK,
            sampler=f"quota:steps={size // PER_STEP},logits_eos_inf=true",
        )
        seconds: dict[str, list[float]] = {"none": [], "dual": []}
        for turn in range(1 + 5 * repeats):
            for cache, found in seconds.items():
                began = time.perf_counter()
                engine.generate([prompt], config, cache=cache)
                if turn:  # the first warms up
                    found.append(time.perf_counter() - began)
        rows.append({"holes": size, **{c: statistics.median(s) for c, s in seconds.items()}})
    slower = [row["holes"] for row in rows if row["dual"] >= row["none"]]
    pays = [row["holes"] for row in rows if row["holes"] > max(slower, default=0)]
    return {"prompt": len(prompt), "pays_from": min(pays, default=None), "rows": rows}


SECTIONS: dict[str, Callable[[list[str], int, int], dict[str, Any]]] = {
    "speed": speed,
    "long": long,
    "quality": quality,
    "small": small,
}


def main() -> None:
    options = {
        "--only": {"nargs": "*", "choices": SECTIONS, "default": list(SECTIONS)},
        "--policies": {"nargs": "*", "help": "only these (nothing is written)"},
        "--repeats": (1, "of all timings; medians count"),
        "--count": (19, "prompts per task, of 18 tasks"),
    }
    args = arguments(__doc__, options)
    torch.set_num_threads(os.cpu_count() or 1)
    for name in args.only:
        began = time.perf_counter()
        found = SECTIONS[name](args.policies or list(POLICIES), args.repeats, args.count)
        took = time.perf_counter() - began
        if args.policies:
            Console().print({name: found, "seconds": took})
            continue
        kept = read_result("caches") if (RESULTS / "caches.json").exists() else {}
        kept.pop("environment", None)
        section = {"environment": environment(), "seconds": took, **found}
        print(write_result("caches", {**kept, name: section}))


if __name__ == "__main__":
    main()
