"""Gain of `dllm train ar-to-block`: an AR model against the block-diffusion model made of it.

One thread, one prompt at a time. The AR model (transformers' `generate` with its key/value cache,
and our loop for AR targets without drafts) and every setting of the block model answer the same
held-out prompts, prompt by prompt in turn, so that a busy machine hurts all alike. A token is one
of the answer, its end token included; each model is counted on the tokens of its own answers.

    python -m benchmarks.ar_to_block --model DIR [--target tiny-ar] [--prompts 234]
    python -m benchmarks.ar_to_block --report          # the table of docs/training.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.progress import track

import dllm
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
from benchmarks.speculate import NEW_TOKENS, alone
from dllm.engine import Engine
from dllm.eval.tasks.datasets import DATASETS
from dllm.text.prompts import encode_prompt
from dllm.verify.engine import SpecEngine

NAME = "ar_to_block"
SEED = 37  # of the prompts; see common.WATCHED
GENERATE, OURS = "AR, transformers generate", "AR, our loop without drafts"
SAMPLERS = {
    "one by one": "quota",
    **{f"threshold {t}": f"threshold:threshold={t}" for t in (0.98, 0.9, 0.7)},
}
SUB_BLOCKS = 4  # of a block of the model


@dataclass(frozen=True)
class Answer:
    """Token ids without the one that ends them; tokens with it; forwards of the model."""

    ids: list[int]
    tokens: int
    forwards: int


@dataclass
class Tally:
    """The record of one contender, prompt by prompt."""

    seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DATASETS, 0))


Contender = Callable[[list[int]], Answer]


def generate(engine: SpecEngine, ids: list[int]) -> Answer:
    """The AR model by transformers' own loop: a forward a token."""
    found = alone(engine, ids, 0, 0.0)
    return Answer(found[: len(found) - (found[-1] in engine.eos)], len(found), len(found))


def ours(engine: SpecEngine, ids: list[int]) -> Answer:
    """The AR model by our loop, which costs less around each forward."""
    (out,) = engine.generate(
        [ids], max_new_tokens=NEW_TOKENS, control="fixed:depth=0,nodes=0", sources=()
    )
    return Answer(list(out.token_ids), out.emitted, len(out.rounds))


def block(engine: Engine, ids: list[int], **options: Any) -> Answer:
    """The block model under one setting."""
    (out,) = engine.generate([ids], max_new_tokens=NEW_TOKENS, **options)
    return Answer(out.token_ids, out.answer_tokens, out.nfe)


def settings(size: int) -> dict[str, dict[str, Any]]:
    """Samplers by caches, for a model with blocks of `size`."""
    part = max(1, size // SUB_BLOCKS)
    caches: dict[str, dict[str, Any]] = {
        "no cache": {"cache": "none", "block_length": size},
        "exact cache": {"cache": "block", "block_length": size},
        f"exact cache, windows of {part}": {"cache": "block", "block_length": part},
        f"sub-block cache of {part}": {"cache": "block:exact=false", "block_length": part},
    }
    return {
        f"{how}, {cache}": {"sampler": sampler, **options}
        for how, sampler in SAMPLERS.items()
        for cache, options in caches.items()
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All contenders on all prompts; writes benchmarks/results/ar_to_block.json."""
    torch.set_num_threads(1)
    target = dllm.verify.load(args.target, dtype=args.dtype, device="cpu")
    engine = dllm.load(args.model, dtype=args.dtype, device="cpu")
    assert engine.text is not None
    size = engine.model.spec.block_length
    if size is None:
        raise SystemExit(f"--model {args.model}: expected a model with blocks")
    contenders: dict[str, Contender] = {
        GENERATE: partial(generate, target),
        OURS: partial(ours, target),
        **{name: partial(block, engine, **options) for name, options in settings(size).items()},
    }
    tallies = {name: Tally() for name in contenders}
    questions = unseen_of_all(args.prompts, SEED)
    for number, (task, example) in enumerate([questions[0], *track(questions)]):
        ids = encode_prompt(engine.text, example.prompt)
        for name, contender in contenders.items():
            started = time.perf_counter()
            answer = contender(ids)
            spent = time.perf_counter() - started
            if number == 0:  # decoded once before the clock counts
                continue
            tally = tallies[name]
            tally.seconds.append(spent)
            tally.answers.append(answer)
            tally.right[task] += is_right(task, example, engine.text.decode(answer.ids))
    result: dict[str, Any] = {
        "dtype": args.dtype,
        "target": args.target,
        "block_length": size,
        "prompts_per_task": len(questions) // len(DATASETS),
        "max_new_tokens": NEW_TOKENS,
        "rows": [row(name, tally, tallies) for name, tally in tallies.items()],
    }
    write_result(NAME, result)
    return result


def row(name: str, mine: Tally, all_of_them: dict[str, Tally]) -> dict[str, Any]:
    """The numbers of one contender. speed: tokens per second over those of an AR loop."""
    tokens = sum(answer.tokens for answer in mine.answers)
    forwards = sum(answer.forwards for answer in mine.answers)
    found: dict[str, Any] = {
        "name": name,
        "right": sum(mine.right.values()),
        "of": len(mine.answers),
        "tokens": tokens,
        "tokens_per_forward": round(tokens / forwards, 3),
        "ms_per_token": round(1e3 * sum(mine.seconds) / tokens, 3),
        "ms_per_forward": round(1e3 * sum(mine.seconds) / forwards, 3),
    }
    for key, other in (("generate", GENERATE), ("our_loop", OURS)):
        base = all_of_them[other]
        pairs = zip(rates(mine), rates(base), strict=True)
        found[f"speed_over_{key}"] = round(
            tokens / sum(mine.seconds) * sum(base.seconds) / sum(a.tokens for a in base.answers), 3
        )
        found[f"median_speed_over_{key}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return found | {"right_by_task": mine.right}


def rates(tally: Tally) -> list[float]:
    """Tokens per second of each prompt."""
    return [a.tokens / s for a, s in zip(tally.answers, tally.seconds, strict=True)]


def table_of(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    columns = ["model and setting", "right", "tokens / forward", "ms / forward", "ms / token"]
    columns += ["speed over generate", "over our loop"]
    rows = [
        [
            each["name"],
            f"{each['right'] / each['of']:.1%}",
            f"{each['tokens_per_forward']:.2f}",
            f"{each['ms_per_forward']:.2f}",
            f"{each['ms_per_token']:.2f}",
            f"{each['speed_over_generate']:.2f}×",
            f"{each['speed_over_our_loop']:.2f}×",
        ]
        for each in result["rows"]
    ]
    return markdown(columns, rows)


def main() -> None:
    options = {
        "--model": ("", "directory of the block model"),
        "--target": ("tiny-ar", "the AR model it was made of"),
        "--dtype": DTYPE,
        "--prompts": (234, "of all tasks"),
    }
    args = arguments(
        __doc__,
        options,
        page=DOCS / "training.md",
        tables=lambda: {NAME: table_of(read_result(NAME))},
    )
    if not args.model:
        raise SystemExit("--model: expected the directory of a block model")
    print(table_of(measure(args)))


if __name__ == "__main__":
    main()
