"""Models under test: a checkpoint, or the oracle, which knows the true distribution.

One turns samples into token ids for an engine, and an engine's Output back into text and into the
order in which the answer's items were committed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol, cast

from dllm.config import ConfigError
from dllm.decoding.canvas import Prefilled
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.closed_forms import ONE_ANSWER
from dllm.eval.oracle import Joint, Oracle
from dllm.eval.tasks import ExactDistribution, Sample, Task, closed_form, draw
from dllm.eval.tasks.base import Span
from dllm.models.fingerprint import fingerprint
from dllm.output import Output
from dllm.text.spelling import Speller
from dllm.text.tokenizer import ChatTokenizer

MEASURED = 64  # answers that are looked at to choose the size of a canvas
SPARE = 1.25  # times the longest of them: an exact fit would tell the model how long to write
ROUND = 16  # to which it is rounded up, in tokens
ORACLE = "oracle"
LARGEST_SHUFFLE = 8  # the oracle's table of orders grows as n!
PROMPT = 33  # an oracle's prompt: 32 bits in base 2, and more than that in any other base


@dataclass(frozen=True)
class Questions:
    """Samples of one task and size as an engine takes them.

    prefilled: as in `Engine.stream_steps`. budget: max_new_tokens.
    """

    engine: Engine
    samples: Sequence[Sample]
    prompts: list[list[int]]
    row_ids: list[int]
    prefilled: list[Prefilled] | None = None
    budget: int | None = None


@dataclass(frozen=True)
class DecodedAnswer:
    """text, and the places in the Output's token ids of the items; see SampleRecord.places."""

    text: str
    places: list[int] | None


class ModelUnderTest(Protocol):
    """Something that answers questions."""

    def identity(self) -> dict[str, Any]:
        """JSON values: what answers depend on beside the settings."""
        ...

    def ask(self, task: Task, n: int, seed: int, samples: Mapping[int, Sample]) -> Questions:
        """Questions for `samples` by number. DllmError where the task cannot be put."""
        ...

    def read(self, task: Task, sample: Sample, output: Output) -> DecodedAnswer: ...


def row_id(task: Task, n: int, i: int) -> int:
    """The number that tells a row's random draws apart, beside the seed."""
    return zlib.crc32(f"{task.name}/{n}/{i}".encode())


@dataclass
class Checkpoint:
    """A loaded model with its tokenizer."""

    engine: Engine
    name: str
    chat: bool | Literal["auto"] = "auto"
    text: ChatTokenizer = field(init=False)
    speller: Speller = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.engine.text, ChatTokenizer):
            raise DllmError(f"{self.name}: no tokenizer, so that it cannot be asked anything")
        self.text, self.speller = self.engine.text, Speller(self.engine.text)
        self.budgets: dict[tuple[Task, int], int] = {}

    def identity(self) -> dict[str, Any]:
        model = self.engine.model
        return {
            "name": self.name,
            "family": model.spec.family,
            "weights": fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "chat": self.chat,
        }

    def ask(self, task: Task, n: int, seed: int, samples: Mapping[int, Sample]) -> Questions:
        each = list(samples.values())
        prompts = [self.prompt(task, sample) for sample in each]
        row_ids = [row_id(task, n, i) for i in samples]
        if task.surface == "free":
            budget = task.budget or self._budget(task, n)
            return Questions(self.engine, each, prompts, row_ids, budget=budget)
        skeletons = [self._skeleton(task, sample) for sample in each]
        budgets = {size for _, size in skeletons}
        if len(budgets) > 1:
            raise ConfigError(f"{task}: answers of size {n} differ in tokens: {sorted(budgets)}")
        return Questions(
            self.engine,
            each,
            prompts,
            row_ids,
            [prefilled for prefilled, _ in skeletons],
            budgets.pop(),
        )

    def read(self, task: Task, sample: Sample, output: Output) -> DecodedAnswer:
        pieces = self.speller.pieces(output.token_ids)
        spans = task.items(sample, output.text) if "".join(pieces) == output.text else []
        return DecodedAnswer(output.text, places(pieces, spans, output.text) if spans else None)

    def _messages(self, task: Task, sample: Sample) -> list[dict[str, str]] | None:
        """The conversation; None where the prompt is plain text."""
        with_template = self.text.has_chat_template
        chat = self.chat if task.chat == "auto" else task.chat
        return sample.messages if chat is True or (chat == "auto" and with_template) else None

    def prompt(self, task: Task, sample: Sample) -> list[int]:
        """Token ids up to where the answer begins."""
        messages = self._messages(task, sample)
        if messages is not None:
            return self.text.chat(messages)
        shots = "".join(f"{question}\n{answer}\n\n" for question, answer in sample.shots)
        # behind shots an answer begins on a line of its own, as theirs do
        return self.text.encode(f"{shots}{sample.prompt}" + "\n" * bool(shots))

    def _answer(self, task: Task, sample: Sample) -> list[int]:
        return self.text.answer(self._messages(task, sample), sample.answer)

    def _budget(self, task: Task, n: int) -> int:
        """Tokens that answers of other samples need, with their end, and some more."""
        if (task, n) not in self.budgets:
            count = min(task.count(n) or MEASURED, MEASURED)
            sizes = (len(self._answer(task, draw(task, n, -1, i))) + 1 for i in range(count))
            self.budgets[task, n] = math.ceil(max(sizes) * SPARE / ROUND) * ROUND
        return self.budgets[task, n]

    def _skeleton(self, task: Task, sample: Sample) -> tuple[Prefilled, int]:
        """The tokens between the answer's items, the end behind them, and the size of all."""
        ids = self._answer(task, sample)
        text = self.text.decode(ids)
        spans = task.items(sample, text)
        found = places(self.speller.pieces(ids), spans, text)
        if not found:
            words = ", ".join(repr(text[start:end]) for start, end in spans)
            raise ConfigError(
                f"{task}: surface=infill: expected items of one token each, found {words}; try "
                "vocabulary=letters"
            )
        ids = [*ids, self.engine.model.spec.eos_id]
        return [(at, [token]) for at, token in enumerate(ids) if at not in found], len(ids)


