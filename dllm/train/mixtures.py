"""Mixtures of the task families that several recipes train on, and curricula made of them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from dllm.train.data import Mixture, mixed
from dllm.train.trainer import Loss, Stage, TrainConfig

INDEXED = ("copy", "reverse", "replace_index", "insert_index", "remove_index")
LISTS = (*INDEXED, "sort", "shuffle", "replace_random", "insert_random", "remove_random")
PUZZLES = ("latin", "sudoku")
OTHERS = (
    *("sort", "shuffle", "replace_random", "insert_random", "remove_random"),
    *("word_problem", "calculation", "json", "function", "records", "table"),
)


def mix(indexed: float, *others: float) -> dict[str, float]:
    """Weights of all tasks: of each in INDEXED, of those in OTHERS one by one, of each puzzle."""
    *each, puzzles = others
    weights = dict(zip(OTHERS, each, strict=True))
    return {**dict.fromkeys(INDEXED, indexed), **weights, **dict.fromkeys(PUZZLES, puzzles)}


# Sizes that a stage leaves out are forgotten within a thousand steps: all of them again.
EVERYTHING = mix(0.5, 5.0, 1.0, 1.5, 1.5, 0.5, 7.0, 1.2, 0.8, 0.8, 1.5, 3.0, 0.4)

SHORT_LISTS = Mixture(dict.fromkeys(INDEXED, 1.0), dict.fromkeys(INDEXED, (3, 4)))
LISTS_AND_SUMS = Mixture(
    {**dict.fromkeys(LISTS, 1.0), "sort": 3.0, "word_problem": 3.0},
    {**dict.fromkeys(LISTS, (3, 4, 5, 6)), "word_problem": (1, 2)},
)


def curriculum(
    mixtures: Sequence[tuple[int, Mixture]],
    tok: Tokenizer,
    eos_id: int,
    config: TrainConfig,
    loss: Loss,
) -> list[Stage]:
    """A stage of freshly drawn batches for each (steps, mixture)."""
    return [
        Stage(steps, mixed(tok, mixture, eos_id, config.batch_size, config.seed), loss)
        for steps, mixture in mixtures
    ]
