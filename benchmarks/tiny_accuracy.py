"""Accuracy of the bundled model, and what parallel decoding costs it.

Held-out prompts of every task, never trained on nor watched during training, are decoded one token
per forward and with a confidence threshold of 0.9, on the same canvas, in blocks of 4, 8 and 32:
500 prompts of each task, 250 of each structured one and puzzle. Sorting six items is apart, as it
is promised for five. Run: python -m benchmarks.tiny_accuracy; with --report, the README's table is
written from the result file and nothing is decoded.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dllm
from benchmarks.common import ROOT, arguments, markdown, read_result, sizes_of, unseen, write_result
from dllm.config import DecodeConfig
from dllm.eval.records import Cell
from dllm.eval.run import evaluate
from dllm.eval.tasks import scorer_of
from dllm.eval.tasks.datasets import DATASETS
from dllm.intervals import wilson

SAMPLERS = {"sequential": "quota", "parallel": "threshold:threshold=0.9"}
SEED, COUNT = 3, 500
BLOCKS = (4, 8, 32)
ROWS = [(name, sizes_of(task)) for name, task in DATASETS.items() if name != "sort"]
ROWS[2:2] = [("sort", (3, 4, 5)), ("sort", (6,))]
# Masked positions behind a prompt: enough for the longest answer and its end.
CANVAS = dict.fromkeys(DATASETS, 16) | {"latin": 20, "sudoku": 20, "function": 32}
CANVAS |= {"word_problem": 40, "json": 36, "records": 84, "table": 96}
HALF = ("structured", "puzzles")  # groups of several tasks, where half the prompts do


def measure(
    name: str, sizes: tuple[int, ...], block_length: int, count: int, model: str
) -> dict[str, Any]:
    """One row of the result: both samplers on the same prompts of one task."""
    torch.set_num_threads(1)
    engine, task = dllm.load(model), scorer_of(name)
    chosen = unseen(name, count, SEED, sizes=sizes)
    base = DecodeConfig(max_new_tokens=CANVAS[name], block_length=block_length)
    scores = {
        way: evaluate(engine, task, chosen, base.replace(sampler=spec))
        for way, spec in SAMPLERS.items()
    }
    forwards = {way: score.nfe / score.count for way, score in scores.items()}
    return {
        "group": DATASETS[name].group,
        "task": name,
        "block_length": block_length,
        "sizes": sizes,
        "prompts": scores["sequential"].count,
        **{way: summary(score) for way, score in scores.items()},
        "forwards_ratio": round(forwards["parallel"] / forwards["sequential"], 4),
    }


def summary(score: Cell) -> dict[str, Any]:
    low, high = wilson(score.strict, score.count)
    return {
        "accuracy": round(score.strict / score.count, 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "forwards_per_prompt": round(score.nfe / score.count, 3),
        "tokens_per_forward": round(score.tokens / score.nfe, 3),
        "reasons": dict(score.reasons),
    }


def name_of(row: dict[str, Any]) -> str:
    """The task as a reader knows it; where it has several rows, with its sizes."""
    sizes = f" {min(row['sizes'])} to {max(row['sizes'])}" if len(row["sizes"]) > 1 else " 6"
    return row["task"].replace("_", " ") + (sizes if row["task"] == "sort" else "")


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
    shown = Table(*columns, "tokens/forward")
    for row in rows:
        one, many = row["sequential"], row["parallel"]
        low, high = one["interval_95"]
        shown.add_row(
            row["group"],
            name_of(row),
            str(row["block_length"]),
            str(row["prompts"]),
            f"{one['accuracy']:.1%}",
            f"{low:.1%} - {high:.1%}",
            f"{many['accuracy']:.1%}",
            f"{one['forwards_per_prompt']:.1f} -> {many['forwards_per_prompt']:.1f}",
            f"{row['forwards_ratio']:.0%}",
            f"{many['tokens_per_forward']:.1f}",
        )
    Console().print(shown)


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows`, and what the result file has besides, in the order of the table."""
    known = read_result("tiny_accuracy")["rows"]
    by_key = {(r["task"], tuple(r["sizes"]), r["block_length"]): r for r in [*known, *rows]}
    order = [(name, sizes, block) for block in BLOCKS for name, sizes in ROWS]
    return [by_key[key] for key in order if key in by_key]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a task; for every block length what one by one and in parallel come to."""
    head = ["task", "prompts"]
    head += [f"{what}, block {block}" for block in BLOCKS for what in ("right", "forwards")]
    lines = []
    for name in dict.fromkeys(map(name_of, rows)):
        cells = []
        for row in (r for block in BLOCKS for r in rows if r["block_length"] == block):
            if name_of(row) == name:
                one, many, prompts = row["sequential"], row["parallel"], str(row["prompts"])
                cells.append(f"{one['accuracy']:.1%} → {many['accuracy']:.1%}")
                forwards = [way["forwards_per_prompt"] for way in (one, many)]
                cells.append("{:.1f} → {:.1f}".format(*forwards))
        lines.append([name, prompts, *cells])
    return markdown(head, lines, rule="| --- ")


def main() -> None:
    options = {
        "--count": (COUNT, "prompts per task (see HALF)"),
        "--model": ("tiny", "tiny, or a checkpoint directory"),
        "--tasks": {"nargs": "*", "default": list(DATASETS), "choices": list(DATASETS)},
        "--block-lengths": {"type": int, "nargs": "*", "default": BLOCKS, "choices": BLOCKS},
        "--workers": (os.cpu_count() or 1, "processes"),
    }
    args = arguments(
        __doc__, options, page=ROOT / "README.md", tables=lambda: {"accuracy": table(merged([]))}
    )

    def count(name: str, sizes: tuple[int, ...]) -> int:
        half = DATASETS[name].group in HALF or sizes == (6,)
        return int(args.count // (2 if half else 1))

    with ProcessPoolExecutor(args.workers) as pool:
        jobs = [
            pool.submit(measure, name, sizes, block, count(name, sizes), args.model)
            for block in args.block_lengths
            for name, sizes in ROWS
            if name in args.tasks
        ]
        rows = [job.result() for job in track(jobs, "decoding")]
    show(rows)
    if args.model == "tiny" and args.count == COUNT:
        setting = {"samplers": SAMPLERS, "canvas": CANVAS, "seed": SEED}
        print(write_result("tiny_accuracy", {**setting, "rows": merged(rows)}))


if __name__ == "__main__":
    main()
