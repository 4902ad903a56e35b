"""What is asked in training: questions from a file or from the task generators, as text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.batch import read_prompts
from dllm.errors import DllmError
from dllm.eval.tasks import TASKS
from dllm.prompts import Message, encode_prompt
from dllm.text import Text
from dllm.train.data import draw

GENERATORS = "generators"
DRAWN = 4096  # questions drawn from the generators if nobody says how many


@dataclass(frozen=True)
class Question:
    """Messages or text, and the answer if the data has one."""

    asked: Sequence[Message] | str
    answer: str | None = None

    def prompt(self, text: Text) -> list[int]:
        """Token ids up to where the answer begins; text goes into the chat template, if any."""
        return encode_prompt(text, self.asked)

    def reply(self, text: Text, answer: str) -> list[int]:
        """Token ids of `answer` behind it."""
        if not isinstance(self.asked, str):
            return text.answer(self.asked, answer)
        turn = [{"role": "user", "content": self.asked}]
        return text.answer(turn if text.has_chat_template else None, answer)


def read_questions(data: str, count: int | None, seed: int) -> list[Question]:
    """`count` questions (None: all of a file) of "generators", "generators:TASK+TASK" or a file.

    A file holds a prompt a line, or JSON lines with "prompt" and maybe "answer".
    """
    kind, _, tasks = data.partition(":")
    if kind == GENERATORS:
        return drawn(
            [name for name in tasks.split("+") if name], DRAWN if count is None else count, seed
        )
    records = read_prompts(None, data)[:count]
    return [Question(record["prompt"], record.get("answer")) for record in records]


def drawn(names: Sequence[str], count: int, seed: int) -> list[Question]:
    """Training examples of these tasks, of all in the bundled model's last mixture if none."""
    from dllm.train.tiny import EVERYTHING

    for name in names:
        if name not in TASKS:
            raise DllmError(f"no task {name!r}: expected some of {', '.join(TASKS)}")
    names = names or list(EVERYTHING)
    rng = random.Random(f"{seed}/{'+'.join(names)}")
    weights = [EVERYTHING.get(name, 1.0) for name in names]
    return [Question(*draw(rng, name)) for name in rng.choices(names, weights, k=count)]
