"""GSM8K (arXiv 2110.14168): word problems of grade school, whose answer is one number.

The settings are those under which LLaDA, Dream, Fast-dLLM and dParallel report it: number of shots,
form of prompt and answer, chat or plain text, room. The wording is ours where more than the
question is said. Shots are the first rows of `shots_file`, where lm-eval draws some and
"gsm8k_cot" has eight of its own: scores come close to the published ones, not to the digit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import ClassVar, Literal

from dllm.errors import DllmError
from dllm.eval.suite.base import Grade, Sample
from dllm.eval.suite.files import FileTask, Row, read_rows

DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
PLAIN = f"-?{DIGITS}"
NUMBER = rf"(?:(?<![\w.)\]])[-−])?\$?{DIGITS}"  # 7-5 is no -5
GOLD = rf"#### *({PLAIN})\s*$"

Setup = Literal["llada", "llada-instruct", "dream", "dream-instruct", "fast-dllm", "dparallel"]


@dataclass(frozen=True, slots=True)
class Form:
    """How questions and answers are put. result: what stands before the number and after it;
    notes: whether solutions keep the data's calculator notes, as in 2+3=<<2+3=5>>5.
    """

    question: str
    answer: str
    result: tuple[str, str]
    notes: bool


@dataclass(frozen=True, slots=True)
class Convention:
    """A way to report GSM8K. length: tokens of the answer; ask: what is said after the question."""

    shots: int
    length: int
    chat: bool
    form: Form
    ask: str = ""


HASHES = Form("Question:", "Answer:", ("#### ", ""), notes=True)  # lm-eval's gsm8k
WORDS = Form("Q:", "A:", ("The answer is ", "."), notes=False)  # lm-eval's gsm8k_cot
ASK = "Work it out step by step. End with a line that has only #### and the number on it."
SETUPS: dict[Setup, Convention] = {
    "llada": Convention(5, 1024, False, HASHES),
    "llada-instruct": Convention(0, 512, True, HASHES, ASK),
    "dream": Convention(8, 256, False, WORDS),
    "dream-instruct": Convention(0, 256, True, WORDS),
    "fast-dllm": Convention(5, 256, True, HASHES),  # shots and question in one turn
    "dparallel": Convention(0, 256, True, HASHES),
}


def value(number: str) -> Decimal:
    """-$1,450.50 as a number."""
    return Decimal(number.replace(",", "").replace("$", "").replace("−", "-"))


@dataclass(frozen=True)
class Gsm8k(FileTask):
    """shots: how many, None as in `setup`; shots_file: the train split that they come from."""

    name: ClassVar[str] = "gsm8k"
    source: ClassVar[str] = "PATH of GSM8K's test.jsonl (MIT, github.com/openai/grade-school-math)"
    patterns: ClassVar[Mapping[str, str]] = {"question": r"\S", "answer": GOLD}
    setup: Setup = "llada"
    shots: int | None = None
    shots_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_setup(self.setup, SETUPS)
        if self.shots is not None and self.shots < 0:
            raise ValueError(f"shots={self.shots}: expected 0 or more, or none")

    @property
    def convention(self) -> Convention:
        return SETUPS[self.setup]

    @property
    def room(self) -> int:
        return self.length or self.convention.length

    @property
    def chat(self) -> bool:
        return self.convention.chat

    @property
    def stop(self) -> tuple[str, ...]:
        return (self.convention.form.question,)

    @cached_property
    def examples(self) -> list[Row]:
        wanted = self.convention.shots if self.shots is None else self.shots
        if not wanted:
            return []
        source = self.source.replace("test", "train")
        rows = read_rows(self.shots_file, self.patterns, f"shots_file={source}, or shots=0")
        if len(rows) < wanted:
            raise DllmError(f"{self.shots_file}: {len(rows)} questions, expected {wanted} shots")
        return rows[:wanted]

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        row = self.rows[i]
        shots = [f"{self._ask(shot)} {self._solution(shot)}" for shot in self.examples]
        prompt = "\n\n".join([*shots, self._ask(row)])
        return Sample(prompt, self._solution(row), {"number": self._split(row)[1]})

    def _ask(self, row: Row) -> str:
        form, ask = self.convention.form, self.convention.ask
        return "\n".join(
            filter(None, (f"{form.question} {row['question'].strip()}", ask, form.answer))
        )

    def _solution(self, row: Row) -> str:
        steps, number = self._split(row)
        form = self.convention.form
        if not form.notes:
            steps = re.sub(r"<<[^<>]*>>", "", steps)
        before, after = form.result
        return f"{steps}\n{before}{number}{after}"

    @staticmethod
    def _split(row: Row) -> tuple[str, str]:
        """The steps of the solution and its number."""
        found = re.search(GOLD, row["answer"])
        assert found is not None  # checked as the file was read
        return row["answer"][: found.start()].rstrip(), found[1]

    def grade(self, sample: Sample, reply: str) -> Grade:
        """By the first number in the asked form, else by the last number of the reply."""
        asked = re.search(re.escape(self.convention.form.result[0]) + f"({PLAIN})", reply)
        numbers = [asked[1]] if asked else re.findall(NUMBER, reply)
        if not numbers:
            return Grade.of("parse", strict=False)
        right = value(numbers[-1]) == value(sample.facts["number"])
        return Grade.of("ok" if right else "arithmetic", strict=asked is not None)
