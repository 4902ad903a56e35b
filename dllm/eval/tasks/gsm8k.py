"""GSM8K (arXiv 2110.14168): word problems of grade school, whose answer is one number.

The settings are those under which LLaDA, Dream, Fast-dLLM and dParallel report it: number of shots,
form of prompt and answer, chat or plain text, token budget. The wording is ours where more than the
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
from typing import ClassVar

from dllm.errors import DllmError
from dllm.eval.tasks.base import Grade, Sample
from dllm.eval.tasks.files import Convention, FileTask, Row, Setup, read_rows

DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
PLAIN = f"-?{DIGITS}"
NUMBER = rf"(?:(?<![\w.)\]])[-−])?\$?{DIGITS}"  # 7-5 is no -5
GOLD = rf"#### *({PLAIN})\s*$"


@dataclass(frozen=True, slots=True)
class Form:
    """The form of questions and answers. result: what stands before the number and after it;
    notes: whether solutions keep the data's calculator notes, as in 2+3=<<2+3=5>>5.
    """

    question: str
    answer: str
    result: tuple[str, str]
    notes: bool


@dataclass(frozen=True)
class Shots(Convention):
    """ask: what is said after a question."""

    form: Form
    shots: int = 0
    ask: str = ""


HASHES = Form("Question:", "Answer:", ("#### ", ""), notes=True)  # lm-eval's gsm8k
WORDS = Form("Q:", "A:", ("The answer is ", "."), notes=False)  # lm-eval's gsm8k_cot
ASK = "Work it out step by step. End with a line that has only #### and the number on it."
SETUPS: dict[Setup, Shots] = {
    "llada": Shots(1024, chat=False, form=HASHES, shots=5),
    "llada-instruct": Shots(512, chat=True, form=HASHES, ask=ASK),
    "dream": Shots(256, chat=False, form=WORDS, shots=8),
    "dream-instruct": Shots(256, chat=True, form=WORDS),
    "fast-dllm": Shots(256, chat=True, form=HASHES, shots=5),  # shots and question in one turn
    "dparallel": Shots(256, chat=True, form=HASHES),
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
    setups: ClassVar[Mapping[Setup, Convention]] = SETUPS
    shots: int | None = None
    shots_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots is not None and self.shots < 0:
            raise ValueError(f"shots={self.shots}: expected 0 or more, or none")

    @property
    def convention(self) -> Shots:
        return SETUPS[self.setup]

    @property
    def stop(self) -> tuple[str, ...]:
        return () if self.convention.ask else (self.convention.form.question,)

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
