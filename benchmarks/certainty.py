"""dParallel on the bundled model: forwards at equal accuracy, before and after the distillation.

The same held-out prompts of all task families for every model and rule; 128 masked positions in
blocks of 32.

    python -m benchmarks.certainty [--model tiny-sure] [--count 57]
    python -m benchmarks.certainty --report          # the tables of docs/training.md
"""

from __future__ import annotations

from typing import Any

from rich.progress import track

import dllm
from benchmarks.common import DOCS, arguments, markdown, read_result, unseen, write_result
from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval.run import evaluate
from dllm.eval.tasks import Sample, scorer_of
from dllm.eval.tasks.datasets import DATASETS
from dllm.tuning.memo import MemoModel

NAME = "certainty"
SEED, BUDGET, BLOCK = 61, 128, 32
LOOKED_AT = 47, 38  # seed and count of prompts whose results decided about the last round
BASE, POINT = "tiny", 0.01
RULES = (
    *(f"threshold:threshold={value}" for value in (0.98, 0.95, 0.9, 0.8, 0.7)),
    *(f"entropy:threshold={value}" for value in (0.05, 0.1, 0.3, 0.5)),
)


def measure(models: tuple[str, ...], count: int) -> list[dict[str, Any]]:
    """One row for each model, rule and task."""
    prompts = {name: fresh(name, count) for name in DATASETS}
    rows = []
    for name in models:
        engine = dllm.load(name)
        engine = Engine(MemoModel(engine.model), engine.text)
        for task, examples in track(prompts.items(), description=name):
            for rule in RULES:
                config = DecodeConfig(sampler=rule, max_new_tokens=BUDGET, block_length=BLOCK)
                score = evaluate(engine, scorer_of(task), examples, config)
                rows.append(
                    {
                        "model": name,
                        "rule": rule,
                        "task": task,
                        "count": score.count,
                        "right": score.strict,
                        "nfe": score.nfe,
                        "answer_tokens": score.tokens,
                    }
                )
    return rows


def fresh(task: str, count: int) -> list[Sample]:
    """Held-out prompts that nobody looked at while the distilled model was made."""
    seed, taken = LOOKED_AT
    return unseen(task, count, SEED, {example.prompt for example in unseen(task, taken, seed)})


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
    lines = [
        [
            model,
            short(rule),
            f"{found['accuracy']:.1%}",
            f"{found['forwards']:.2f}",
            f"{found['tokens_per_forward']:.1f}",
        ]
        for (model, rule), found in totals(rows).items()
    ]
    return markdown(["model", "rule", "right", "forwards", "tokens / forward"], lines)


def equal(rows: list[dict[str, Any]]) -> str:
    """For each rule of the base model: the fewest forwards of the distilled within a point of it.

    The distilled may take another bar of the same rule.
    """
    found = totals(rows)
    lines = []
    for (model, rule), base in found.items():
        if model != BASE:
            continue
        good = [
            (each["forwards"], other, each["accuracy"])
            for (name, other), each in found.items()
            if name != BASE
            and other.partition(":")[0] == rule.partition(":")[0]
            and each["accuracy"] >= base["accuracy"] - POINT
        ]
        mine = f"{short(rule)}: {base['accuracy']:.1%}, {base['forwards']:.2f}"
        if good:
            forwards, other, right = min(good)
            its, fewer = f"{short(other)}: {right:.1%}, {forwards:.2f}", base["forwards"] / forwards
            lines.append([mine, its, f"{fewer:.2f}×"])
        else:
            lines.append([mine, "at no bar", ""])
    return markdown(["tiny: rule, right, forwards", "distilled", "fewer"], lines)


def short(rule: str) -> str:
    """As in "threshold 0.9"."""
    return f"{rule.partition(':')[0]} {rule.rpartition('=')[2]}"


def tables() -> dict[str, str]:
    rows = read_result(NAME)["rows"]
    return {NAME: table(rows), f"{NAME} equal": equal(rows)}


def main() -> None:
    options = {
        "--model": ("tiny-sure", "the distilled checkpoint"),
        "--count": (57, "prompts of a task"),
    }
    args = arguments(__doc__, options, page=DOCS / "training.md", tables=tables)
    rows = measure((BASE, args.model), args.count)
    write_result(NAME, {"holes": BUDGET, "block_length": BLOCK, "seed": SEED, "rows": rows})
    print(table(rows), equal(rows), sep="\n\n")


if __name__ == "__main__":
    main()
