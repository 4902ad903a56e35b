"""Train Learn2PD's filter for the bundled model, in windows of 32 tokens.

Decodes 40 training prompts of each task (as many as the paper of each of its own) one token a
forward, 128 masked positions behind each, and rolls EGP out on them. How the loss falls, and how
filter and plain confidence rank candidates, is measured on 8 prompts of each task with filters
fitted to the other 32. Two filters are then fitted to all: with as many updates as were best there,
and with the paper's 40,000. The learning rate is constant; the recipe's falls to zero.

Run: python -m benchmarks.learn2pd_filter DIR (writes learn2pd-UPDATES.safetensors there, and
results/learn2pd_filter.json); --references FILE keeps the decoded answers, by far the longest part,
for another run.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import dllm
from benchmarks.common import arguments, sizes_of, write_result
from benchmarks.samplers import BUDGET, fingerprint
from dllm.eval.tasks.datasets import DATASETS, examples
from dllm.samplers.learn2pd import save_filter
from dllm.train.data import TrainingPair
from dllm.train.filter import Filter, FilterMLP
from dllm.train.oracle import OracleRollout, Traces
from dllm.train.trainer import Stage, Trainer

COUNT, OTHERS, SEED = 40, 8, 12
WRONG = (0, 2, 5, 10, 20, 40)  # so many accepted candidates may be wrong
PAPERS = 40_000  # updates
UPDATES = (300, 1_000, 3_000, 10_000, PAPERS)
RECIPE = Filter()
ORACLE = OracleRollout(RECIPE.block_length, BUDGET, batch_size=32)
CONFIG = replace(RECIPE.config, decay=1)


def training_prompts() -> list[str]:
    """COUNT different prompts of every task's training split, task by task."""
    found = []
    for dataset in DATASETS.values():
        drawn = examples(dataset, SEED, held_out=False, sizes=sizes_of(dataset))
        mine = dict.fromkeys(e.prompt for e in itertools.islice(drawn, 50 * COUNT))
        found += list(mine)[:COUNT]
    return found


def references(
    engine: dllm.Engine, prompts: list[str], ids: list[list[int]], file: Path | None
) -> list[TrainingPair]:
    """The oracle's references; those in `file`, if they are of the same weights and prompts."""
    made_of = {"weights": fingerprint(), "prompts": prompts}
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        if any(kept[name] != value for name, value in made_of.items()):
            raise SystemExit(f"{file}: made from other weights or prompts")
        return [TrainingPair(*both) for both in zip(ids, kept["answers"], strict=True)]
    pairs = list(ORACLE.references(engine, ids))
    if file is not None:
        answers = [pair.answer for pair in pairs]
        file.write_text(json.dumps({**made_of, "answers": answers}))
    return pairs


def fitted(traces: Traces, steps: int) -> FilterMLP:
    """A filter after so many updates."""
    model = FilterMLP(RECIPE.block_length, RECIPE.hidden, CONFIG.seed)
    with tempfile.TemporaryDirectory() as out:
        Trainer(model, [Stage(steps, lambda _: traces, RECIPE.loss)], CONFIG, Path(out)).run()
    return model


def quality(score: Tensor, traces: Traces) -> dict[str, Any]:
    """Of the candidates, ordered by `score` [N, W]: how many come before so many wrong ones."""
    order = score[traces.counted].argsort(descending=True, stable=True)
    wrong = (~traces.right[traces.counted][order]).cumsum(0)
    return {"candidates": len(order), "accepted": {n: int((wrong <= n).sum()) for n in WRONG}}


def curve(traces: Traces) -> list[dict[str, Any]]:
    """Loss and quality on the prompts fitted to and on others, by number of updates; without any:
    the confidence itself in the filter's place.
    """
    other = traces.row % COUNT >= COUNT - OTHERS
    parts = {"fitted": traces.pick(~other), "others": traces.pick(other)}
    found = [{"updates": 0, **{k: quality(t.seen, t) for k, t in parts.items()}}]
    for steps in track(UPDATES, "fitting"):
        model = fitted(parts["fitted"], steps)
        with torch.no_grad():
            found.append({"updates": steps, **{k: judged(model, t) for k, t in parts.items()}})
    return found


def judged(model: FilterMLP, traces: Traces) -> dict[str, Any]:
    loss = RECIPE.loss(model, traces, torch.Generator(), slice(None)).item()
    return {"loss": loss, **quality(model(traces.seen), traces)}


def main() -> None:
    options = {
        "directory": {"type": Path, "help": "where to write the filters"},
        "--references": {"type": Path, "help": "file that keeps the decoded answers"},
    }
    args = arguments(__doc__, options)
    torch.set_num_threads(1)
    engine, prompts = dllm.load("tiny"), training_prompts()
    ids = [engine.encode(prompt) for prompt in prompts]
    traces = ORACLE.roll_outs(engine, references(engine, prompts, ids, args.references))
    found = curve(traces)
    best = min(found[1:], key=lambda point: point["others"]["loss"])["updates"]
    args.directory.mkdir(parents=True, exist_ok=True)
    for steps in {best, PAPERS}:
        model = fitted(traces, steps)
        save_filter(args.directory / f"learn2pd-{steps}.safetensors", model.state_dict())
    header = {
        "weights": fingerprint(),
        "seed": SEED,
        "prompts": len(prompts),
        "steps": len(traces.row),
        "candidates": int(traces.counted.sum()),
        "right": int(traces.right.sum()),
        "best": best,
    }
    print(write_result("learn2pd_filter", {**header, "curve": found}))


if __name__ == "__main__":
    main()
