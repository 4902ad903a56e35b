"""Speculation on the bundled pair: every search, with and without branches and cost control.

The target alone (transformers' `generate` with its key/value cache, and our loop without drafts)
and every setting decode the same held-out prompts one by one, prompt by prompt in turn, so that a
busy machine hurts all alike. What each gives is compared, token by token, with `generate`.

    python -m benchmarks.speculate --dtype float32 --temperature 0 [--prompts 234]
    python -m benchmarks.speculate --report          # the table of docs/verify.md, from all runs
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import dllm.verify
from benchmarks.common import (
    DOCS,
    DTYPE,
    arguments,
    is_right,
    markdown,
    read_result,
    unseen_of_all,
    write_result,
)
from dllm.eval.tasks.datasets import DATASETS, examples
from dllm.text.prompts import encode_prompt
from dllm.verify.engine import SpecEngine
from dllm.verify.output import SpecOutput
from dllm.verify.rng import row_seed
from dllm.verify.sources.datastore import Datastore

NAME = "speculate_{dtype}_t{temperature:g}"
SEED = 31  # of the prompts; see common.WATCHED
NEW_TOKENS = 96
STORED = 200  # training examples a task whose neighbours the coupled lattice knows
FIXED, COST = "fixed:depth=16,nodes=16", "cost"
BRANCHES = ("ngram", "suffix")
SEARCHES = {"argmax path": "argmax", "CPS": "cps", "product tree": "product"}

# searches that draw their drafts, from the generator that the target's tokens are drawn from: the
# texts have the same distribution, not the same tokens
DRAWN = {
    "sampled path, block test": "sample",
    "greedy plus one": "greedy-plus-one",
    "RSD": "rsd",
    "k-SEQ": "kseq",
}


def settings(store: str, temperature: float) -> dict[str, dict[str, Any]]:
    """Settings that are compared, by name."""
    proxy = f"datastore:path={store},samples=0"
    found: dict[str, dict[str, Any]] = {
        "our loop, no drafts": {"control": "fixed:depth=0,nodes=0", "sources": ()},
        "branches only": {"sources": BRANCHES, "control": COST, "drafter": False},
    }
    searches: dict[str, tuple[str, tuple[str, ...]]] = {
        name: (spec, ()) for name, spec in SEARCHES.items()
    }
    searches["coupled tree"] = ("coupled", (proxy, "ngram:paths=0"))
    for name, (spec, sources) in searches.items():
        for with_branches in (False, True):
            for control in (FIXED, COST):
                parts = [name, *["branches"] * with_branches, *["cost"] * (control == COST)]
                found[" + ".join(parts)] = {
                    "search": spec,
                    "sources": (*sources, *(BRANCHES if with_branches else ())),
                    "control": control,
                }
    found["CPS + ADL (as published)"] = {"search": "cps", "sources": ("ngram:paths=0",)} | {
        "control": "adl"
    }
    if temperature:
        for name, spec in DRAWN.items():
            found[name] = {"search": spec, "sources": (), "control": FIXED}
    return found


def store(engine: SpecEngine, path: Path) -> None:
    """Answers of the training split as a datastore."""
    texts = []
    for task in DATASETS.values():
        drawn = examples(task, 0, held_out=False)
        for _, example in zip(range(STORED), drawn):
            turn = [{"role": "user", "content": example.prompt}]
            assert engine.text is not None
            texts.append([*engine.text.answer(turn, example.answer), *engine.eos])
    Datastore.build(texts, path)


def alone(engine: SpecEngine, ids: list[int], seed: int, temperature: float) -> list[int]:
    """The output of the target's own `generate`."""
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    model: Any = engine.target.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"do_sample": False, "top_k": 0, **sampling}
        out = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, **options)
    found: list[int] = out[0, len(ids) :].tolist()
    return found


