"""The tasks of the bundled model: text generators with graders, by name."""

from dllm.eval.tasks.datasets import arithmetic, lists, puzzles, structured
from dllm.eval.tasks.datasets.base import Example, Task, draw_held_out, examples, is_held_out

# The order is the order of the bundled tokenizer's ids: new families go to the end.
TASKS: dict[str, Task] = {
    task.name: task for module in (lists, arithmetic, puzzles, structured) for task in module.TASKS
}

__all__ = ["TASKS", "Example", "Task", "draw_held_out", "examples", "is_held_out"]
