"""The tasks that decoding methods are compared on, by name, and named lists of them."""

from dllm.eval.suite.base import REASONS, SUITE, Grade, Sample, SuiteTask, TaskBase, draw
from dllm.specs import build_part

# Name a user types -> where it lives; third parties add theirs in the entry-point group.
GROUP = "dllm.tasks"
TASKS: dict[str, str] = {
    "latin_square": "dllm.eval.suite.puzzles:LatinSquare",
    "sudoku": "dllm.eval.suite.puzzles:Sudoku",
    "cumulative_sums": "dllm.eval.suite.sums:CumulativeSums",
    "word_problem": "dllm.eval.suite.families:WordProblem",
    "calculation": "dllm.eval.suite.families:Calculation",
    "latin_fill": "dllm.eval.suite.families:LatinFill",
    "json": "dllm.eval.suite.families:Json",
    "records": "dllm.eval.suite.families:Records",
    "table": "dllm.eval.suite.families:Table",
    "function": "dllm.eval.suite.families:Function",
}

SUITES: dict[str, tuple[str, ...]] = {}

__all__ = [
    "GROUP",
    "REASONS",
    "SUITE",
    "SUITES",
    "TASKS",
    "Grade",
    "Sample",
    "SuiteTask",
    "TaskBase",
    "draw",
    "task_of",
]


def task_of(spec: str) -> SuiteTask:
    """The task that `spec` ("name" or "name:key=value,key=value") describes; SpecError."""
    task: SuiteTask = build_part(spec, TASKS, GROUP)
    return task
