"""What every commit rule costs beside the model's forward, at LLaDA-8B's shape, against threshold.

Seconds per step outside the forward (vocabulary 126,464, canvas of 1,024 positions, blocks of 32),
the rules interleaved in the same run, medians. The forward is a table look-up and is not counted.
Run: python -m benchmarks.rule_overhead
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import arguments, opened, write_result
from benchmarks.step_overhead import BLOCK, EOS, POSITIONS, VOCAB, TableModel
from dllm.config import DecodeConfig
from dllm.samplers.egp import ExtremelyGreedy
from dllm.samplers.learn2pd import save_filter

RULES = (
    "quota dream:alg=entropy threshold factor frechet localleap entropy eb klass hierarchical dus "
    "pc fhs saber"
).split()
BASE = "threshold"
STEPS = 8


def options(filter_file: Path) -> dict[str, dict[str, object]]:
    """The contenders by the name they are shown under."""
    found: dict[str, dict[str, object]] = {rule: {"sampler": rule} for rule in RULES}
    found["learn2pd"] = {"sampler": f"learn2pd:filter={filter_file}"}
    found["egp"] = {"sampler": ExtremelyGreedy(((EOS,) * POSITIONS,) * 8)}
    found["threshold + credit"] = {"sampler": BASE, "transform": "credit"}
    found["threshold + prophet"] = {"sampler": BASE, "stop_rule": "prophet:at=1000"}
    found["threshold + eotp"] = {"sampler": BASE, "stop_rule": "eotp"}
    found["threshold + multi"] = {"sampler": BASE, "planner": "multi"}
    return found


def seconds_per_step(model: TableModel, batch: int, chosen: dict[str, object]) -> float:
    """Mean seconds per step of the engine, forwards taken out."""
    config = DecodeConfig(max_new_tokens=POSITIONS, block_length=BLOCK).replace(**chosen)
    decoding = opened(model, [[] for _ in range(batch)], config)
    began = time.perf_counter()
    steps = 0
    while steps < STEPS and decoding.active:
        decoding.step()
        steps += 1
    return (time.perf_counter() - began - decoding.forward.seconds) / steps


def main() -> None:
    runs = arguments(__doc__, {"--runs": (3, "runs, of which the median counts")}).runs
    model, rows = TableModel(), []
    shown = Table("rule", "batch", "ms per step", "against threshold")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "filter.safetensors"
        shapes = {"weight": (BLOCK, BLOCK), "bias": (BLOCK,)}
        names = [f"{side}.{kind}" for side in ("in", "out") for kind in shapes]
        save_filter(file, {n: torch.zeros(shapes[n.partition(".")[2]]) for n in names})
        contenders = options(file)
        for batch in (1, 8):
            samples: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(runs):  # interleaved, so that a busy moment hits all
                for name, chosen in contenders.items():
                    samples[name].append(seconds_per_step(model, batch, chosen))
            medians = {name: statistics.median(values) for name, values in samples.items()}
            for name, seconds in medians.items():
                ratio = seconds / medians[BASE]
                rows.append(
                    {
                        "rule": name,
                        "batch": batch,
                        "median_seconds_per_step": round(seconds, 5),
                        "all_runs": [round(value, 5) for value in samples[name]],
                        "over_threshold": round(ratio, 2),
                    }
                )
                shown.add_row(name, str(batch), f"{seconds * 1e3:.1f}", f"{ratio:.2f}")
    Console().print(shown)
    shape = {"vocabulary": VOCAB, "positions": POSITIONS, "block_length": BLOCK}
    print(write_result("rule_overhead", {"shape": shape, "runs": runs, "rows": rows}))


if __name__ == "__main__":
    main()
