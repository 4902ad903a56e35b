"""Train Learn2PD's filter for the bundled model, in windows of 32 tokens.

Decodes 40 training prompts of each task (as many as the paper of each of its own) one token a
forward, 128 holes behind each, rolls EGP out on them and fits the filter with the paper's knobs.
How the loss falls, and how often a threshold is wrong, is measured on 8 prompts of each task with
filters fitted to the other 32.
Run: python -m benchmarks.learn2pd_filter FILTER (writes it, and results/learn2pd_filter.json);
--references FILE keeps the decoded answers, by far the longest part, for another run.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import dllm
from benchmarks.common import sizes_of, write_result
from benchmarks.samplers import HOLES, fingerprint
from dllm.eval.tasks import TASKS, examples
from dllm.samplers.learn2pd import save_filter
from dllm.train.filter import Filter, Traces

COUNT, OTHERS, SEED = 40, 8, 12
UPDATES = (300, 1_000, 3_000, 10_000, 20_000, 40_000)
RECIPE = Filter(max_new_tokens=HOLES)


def training_prompts() -> list[str]:
    """COUNT different prompts of every task's training split, task by task."""
    found = []
    for task in TASKS.values():
        drawn = examples(task, SEED, held_out=False, sizes=sizes_of(task))
        mine = dict.fromkeys(e.prompt for e in itertools.islice(drawn, 50 * COUNT))
        found += list(mine)[:COUNT]
    return found


def references(
    engine: dllm.Engine, prompts: list[str], ids: list[list[int]], file: Path | None
) -> list[tuple[int, ...]]:
    """The recipe's references; those in `file`, if they are of the same weights and prompts."""
    made_of = {"weights": fingerprint(), "prompts": prompts}
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        if any(kept[name] != value for name, value in made_of.items()):
            raise SystemExit(f"{file}: made from other weights or prompts")
        return [tuple(answer) for answer in kept["answers"]]
    answers = RECIPE.references(engine, ids)
    if file is not None:
        file.write_text(json.dumps({**made_of, "answers": answers}))
    return answers


def quality(logits: Tensor, traces: Traces) -> dict[str, float]:
    """Loss, and of candidates: the share accepted at 0.96 and at 0.5, and wrong among those."""
    right = traces.right[traces.counted]
    said = logits[traces.counted]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(said, right.float())
    found = {"loss": loss.item()}
    for threshold in (0.96, 0.5):
        accepted = said.sigmoid() > threshold
        found[f"accepted_{threshold}"] = accepted.double().mean().item()
        found[f"wrong_{threshold}"] = (accepted & ~right).sum().item() / accepted.sum().item()
    return found


def curve(traces: Traces) -> list[dict[str, Any]]:
    """Quality on the prompts fitted to and on others, by number of updates."""
    other = traces.row % COUNT >= COUNT - OTHERS
    parts = {"fitted": traces.pick(~other), "others": traces.pick(other)}
    found = []
    for steps in track(UPDATES, "fitting"):
        model = replace(RECIPE, steps=steps).fit(parts["fitted"])
        with torch.no_grad():
            found.append(
                {"updates": steps} | {k: quality(model(t.seen), t) for k, t in parts.items()}
            )
    # the confidence itself in the filter's place: what a plain threshold knows
    plain = {k: quality(t.seen.double().logit(1e-9), t) for k, t in parts.items()}
    return [{"updates": None} | plain, *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("filter", type=Path, help="file to write")
    parser.add_argument("--references", type=Path, help="file that keeps the decoded answers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine, prompts = dllm.load("tiny"), training_prompts()
    ids = [engine.encode(prompt) for prompt in prompts]
    traces = RECIPE.roll_outs(engine, ids, references(engine, prompts, ids, args.references))
    save_filter(args.filter, RECIPE.fit(traces).state_dict())
    header = {
        "weights": fingerprint(),
        "seed": SEED,
        "prompts": len(prompts),
        "steps": len(traces.row),
        "candidates": int(traces.counted.sum()),
        "right": int(traces.right.sum()),
    }
    print(write_result("learn2pd_filter", {**header, "curve": curve(traces)}))


if __name__ == "__main__":
    main()
