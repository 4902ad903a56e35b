"""The tasks that decoding methods are compared on, by name, and named lists of them."""

from dllm.eval.suite.base import REASONS, SUITE, Grade, Sample, SuiteTask, TaskBase, draw
from dllm.specs import build_part

# Name a user types -> where it lives; third parties add theirs in the entry-point group.
GROUP = "dllm.tasks"
TASKS: dict[str, str] = {
    "gsm8k": "dllm.eval.suite.gsm8k:Gsm8k",
    "humaneval": "dllm.eval.suite.humaneval:HumanEval",
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
