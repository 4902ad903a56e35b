"""Roll-outs of EGP, the oracle that commits whatever is right: what Learn2PD's filter learns from.

The references are the model's own answers, decoded one token a forward (2509.25188).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from dllm.checks import check_whole
from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.eval.run import batches
from dllm.output import Output
from dllm.samplers.candidates import Candidates
from dllm.samplers.egp import ExtremelyGreedy
from dllm.samplers.learn2pd import by_offset, confidences
from dllm.samplers.rule import Selection
from dllm.train.data import TrainingPair


@dataclass(frozen=True, slots=True)
class Traces:
    """The filter's inputs and labels at N steps of roll-outs, W offsets of a window each.

    seen [N, W] fp32: see `confidences`;  right [N, W] bool: the proposal is the reference's token;
    counted [N, W] bool: the candidates, on which alone the filter is asked;  row [N]: the prompt.
    """

    seen: Tensor
    right: Tensor
    counted: Tensor
    row: Tensor

    @property
    def size(self) -> int:
        return self.seen.numel()

    def pick(self, index: Tensor) -> Traces:
        """The steps `index`, by number or as a mask [N]."""
        return Traces(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Traces]) -> Traces:
        """All steps of `parts`, by row; those of a row stay in order."""
        columns = [[getattr(part, f.name) for part in parts] for f in fields(cls)]
        every = cls(*map(torch.cat, columns))
        return every.pick(every.row.argsort(stable=True))


@dataclass(frozen=True)
class RecordingOracle(ExtremelyGreedy):
    """EGP that keeps what the filter of a `block_length` sees at every step, in `steps`."""

    block_length: int
    steps: list[Traces] = field(init=False, repr=False, compare=False, default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"best", "decoded"})

    def select(self, view: Candidates) -> Selection:
        selection = super().select(view)
        assert selection.token is not None  # the reference's
        seen = confidences(view, self.block_length)
        none = torch.zeros_like(seen, dtype=torch.bool)
        right, counted = (
            by_offset(view, none, view.pos, view.valid, value)
            for value in (view.token == selection.token, view.valid)
        )
        self.steps.append(Traces(*(t.cpu() for t in (seen, right, counted, view.row))))
        return selection


@dataclass(frozen=True)
class OracleRollout:
    """EGP in windows of `block_length` tokens, `max_new_tokens` behind each prompt, with `cache`.

    Its references and roll-outs are decoded `batch_size` prompts at once.
    """

    block_length: int
    max_new_tokens: int
    batch_size: int
    cache: str = "none"

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, 1)

    @property
    def config(self) -> DecodeConfig:
        """Decoding of the references; greedy."""
        return DecodeConfig(
            max_new_tokens=self.max_new_tokens,
            block_length=self.block_length,
            sampler="quota",
            cache=self.cache,
            history=True,
        )

    def references(
        self, engine: Engine, prompts: Sequence[Sequence[int]]
    ) -> Iterator[TrainingPair]:
        """Each prompt with `max_new_tokens` ids, as decoded one token a forward; places that were
        still open when the answer had ended hold the end of text.
        """
        end = engine.model.spec.eos_id
        for batch in batches(prompts, self.batch_size):
            for prompt, output in zip(batch, decoded(engine, batch, self.config), strict=True):
                answer = [end] * self.max_new_tokens
                for commit in output.history or ():
                    for pos, token in zip(commit.positions, commit.token_ids, strict=True):
                        answer[pos - len(prompt)] = token
                yield TrainingPair(list(prompt), answer)

    def roll_outs(self, engine: Engine, references: Sequence[TrainingPair]) -> Traces:
        """Traces of the oracle that knows all `references`, by their number and by step."""
        answers = tuple(tuple(pair.answer) for pair in references)
        oracle = RecordingOracle(answers, self.block_length)
        config = self.config.replace(sampler=oracle, history=False)
        for rows in batches(range(len(references)), self.batch_size):
            decoded(engine, [references[row].prompt for row in rows], config, rows)
        return Traces.joined(oracle.steps)


def decoded(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    row_ids: Sequence[int] | None = None,
) -> list[Output]:
    """Outputs of all prompts; KeyboardInterrupt where Ctrl-C cut one short."""
    outputs: list[Output] = engine.generate(list(prompts), config, row_ids=row_ids)
    if any(output.finish_reason == "interrupted" for output in outputs):
        raise KeyboardInterrupt
    return outputs
