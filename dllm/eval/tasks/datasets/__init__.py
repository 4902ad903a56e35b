"""Datasets of the bundled models, by name."""

from dllm.eval.tasks.datasets import arithmetic, lists, puzzles, structured
from dllm.eval.tasks.datasets.base import (
    GeneratedDataset,
    draw_held_out,
    examples,
    held_out,
    is_held_out,
)

# The order is the order of the bundled tokenizer's ids: new datasets go to the end.
DATASETS: dict[str, GeneratedDataset] = {
    dataset.name: dataset
    for module in (lists, arithmetic, puzzles, structured)
    for dataset in module.DATASETS
}

__all__ = ["DATASETS", "GeneratedDataset", "draw_held_out", "examples", "held_out", "is_held_out"]
