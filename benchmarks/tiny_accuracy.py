"""How good the bundled model is, and what parallel decoding costs it.

Held-out prompts of every task, never trained on nor watched during training, are decoded one token
per forward and with a confidence threshold of 0.9, on the same canvas, in blocks of 4 and of 32:
500 prompts of each task, 250 of each structured one and puzzle.
Run: python -m benchmarks.tiny_accuracy
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dllm
from benchmarks.common import RESULTS, sizes_of, unseen, write_result
from dllm.config import DecodeConfig
from dllm.eval.accuracy import Score, evaluate
from dllm.eval.tasks import TASKS

SAMPLERS = {"sequential": "quota", "parallel": "threshold:threshold=0.9"}
SEED = 3
BLOCKS = (4, 32)
# Holes behind a prompt: enough for the longest answer and its end.
CANVAS = dict.fromkeys(TASKS, 16) | {"latin": 20, "sudoku": 20, "function": 32}
CANVAS |= {"word_problem": 40, "json": 36, "records": 84, "table": 96}
HALF = ("structured", "puzzles")  # groups of several tasks, where half the prompts do


def measure(name: str, block_length: int, count: int, model: str) -> dict[str, Any]:
    """One row of the result: both samplers on the same prompts of one task."""
    torch.set_num_threads(1)
    engine, task, chosen = dllm.load(model), TASKS[name], unseen(name, count, SEED)
    base = DecodeConfig(max_new_tokens=CANVAS[name], block_length=block_length)
    scores = {
        way: evaluate(engine, task, chosen, base.replace(sampler=spec))
        for way, spec in SAMPLERS.items()
    }
    forwards = {way: score.nfe / score.count for way, score in scores.items()}
    return {
        "group": task.group,
        "task": name,
        "block_length": block_length,
        "sizes": sizes_of(task),
        "prompts": scores["sequential"].count,
        **{way: summary(score) for way, score in scores.items()},
        "forwards_ratio": round(forwards["parallel"] / forwards["sequential"], 4),
    }


def summary(score: Score) -> dict[str, Any]:
    low, high = score.interval()
    return {
        "accuracy": round(score.accuracy, 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "forwards_per_prompt": round(score.nfe / score.count, 3),
        "tokens_per_forward": round(score.answer_tokens / score.nfe, 3),
        "reasons": dict(score.reasons),
    }


def show(rows: list[dict[str, Any]]) -> None:
    columns = (
        "group",
        "task",
        "block",
        "prompts",
        "sequential",
        "95%",
        "parallel",
        "forwards",
        "ratio",
    )
    table = Table(*columns, "tokens/forward")
    for row in rows:
        one, many = row["sequential"], row["parallel"]
        low, high = one["interval_95"]
        table.add_row(
            row["group"],
            row["task"],
            str(row["block_length"]),
            str(row["prompts"]),
            f"{one['accuracy']:.1%}",
            f"{low:.1%} - {high:.1%}",
            f"{many['accuracy']:.1%}",
            f"{one['forwards_per_prompt']:.1f} -> {many['forwards_per_prompt']:.1f}",
            f"{row['forwards_ratio']:.0%}",
            f"{many['tokens_per_forward']:.1f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="prompts per task (see HALF)")
    parser.add_argument("--model", default="tiny", help="tiny, or a checkpoint directory")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--block-lengths", type=int, nargs="*", default=BLOCKS, choices=BLOCKS)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()

    def count(name: str) -> int:
        return int(args.count // (2 if TASKS[name].group in HALF else 1))

    with ProcessPoolExecutor(args.workers) as pool:
        jobs = [
            pool.submit(measure, name, block, count(name), args.model)
            for block in args.block_lengths
            for name in args.tasks
        ]
        rows = [job.result() for job in track(jobs, "decoding")]
    show(rows)
    if args.tasks == list(TASKS):
        known = json.loads((RESULTS / "tiny_accuracy.json").read_text())["rows"]
        rows += [row for row in known if row["block_length"] not in args.block_lengths]
        setting = {"samplers": SAMPLERS, "canvas": CANVAS, "seed": SEED}
        print(write_result("tiny_accuracy", {**setting, "rows": rows}))


if __name__ == "__main__":
    main()
