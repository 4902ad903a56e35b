"""Tasks that decoding methods are compared on, by name, and named lists of them."""

from collections.abc import Collection, Sequence
from functools import cache

from dllm.eval.tasks.base import (
    REASONS,
    SUITE,
    ExactDistribution,
    Grade,
    Sample,
    Task,
    TaskBase,
    closed_form,
    draw,
)
from dllm.registry import Registry

TASKS: Registry[Task] = Registry(
    "task",
    "dllm.tasks",
    {
        "copy": "dllm.eval.tasks.lists:Copy",
        "reverse": "dllm.eval.tasks.lists:Reverse",
        "sort": "dllm.eval.tasks.lists:Sort",
        "shuffle": "dllm.eval.tasks.lists:Shuffle",
        "replace_index": "dllm.eval.tasks.lists:ReplaceIndex",
        "insert_index": "dllm.eval.tasks.lists:InsertIndex",
        "remove_index": "dllm.eval.tasks.lists:RemoveIndex",
        "replace_random": "dllm.eval.tasks.lists:ReplaceRandom",
        "insert_random": "dllm.eval.tasks.lists:InsertRandom",
        "remove_random": "dllm.eval.tasks.lists:RemoveRandom",
        "latin_square": "dllm.eval.tasks.puzzles:LatinSquare",
        "sudoku": "dllm.eval.tasks.puzzles:Sudoku",
        "cumulative_sums": "dllm.eval.tasks.sums:CumulativeSums",
        "words_to_sentence": "dllm.eval.tasks.opentext:WordsToSentence",
        "word_problem": "dllm.eval.tasks.generated:WordProblem",
        "calculation": "dllm.eval.tasks.generated:Calculation",
        "latin_fill": "dllm.eval.tasks.generated:LatinFill",
        "json": "dllm.eval.tasks.structured:Json",
        "records": "dllm.eval.tasks.structured:Records",
        "table": "dllm.eval.tasks.structured:TableTask",
        "function": "dllm.eval.tasks.structured:Function",
        "gsm8k": "dllm.eval.tasks.gsm8k:Gsm8k",
        "humaneval": "dllm.eval.tasks.humaneval:HumanEval",
    },
)

LISTS = (
    "copy",
    "reverse",
    "sort",
    "shuffle",
    "replace_index",
    "insert_index",
    "remove_index",
    "replace_random",
    "insert_random",
    "remove_random",
)
SUITES: dict[str, tuple[str, ...]] = {
    "full": (*LISTS, "latin_square", "sudoku", "cumulative_sums", "words_to_sentence"),
    # those with an exact distribution, in sizes that it can be computed for
    "oracle": (*(f"{name}:n=3+4+6+8" for name in LISTS), "latin_square", "cumulative_sums"),
    # what the bundled model was trained on, in its own words
    "tiny": (
        *(f"{name}:wording=short,n=3+4+5+6" for name in LISTS),
        "sudoku:wording=short,n=2+3+4+5+6+7",
        "word_problem",
        "json",
    ),
}
# dataset -> task, where that is not of the same name or not by default in the same form
SCORERS = {name: f"{name}:wording=short" for name in (*LISTS, "sudoku")} | {"latin": "latin_fill"}

__all__ = [
    "REASONS",
    "SUITE",
    "SUITES",
    "TASKS",
    "ExactDistribution",
    "Grade",
    "Sample",
    "Task",
    "TaskBase",
    "closed_form",
    "draw",
    "scorer_of",
    "task_of",
    "tasks_of",
]


def task_of(spec: str) -> Task:
    """The task that `spec` ("name" or "name:key=value,key=value") describes; SpecError."""
    return TASKS.build(spec)


def tasks_of(specs: Sequence[str], said: Collection[str] = ()) -> list[Task]:
    """The tasks of a plan that a file holds. Only the specs in `said`, which the user gave as well,
    may import code ("module:Class"): see dllm/registry.py. SpecError.
    """
    for spec in specs:
        TASKS.resolve(spec, imports=spec in said)
    return [task_of(spec) for spec in specs]


@cache
def scorer_of(dataset: str) -> Task:
    """The task that grades the questions of a dataset (`dllm.eval.tasks.datasets`); strict grades
    are the form of answer that the bundled models were trained on. SpecError.
    """
    return task_of(SCORERS.get(dataset, dataset))
