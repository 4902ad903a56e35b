"""A training run as a user asks for it: student, options of the trainer, answers to train on.

Knows no objective. A recipe is a dataclass of options with `prepare(job, report) -> TrainingRun`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.files import write_json
from dllm.models.fingerprint import fingerprint_stored, stored_samples
from dllm.models.hub import resolve
from dllm.models.lora import Lora
from dllm.models.stored import read_json
from dllm.processes import Ranks
from dllm.registry import Registry
from dllm.text.tokenizer import ChatTokenizer
from dllm.train.asked import Asked
from dllm.train.data import TrainingPair
from dllm.train.questions import Question, read_questions
from dllm.train.rollouts import Make, Report, Rollouts, own, target
from dllm.train.student import Blocks, Student
from dllm.train.trainer import Stage, TrainConfig, Trainer

LORA: Registry[Lora] = Registry("adapter", "dllm.lora", {"lora": "dllm.models.lora:Lora"})
DIFFUSION = "a masked-diffusion checkpoint"
GENERATE = "dllm generate --model {} PROMPT"
ASKED = "job.json"  # in the directory of a run: what was asked for
TOGETHER = 64  # prompts answered at once


class Recipe(Protocol):
    """A dataclass of options that says what to train, on what, with which loss."""

    paper: ClassVar[str]

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """All that comes before the first step. DllmError if the job cannot be done."""
        ...


@dataclass(frozen=True)
class TrainingRun:
    """A trainer, what writes its result to a directory, and how to try that."""

    trainer: Trainer
    export: Callable[[Path], None]
    use: str


@dataclass(frozen=True)
class Job(Asked):
    """A user's options, and what comes of them: student, answers and options of the trainer."""

    def check(self) -> None:
        """DllmError if a run of something else is in `out`, or if it can hold none."""
        if self.out.exists() and not self.out.is_dir():
            raise DllmError(f"--out {self.out}: expected a directory")
        if not (self.out / ASKED).exists():
            return
        there = read_json(self.out / ASKED)
        for name, value in self.asked.items():
            if there.get(name) != value:
                raise DllmError(
                    f"{self.out}: holds a run with {name}={there.get(name)!r}, but this one has "
                    f"{value!r}: give another --out, or the same options to go on"
                )

    def note(self) -> None:
        """Write down what was asked for, for `check`."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / ASKED, self.asked)

    def train_config(self, default: TrainConfig, steps: int) -> TrainConfig:
        """A recipe's options with what the user changed; rates fall to zero over the whole run."""
        return replace(
            default,
            batch_size=default.batch_size if self.batch_size is None else self.batch_size,
            lr=default.lr if self.lr is None else self.lr,
            muon_lr=default.muon_lr if self.muon_lr is None else self.muon_lr,
            parts=default.parts if self.parts is None else self.parts,
            seed=self.seed,
            warmup=min(default.warmup, 1 + steps // 10),
            decay=steps,
        )

    def fit(
        self, recipe: Any, student: Student, pairs: Sequence[TrainingPair], use: str, **tail: Any
    ) -> TrainingRun:
        """The one stage of a recipe that has `config`, `steps` and `loss`: the student on `pairs`.

        use: how to try the result; tail: padding, as `Student.batches` takes it.
        """
        steps = self.steps or recipe.steps
        config = self.train_config(recipe.config, steps)
        stage = Stage(steps, student.batches(pairs, config, **tail), recipe.loss)
        return TrainingRun(Trainer(student.model, [stage], config, self.out), student.export, use)

    def refuse_options(self) -> None:
        """DllmError if the user gave an option that a bundled model's own recipe does not take."""
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name not in ("recipe", "out") and value != option.default:
                raise DllmError(
                    f"--{option.name.replace('_', '-')} {value}: without --model the recipe "
                    f"{self.recipe!r} makes the bundled model, and takes no options but --out"
                )

    def student(self, what: str, blocks: Blocks | None = None) -> Student:
        """The model to train, or its adapter; DllmError if none is named. blocks: see `Student`."""
        if self.model is None:
            raise DllmError(f"--model is missing: expected {what}")
        lora = None if self.lora is None else LORA.build(f"lora:{self.lora}")
        if lora is None and not self.merge:
            raise DllmError("--adapter: there is none without --lora")
        student = Student.of(self.model, self.dtype, self.place, blocks)
        return student if lora is None else student.adapted(lora, self.seed, self.merge)

    @property
    def place(self) -> str:
        """The device of this process."""
        return (Ranks.here().device or self.device) if self.device == "auto" else self.device

    def questions(self) -> list[Question]:
        return read_questions(self.data, self.examples, self.seed)

    def by_length(self, text: ChatTokenizer) -> list[tuple[Question, list[int]]]:
        """The questions and the tokens of their prompts, shortest first: little padding in a batch.

        That is the order in which they are answered.
        """
        asked = [(question, question.prompt(text)) for question in self.questions()]
        return sorted(asked, key=lambda each: len(each[1]))

    def answers(
        self, text: ChatTokenizer, report: Report, *, whole: bool = False
    ) -> list[TrainingPair]:
        """Questions with answers in the student's tokens: the data's, or `distill_from`'s.

        whole: leave out answers that were cut off.
        """
        if self.distill_from is not None:
            pairs = self.distilled(text, report)
        else:
            questions = self.questions()
            missing = sum(question.answer is None for question in questions)
            if missing:
                raise DllmError(
                    f"--data {self.data}: {missing} of {len(questions)} prompts have no answer: "
                    'expected a field "answer" in every line, or --distill-from a model'
                )
            pairs = [TrainingPair(q.prompt(text), q.reply(text, str(q.answer))) for q in questions]
        return self.usable(pairs, whole)

    def usable(self, pairs: Sequence[TrainingPair], whole: bool) -> list[TrainingPair]:
        """Answers that are not empty, and if asked for not cut off; DllmError if there is none."""
        found = [pair for pair in pairs if pair.answer and (pair.whole or not whole)]
        if not found:
            raise DllmError(
                f"--data {self.data}: no answer can be used: expected some that end within "
                f"max_new_tokens={self.max_new_tokens} and are not known to be wrong"
            )
        return found

    def distilled(self, text: ChatTokenizer, report: Report) -> list[TrainingPair]:
        """Answers of the AR model, in the tokens of `text`."""
        assert self.distill_from is not None
        model, theirs = self.teacher()
        asked = self.by_length(theirs)
        make = partial(target, model, max_new_tokens=self.max_new_tokens, together=TOGETHER)
        pairs = self.rolled_out(digest_of(resolve(self.distill_from)), asked, make, report)
        if same_tokens(theirs, text):
            return pairs
        replies = [theirs.decode(pair.answer) for pair in pairs]
        return [
            TrainingPair(question.prompt(text), question.reply(text, reply), (), pair.whole)
            for (question, _), reply, pair in zip(asked, replies, pairs, strict=True)
        ]

    def teacher(self) -> tuple[Any, ChatTokenizer]:
        """The AR model that answers are learned from, and its tokenizer."""
        from dllm.verify.target.model import load_target

        assert self.distill_from is not None
        found, tokenizer = load_target(self.distill_from, "auto", self.place)
        return found.model, ChatTokenizer(tokenizer, "hf")

    def teacher_with(self, text: ChatTokenizer) -> Any:
        """That AR model if it has the tokens of `text`; None without one."""
        if self.distill_from is None:
            return None
        model, theirs = self.teacher()
        return model if same_tokens(theirs, text) else None

    def trajectories(
        self, student: Student, config: DecodeConfig, report: Report
    ) -> list[TrainingPair]:
        """Answers of the student before it is trained, with the order in which it decoded them.

        Left out: answers that were cut off, and those of a task that its grader refuses.
        """
        engine = Engine(student.model, student.text)
        config = config.replace(max_new_tokens=self.max_new_tokens)
        make = partial(own, engine, config=config, together=TOGETHER)
        answered = self.student_answers(student, config, make, report)
        right = [pair for q, pair in answered if not q.is_wrong(student.text.decode(pair.answer))]
        return self.usable(right, whole=True)

    def student_answers(
        self, student: Student, config: DecodeConfig, make: Make, report: Report
    ) -> list[tuple[Question, TrainingPair]]:
        """Answers that `make` has the student give before it is trained, decoding by `config`."""
        asked = self.by_length(student.text)
        # of the checkpoint: an adapter that is not trained yet changes nothing
        digest = hashlib.sha256(f"{digest_of(student.source)}/{config!r}".encode())
        pairs = self.rolled_out(digest.hexdigest(), asked, make, report)
        return [(question, pair) for (question, _), pair in zip(asked, pairs, strict=True)]

    def rolled_out(
        self, model: str, asked: Sequence[tuple[Question, list[int]]], make: Make, report: Report
    ) -> list[TrainingPair]:
        """The answers of a model to all questions, from the file of roll-outs where it has them."""
        prompts = [prompt for _, prompt in asked]
        digest = hashlib.sha256(repr(prompts).encode()).hexdigest()
        question = {"model": model, "prompts": digest, "max_new_tokens": self.max_new_tokens}
        rollouts = Rollouts(self.rollouts or self.out / "rollouts.jsonl", question)
        ranks = Ranks.here()
        if ranks.rank == 0:
            rollouts.complete(prompts, make, report)
        ranks.wait()
        return rollouts.read()


def digest_of(source: Path) -> str:
    """The fingerprint of the checkpoint in a directory."""
    return fingerprint_stored(stored_samples(source))


def same_tokens(one: ChatTokenizer, other: ChatTokenizer) -> bool:
    """Whether two tokenizers have one vocabulary."""
    same: bool = one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return same
