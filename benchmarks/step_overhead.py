"""Seconds per decoding step outside the model's forward, at LLaDA-8B's shape.

Three contenders see the same logits (vocabulary 126,464, canvas of 1,024 positions, one token per
step): this engine in blocks of 32, this engine on one window of all positions, and the usual way: a
float64 softmax over every position, then a Python loop over rows. The forward itself is a table
look-up and is not counted. Run: python -m benchmarks.step_overhead
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.common import arguments, opened, write_result
from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.config import DecodeConfig
from dllm.models.spec import ModelSpec

VOCAB, POSITIONS, BLOCK = 126_464, 1024, 32
MASK, EOS = 126_336, 126_081


class TableModel:
    """A model whose forward is a look-up of random bf16 logits by position, equal for all rows."""

    spec = ModelSpec(
        family="llada",
        vocab_size=VOCAB,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_size=12_288,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        mask_id=MASK,
        eos_id=EOS,
        pad_id=EOS,
    )
    device = torch.device("cpu")
    dtype = torch.bfloat16

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(POSITIONS, VOCAB, generator=generator, dtype=torch.bfloat16)

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        return self.logits[plan.head]

    def new_kv(self, batch: int, length: int) -> KVCache:
        raise NotImplementedError("no contender uses a cache")


def engine_seconds(model: TableModel, batch: int, steps: int, block_length: int | None) -> float:
    """Mean seconds per step of the engine, forwards taken out."""
    config = DecodeConfig(max_new_tokens=POSITIONS, block_length=block_length, sampler="quota")
    decoding = opened(model, [[] for _ in range(batch)], config)
    began = time.perf_counter()
    for _ in range(steps):
        decoding.step()
    return (time.perf_counter() - began - decoding.forward.seconds) / steps


def usual_seconds(model: TableModel, batch: int, steps: int) -> float:
    """Mean seconds per step of the usual loop, forwards taken out."""
    ids = torch.full((batch, POSITIONS), MASK)
    logits = model.logits.expand(batch, -1, -1)
    began = time.perf_counter()
    for _ in range(steps):
        masked = ids == MASK
        proposed = logits.argmax(-1)
        probability = F.softmax(logits.to(torch.float64), dim=-1)
        confidence = probability.gather(-1, proposed[..., None])[..., 0]
        confidence[:, BLOCK:] = -torch.inf
        confidence = torch.where(masked, confidence, -torch.inf)
        for row in range(batch):
            best = confidence[row].topk(1).indices
            ids[row, best] = proposed[row, best]
    return (time.perf_counter() - began) / steps


def main() -> None:
    runs = arguments(__doc__, {"--runs": (5, "runs, of which the median counts")}).runs
    model = TableModel()
    contenders: dict[str, Callable[[int], float]] = {
        "dllm, block 32": lambda batch: engine_seconds(model, batch, 8, BLOCK),
        "dllm, whole canvas": lambda batch: engine_seconds(model, batch, 1, None),
        "usual (float64, all positions)": lambda batch: usual_seconds(model, batch, 1),
    }
    rows = []
    table = Table("batch", "way", "ms per step", "usual / this")
    for batch in (1, 8):
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(runs):  # interleaved, so that a busy moment hits all
            for name, measure in contenders.items():
                samples[name].append(measure(batch))
        medians = {name: statistics.median(values) for name, values in samples.items()}
        usual = medians["usual (float64, all positions)"]
        for name, seconds in medians.items():
            ratio = usual / seconds
            rows.append(
                {
                    "batch": batch,
                    "way": name,
                    "median_seconds_per_step": round(seconds, 5),
                    "all_runs": [round(value, 5) for value in samples[name]],
                    "usual_over_this": round(ratio, 2),
                }
            )
            table.add_row(str(batch), name, f"{seconds * 1e3:.1f}", f"{ratio:.1f}x")
    Console().print(table)
    shape = {"vocabulary": VOCAB, "positions": POSITIONS, "block_length": BLOCK}
    print(write_result("step_overhead", {"shape": shape, "runs": runs, "rows": rows}))


if __name__ == "__main__":
    main()