def places(pieces: Sequence[str], spans: Sequence[Span], text: str) -> list[int] | None:
    """The piece of `text` that is each span, but for spaces; None unless all are."""
    starts = {}
    at = 0
    for place, piece in enumerate(pieces):
        word = piece.strip()
        if word:
            starts[at + piece.index(word), word] = place
        at += len(piece)
    found = [starts.get((start, text[start:end])) for start, end in spans]
    known = [place for place in found if place is not None]
    return known if len(known) == len(spans) else None


class OracleModel:
    """The exact model of every task with an exact distribution (oracle.py), one per task and size.

    jitter: as in Oracle. Only the items are decoded, as on the infill surface.
    """

    def __init__(self, jitter: float = 1e-3) -> None:
        self.jitter = jitter

    def identity(self) -> dict[str, Any]:
        return {"name": ORACLE, "family": ORACLE, "jitter": self.jitter}

    def ask(self, task: Task, n: int, seed: int, samples: Mapping[int, Sample]) -> Questions:
        form = closed_form(task, n)
        if form is None:
            raise ConfigError(f"{task.name}: no exact distribution is known, so it has no oracle")
        if form[0] == "shuffle" and form[1] > LARGEST_SHUFFLE:
            raise ConfigError(f"{task.name}: n={n}: expected at most {LARGEST_SHUFFLE} items")
        engine = oracle_engine(*form, self.jitter)
        row_ids = [row_id(task, n, i) for i in samples]
        joint = cast(Oracle, engine.model).joint
        # what the prompt says does not matter to an oracle, but rows need different ones
        names = [zlib.crc32(f"{seed}/{each}".encode()) for each in row_ids]
        base = joint.symbols
        prompts = [[name // base**k % base for k in range(PROMPT)] for name in names]
        return Questions(engine, list(samples.values()), prompts, row_ids, budget=joint.positions)

    def read(self, task: Task, sample: Sample, output: Output) -> DecodedAnswer:
        assert isinstance(task, ExactDistribution)  # else it was never asked
        words = task.symbols(sample)
        text = task.write(sample, [words[token] for token in output.token_ids])
        return DecodedAnswer(text, list(range(len(output.token_ids))))


@lru_cache(maxsize=64)
def oracle_engine(form: str, n: int, jitter: float) -> Engine:
    """An engine without a tokenizer, whose symbols are those of `Joint.form(n)`."""
    joint = Joint.copy(n) if form in ONE_ANSWER else getattr(Joint, form)(n)
    return Engine(Oracle(joint, jitter=jitter, prompt_length=PROMPT))