def measure(args: argparse.Namespace) -> None:
    """One dtype and temperature, all settings; writes benchmarks/results/speculate_*.json."""
    engine = dllm.verify.load("tiny-ar", "tiny", dtype=args.dtype)
    free = SpecEngine(engine.target, engine.text, None)
    path = Path(args.store)
    store(engine, path)
    table = settings(str(path), args.temperature)
    seconds: dict[str, list[float]] = {"transformers generate": []} | {n: [] for n in table}
    outputs: dict[str, list[SpecOutput]] = {name: [] for name in table}
    same = dict.fromkeys(table, 0)
    tokens, right = 0, dict.fromkeys(DATASETS, 0)
    questions = unseen_of_all(args.prompts, SEED)
    for number, (task, example) in enumerate([questions[0], *track(questions)]):
        warm = number == 0  # the first prompt is decoded once before the clock counts
        ids = encode_prompt(engine.text, example.prompt)
        seed = args.seed + number
        started = time.perf_counter()
        expected = alone(engine, ids, row_seed(seed, 0), args.temperature)
        spent = time.perf_counter() - started
        if not warm:
            seconds["transformers generate"].append(spent)
            tokens += len(expected)
            text = engine.text.decode(expected)  # type: ignore[union-attr]
            right[task] += is_right(task, example, text)
        for name, options in table.items():
            options = dict(options)
            chosen = free if options.pop("drafter", True) is False else engine
            started = time.perf_counter()
            (output,) = chosen.generate(
                [ids],
                max_new_tokens=NEW_TOKENS,
                temperature=args.temperature,
                top_k=0,
                seed=seed,
                **options,
            )
            spent = time.perf_counter() - started
            if warm:
                continue
            seconds[name].append(spent)
            outputs[name].append(output)
            got = [token for each in output.rounds for token in each.tokens]
            same[name] += got == expected
    rows = [
        row(name, seconds, outputs.get(name), same.get(name), tokens, len(questions))
        for name in seconds
    ]
    write_result(
        NAME.format(dtype=args.dtype, temperature=args.temperature),
        {
            "dtype": args.dtype,
            "temperature": args.temperature,
            "prompts": len(questions),
            "tokens": tokens,
            "right": right,
            "rows": rows,
        },
    )


def row(
    name: str,
    seconds: dict[str, list[float]],
    outputs: list[SpecOutput] | None,
    same: int | None,
    tokens: int,
    count: int,
) -> dict[str, Any]:
    """The numbers of one setting. speedup: of all prompts together; median: of each prompt's."""
    plain, mine = seconds["transformers generate"], seconds[name]
    ratios = [a / b for a, b in zip(plain, mine, strict=True)]
    found: dict[str, Any] = {
        "name": name,
        "ms_per_token": round(1e3 * sum(mine) / tokens, 3),
        "speedup": round(sum(plain) / sum(mine), 3),
        "median_speedup": round(statistics.median(ratios), 3),
    }
    if outputs is None:
        return found
    rounds = [each for output in outputs for each in output.rounds]
    emitted = sum(output.emitted for output in outputs)
    return found | {
        "identical": same,
        "of": count,
        "accepted_per_round": round(sum(each.accepted for each in rounds) / len(rounds), 3),
        "target_passes_per_token": round(len(rounds) / emitted, 4),
        "drafter_passes_per_token": round(sum(e.depth > 0 for e in rounds) / emitted, 4),
        "drafts_per_round": round(sum(each.drafts for each in rounds) / len(rounds), 2),
    }


def table_of(result: dict[str, Any]) -> str:
    """A result file as a Markdown table."""
    columns = ["setting", "accepted / round", "target passes / token", "drafts / round"]
    columns += ["ms / token", "speed", "identical"]
    rows = []
    for each in result["rows"]:
        numbers, identical = ["0", "1", "0"], "–"
        if "of" in each:
            drawn = result["temperature"] and each["name"] in DRAWN
            numbers = [
                f"{each['accepted_per_round']:.2f}",
                f"{each['target_passes_per_token']:.3f}",
                f"{each['drafts_per_round']:.1f}",
            ]
            identical = "same distribution" if drawn else f"{each['identical']} / {each['of']}"
        time, speed = f"{each['ms_per_token']:.2f}", f"{each['speedup']:.2f}×"
        rows.append([each["name"], *numbers, time, speed, identical])
    return markdown(columns, rows)


def tables() -> dict[str, str]:
    """The tables of the page, from all result files."""
    names = [NAME.format(dtype=d, temperature=t) for d in ("float32", "bfloat16") for t in (0.0, 1)]
    results = {name: read_result(name) for name in names}
    greedy = results[names[0]]
    each = greedy["prompts"] // len(greedy["right"])
    right = ", ".join(f"{name} {n}/{each}" for name, n in greedy["right"].items()) + "."
    return {name: table_of(result) for name, result in results.items()} | {"right": right}


def main() -> None:
    options = {
        "--dtype": DTYPE,
        "--temperature": (0.0, "of the target"),
        "--prompts": (234, "of all tasks"),
        "--seed": (0, "of the draws"),
        "--store": ("build/neighbours.safetensors", "where the datastore is built"),
    }
    args = arguments(__doc__, options, page=DOCS / "verify.md", tables=tables)
    Path(args.store).parent.mkdir(parents=True, exist_ok=True)
    measure(args)


if __name__ == "__main__":
    main()
