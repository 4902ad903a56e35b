"""dParallel on the bundled model: forwards at equal accuracy, before and after the distillation.

The same held-out prompts of all task families for every model and rule; 128 holes in blocks of 32.

    python -m benchmarks.certainty --model runs/certainty/checkpoint [--count 57]
    python -m benchmarks.certainty --report          # the table of docs/training.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.progress import track

import dllm
from benchmarks.common import RESULTS, fill, unseen, write_result
from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval.accuracy import evaluate
from dllm.eval.tasks import TASKS
from dllm.memo import MemoModel

NAME = "certainty"
PAGE = Path(__file__).parent.parent / "docs" / "training.md"
SEED, HOLES, BLOCK = 47, 128, 32
RULES = (
    *(f"threshold:threshold={value}" for value in (0.95, 0.9, 0.8, 0.7)),
    *(f"entropy:threshold={value}" for value in (0.1, 0.3, 0.5)),
)


def measure(models: dict[str, str], count: int) -> list[dict[str, Any]]:
    """One row for each model, rule and task."""
    prompts = {name: unseen(name, count, SEED) for name in TASKS}
    rows = []
    for label, name in models.items():
        engine = dllm.load(name)
        engine = Engine(MemoModel(engine.model), engine.text)
        for task, examples in track(prompts.items(), description=label):
            for rule in RULES:
                config = DecodeConfig(sampler=rule, max_new_tokens=HOLES, block_length=BLOCK)
                score = evaluate(engine, TASKS[task], examples, config)
                rows.append(
                    {
                        "model": label,
                        "rule": rule,
                        "task": task,
                        "count": score.count,
                        "right": score.reasons["ok"],
                        "nfe": score.nfe,
                        "answer_tokens": score.answer_tokens,
                    }
                )
    return rows


def totals(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """(model, rule) -> accuracy, forwards a prompt, tokens per forward; all prompts alike."""
    found = {}
    for key in dict.fromkeys((row["model"], row["rule"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["rule"]) == key]
        count = sum(row["count"] for row in mine)
        nfe = sum(row["nfe"] for row in mine)
        found[key] = {
            "accuracy": sum(row["right"] for row in mine) / count,
            "forwards": nfe / count,
            "tokens_per_forward": sum(row["answer_tokens"] for row in mine) / nfe,
        }
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The totals as Markdown."""
    lines = ["| model | rule | right | forwards | tokens / forward |", "|---|---|---|---|---|"]
    for (model, rule), found in totals(rows).items():
        lines.append(
            f"| {model} | {rule.partition(':')[0]} {rule.rpartition('=')[2]} | "
            f"{found['accuracy']:.1%} | {found['forwards']:.2f} | "
            f"{found['tokens_per_forward']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="the distilled checkpoint")
    parser.add_argument("--count", type=int, default=57, help="prompts of a task")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.report:
        fill(PAGE, {NAME: table(json.loads((RESULTS / f"{NAME}.json").read_text())["rows"])})
        return
    rows = measure({"tiny": "tiny", "distilled": args.model}, args.count)
    write_result(NAME, {"holes": HOLES, "block_length": BLOCK, "seed": SEED, "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
