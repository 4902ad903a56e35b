"""Rounding's effect on greedy texts: plain decoding alone against plain decoding in a batch.

A pass over several tokens, or several rows, adds up in another order than a pass over one, so that
near ties can fall to the other side, in bfloat16 above all. Everything is compared, text by text,
with transformers' `generate` on each prompt alone: `generate` on a batch, its prompt lookup, and
our loop. Counts only: no clock.

    python -m benchmarks.rounding [--dtype bfloat16] [--batch 13]       # the bundled pair
    python -m benchmarks.rounding --model DIR --data DIR [--batch 3]    # see speculate_smollm.py
    python -m benchmarks.rounding --report                              # fills docs/verify.md
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import dllm.verify
from benchmarks import speculate, speculate_smollm
from benchmarks.common import (
    DOCS,
    DTYPE,
    arguments,
    markdown,
    read_result,
    unseen_of_all,
    write_result,
)
from dllm.text.prompts import encode_prompt
from dllm.verify.engine import SpecEngine

NAME = "rounding_{model}_{dtype}"
MODELS = {"tiny-ar": "`tiny-ar`", "smollm2": "SmolLM2-135M-Instruct"}
EACH = 3  # prompts of each category of speculate_smollm.py
LOOKUP = 10  # drafts of transformers' prompt lookup, as in its documentation
Ids = list[int]
# all prompts -> what is emitted for each, the end token included
Decode = Callable[[Sequence[Ids]], list[Ids]]


def generate(engine: SpecEngine, prompts: Sequence[Ids], count: int, **options: Any) -> list[Ids]:
    """The target's own greedy `generate` on a batch, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model: Any = engine.target.model  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=min(engine.eos),
            **options,
        )
    return [ended(tokens, engine.eos) for tokens in out[:, width:].tolist()]


def ended(tokens: Ids, eos: frozenset[int]) -> Ids:
    """Tokens up to and including the first end token."""
    end = next((i for i, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[: end + 1]


def contenders(
    engine: SpecEngine, settings: dict[str, dict[str, Any]], count: int, batch: int
) -> dict[str, Decode]:
    """Contenders that are compared with plain decoding alone, by name."""

    def batched(prompts: Sequence[Ids]) -> list[Ids]:
        parts = [prompts[at : at + batch] for at in range(0, len(prompts), batch)]
        return [ids for part in track(parts) for ids in generate(engine, part, count)]

    def lookup(prompts: Sequence[Ids]) -> list[Ids]:
        options = {"prompt_lookup_num_tokens": LOOKUP}
        return [generate(engine, [prompt], count, **options)[0] for prompt in track(prompts)]

    def ours(options: dict[str, Any]) -> Decode:
        def decode(prompts: Sequence[Ids]) -> list[Ids]:
            outputs = [
                engine.generate(prompt, max_new_tokens=count, temperature=0.0, **options)
                for prompt in track(prompts)
            ]
            return [[token for each in o.rounds for token in each.tokens] for o in outputs]

        return decode

    return {
        f"plain decoding in a batch of {batch}": batched,
        "transformers' prompt lookup": lookup,
        **{f"ours: {name}": ours(options) for name, options in settings.items()},
    }


def measure(args: argparse.Namespace) -> None:
    """One model and dtype; writes benchmarks/results/rounding_*.json."""
    if args.model is None:
        name, count = "tiny-ar", speculate.NEW_TOKENS
        engine = dllm.verify.load("tiny-ar", "tiny", dtype=args.dtype)
        texts = [example.prompt for _, example in unseen_of_all(234, speculate.SEED)]
        settings: dict[str, dict[str, Any]] = {
            "product tree": {"sources": (), "control": speculate.FIXED}
        }
    else:
        name, count = "smollm2", 64
        if not (args.model / "config.json").exists():
            speculate_smollm.prepare(args.model)
        engine = dllm.verify.load(args.model, dtype=args.dtype)
        texts = [text for _, text in speculate_smollm.prompts(args.data, EACH)]
        settings = speculate_smollm.CONTENDERS
    prompts = [encode_prompt(engine.text, text) for text in texts]
    alone = [generate(engine, [prompt], count)[0] for prompt in track(prompts)]
    rows: list[dict[str, Any]] = []
    content = {"model": name, "dtype": args.dtype, "max_new_tokens": count, "rows": rows}
    for each, decode in contenders(engine, settings, count, args.batch).items():
        rows.append({"name": each, "identical": same(decode(prompts), alone), "of": len(prompts)})
        write_result(NAME.format(model=name, dtype=args.dtype), content)


def same(texts: Sequence[Ids], alone: Sequence[Ids]) -> int:
    """The number of texts that are those of plain decoding alone, token for token."""
    return sum(a == b for a, b in zip(texts, alone, strict=True))


def tables() -> dict[str, str]:
    rows = [
        [title, row["name"], f"{row['identical']} / {row['of']}"]
        for model, title in MODELS.items()
        for row in read_result(NAME.format(model=model, dtype="bfloat16"))["rows"]
    ]
    head = ["model, bfloat16", "greedy, against `generate` alone", "identical"]
    return {"rounding": markdown(head, rows)}


def main() -> None:
    data = "folder of spec_bench.jsonl and gsm8k_test.jsonl"
    options = {
        "--model": {"type": Path, "help": "directory of SmolLM2; left out: tiny-ar"},
        "--data": {"type": Path, "help": data},
        "--dtype": DTYPE | {"default": "bfloat16"},
        "--batch": (13, "rows decoded together"),
    }
    args = arguments(__doc__, options, page=DOCS / "verify.md", tables=tables)
    if (args.model is None) != (args.data is None):
        raise SystemExit("--model and --data go together")
    measure(args)


if __name__ == "__main__":
    main()
