"""Questions for training, as text: from a file or from the task generators."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from dllm.errors import DllmError
from dllm.eval.tasks import Sample, scorer_of
from dllm.eval.tasks.datasets import DATASETS
from dllm.text.codec import Message
from dllm.text.prompt_files import read_prompts
from dllm.text.prompts import encode_prompt
from dllm.text.tokenizer import ChatTokenizer
from dllm.train.asked import GENERATORS
from dllm.train.data import draw
from dllm.train.mixtures import EVERYTHING

DRAWN = 4096  # questions drawn from the generators if nobody says how many


@dataclass(frozen=True)
class Question:
    """Messages or text, the answer if the data has one, and where a dataset made it, its name and
    the sample.
    """

    asked: Sequence[Message] | str
    answer: str | None = None
    dataset: str = ""
    sample: Sample | None = None

    def is_wrong(self, reply: str) -> bool:
        """Whether the dataset's scorer refuses a reply; False where nobody knows."""
        if self.sample is None:
            return False
        return not scorer_of(self.dataset).grade(self.sample, reply).strict

    def prompt(self, text: ChatTokenizer) -> list[int]:
        """Token ids up to where the answer begins; text goes into the chat template, if any."""
        return encode_prompt(text, self.asked)

    def reply(self, text: ChatTokenizer, answer: str) -> list[int]:
        """Token ids of `answer` behind it."""
        if not isinstance(self.asked, str):
            return text.answer(self.asked, answer)
        turn = [{"role": "user", "content": self.asked}]
        return text.answer(turn if text.has_chat_template else None, answer)


def read_questions(data: str, count: int | None, seed: int) -> list[Question]:
    """`count` questions (None: all of a file) of "generators", "generators:TASK+TASK" or a file.

    TASK*2 draws twice as many as a task of weight 1; without weights they are those of the bundled
    model's last mixture. A file holds a prompt a line, or JSON lines with "prompt" and maybe
    "answer".
    """
    kind, _, tasks = data.partition(":")
    if kind == GENERATORS:
        return drawn(shares(tasks), DRAWN if count is None else count, seed)
    records = read_prompts(data)[:count]
    return [Question(record["prompt"], record.get("answer")) for record in records]


def shares(tasks: str) -> dict[str, float]:
    """Weight of each task in "TASK+TASK*2"; of all of them in ""."""
    found: dict[str, float] = {}
    for each in filter(None, tasks.split("+")):
        name, star, weight = each.partition("*")
        if name not in DATASETS:
            raise DllmError(f"no task {name!r}: expected some of {', '.join(DATASETS)}")
        try:
            found[name] = float(weight) if star else EVERYTHING[name]
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < inf:
            raise DllmError(f"--data: {each!r}: expected TASK*WEIGHT with a weight above 0")
    return found or EVERYTHING


def drawn(weights: Mapping[str, float], count: int, seed: int) -> list[Question]:
    """Training examples of tasks with these weights."""
    rng = random.Random(f"{seed}/{'+'.join(weights)}")
    names = rng.choices(list(weights), list(weights.values()), k=count)
    samples = [(name, draw(rng, name)) for name in names]
    return [Question(sample.prompt, sample.answer, name, sample) for name, sample in samples]
