"""DEER on the bundled pair: drafts accepted per round before and after each stage of alignment.

One target, no branches; every drafter decodes the same held-out prompts, in turn, and what it gives
is compared with the target's own output. Counted beside them: drafts that are always right.

    python -m benchmarks.drafter --drafter stage1=runs/stage1/checkpoint --drafter ...
    python -m benchmarks.drafter --report          # the table of docs/training.md
"""

from __future__ import annotations

import time
from typing import Any

from rich.progress import track

import dllm.verify
from benchmarks.common import DOCS, arguments, markdown, read_result, unseen, write_result
from benchmarks.speculate import NEW_TOKENS, alone
from dllm.eval.tasks.datasets import DATASETS
from dllm.text.prompts import encode_prompt
from dllm.verify.engine import SpecEngine
from dllm.verify.output import SpecOutput

NAME = "drafter"
SEED = 67
SEARCHES = ("argmax", "product")
SIZES = (16, 32)  # columns drafted and nodes verified a round
BASE, PERFECT = "tiny, not aligned", "every draft right"


def measure(drafters: dict[str, str], count: int) -> dict[str, Any]:
    """All drafters and settings on `count` prompts of every task."""
    engines = {
        name: dllm.verify.load("tiny-ar", path, dtype="float32") for name, path in drafters.items()
    }
    settings = [(name, search, size) for name in engines for search in SEARCHES for size in SIZES]
    outputs: dict[Any, list[SpecOutput]] = {each: [] for each in settings}
    by_task: dict[Any, dict[str, list[int]]] = {each: {} for each in settings}
    seconds, same = dict.fromkeys(settings, 0.0), dict.fromkeys(settings, 0)
    questions = [(task, e) for task in DATASETS for e in unseen(task, count, SEED)]
    plain, lengths = 0.0, []
    for number, (task, example) in enumerate([questions[0], *track(questions)]):
        warm = number == 0  # the first prompt is decoded once before the clock counts
        any_engine = next(iter(engines.values()))
        ids = encode_prompt(any_engine.text, example.prompt)
        started = time.perf_counter()
        expected = alone(any_engine, ids, 0, 0.0)
        if not warm:
            plain += time.perf_counter() - started
            lengths.append(len(expected))
        for setting in settings:
            started = time.perf_counter()
            output = decode(engines[setting[0]], ids, *setting[1:])
            if warm:
                continue
            seconds[setting] += time.perf_counter() - started
            outputs[setting].append(output)
            got = [token for each in output.rounds for token in each.tokens]
            same[setting] += got == expected
            found = by_task[setting].setdefault(task, [0, 0])
            found[0] += sum(each.accepted for each in output.rounds)
            found[1] += len(output.rounds)
    rows = [
        {
            "drafter": setting[0],
            "search": setting[1],
            "size": setting[2],
            "accepted_per_round": accepted(outputs[setting]),
            "speedup": round(plain / seconds[setting], 3),
            "identical": same[setting],
            "of": len(questions),
            "by_task": {t: round(a / b, 3) for t, (a, b) in by_task[setting].items()},
        }
        for setting in settings
    ]
    rows += [
        {"drafter": PERFECT, "search": search, "size": size, "accepted_per_round": most}
        for size, most in ((size, perfect(lengths, size)) for size in SIZES)
        for search in SEARCHES
    ]
    return {"target": "tiny-ar", "prompts": len(questions), "rows": rows}


def decode(engine: SpecEngine, ids: list[int], search: str, size: int) -> SpecOutput:
    (output,) = engine.generate(
        [ids],
        max_new_tokens=NEW_TOKENS,
        search=search,
        sources=(),
        control=f"fixed:depth={size},nodes={size}",
    )
    return output


def accepted(outputs: list[SpecOutput]) -> float:
    """Draft tokens accepted per round of the target."""
    rounds = [each for output in outputs for each in output.rounds]
    return round(sum(each.accepted for each in rounds) / len(rounds), 3)


def perfect(lengths: list[int], size: int) -> float:
    """Accepted per round if no draft of `size` tokens were ever wrong, for answers so long.

    The target adds a token of its own to every round but one that the end token closes.
    """
    accepted = rounds = 0
    for left in lengths:
        while left > 0:
            rounds, accepted = rounds + 1, accepted + min(size, left)
            left -= size + 1
    return round(accepted / rounds, 3)


def table(result: dict[str, Any]) -> str:
    """A line for each drafter: accepted per round and speed of every setting."""
    columns = [(search, size) for search in SEARCHES for size in SIZES]
    names = list(dict.fromkeys(row["drafter"] for row in result["rows"]))
    cells = {(r["drafter"], r["search"], r["size"]): r for r in result["rows"]}
    lines = []
    for name in names:
        row = [cells[name, *column] for column in columns]
        speeds = [f" ({r['speedup']:.1f}×)" if "speedup" in r else "" for r in row]
        shown = [f"{r['accepted_per_round']:.2f}{s}" for r, s in zip(row, speeds, strict=True)]
        lines.append([name, *shown])
    return markdown(["drafter", *(f"{search}, {size}" for search, size in columns)], lines)


def main() -> None:
    options = {
        "--drafter": {"action": "append", "default": [], "help": "NAME=CHECKPOINT"},
        "--count": (13, "prompts of a task"),
    }
    args = arguments(
        __doc__,
        options,
        page=DOCS / "training.md",
        tables=lambda: {NAME: table(read_result(NAME))},
    )
    named = dict(each.split("=", 1) for each in args.drafter)
    result = measure({BASE: "tiny", **named}, args.count)
    write_result(NAME, result)
    print(table(result))


if __name__ == "__main__":
    main()
