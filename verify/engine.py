"""What a user holds: an AR target, a drafter, texts in, `SpecOutput`s out. The loop is in loop.py.

stream (rounds) -> generate (outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dllm.errors import DllmError
from dllm.prompts import Chat, as_batch, as_ids, encode_prompt
from dllm.text import Text
from dllm.verify.config import PartsCache, SpecConfig
from dllm.verify.loop import Request, Round, RowRound, speculate
from dllm.verify.protocol import Drafter, Target
from dllm.verify.rng import TorchRng

FinishReason = Literal["eos", "stop", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class SpecOutput:
    """The result of one prompt.

    text: the answer, cut where a stop string begins.  token_ids: its tokens, without the end token
    or those that reach into the stop string.  rounds: one per pass of the target, in order.
    target_passes, drafter_passes: those this row took part in.  seconds: of those rounds, all rows
    of the batch together.  lossless: whether the acceptance rule leaves the target's law as it is.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    rounds: tuple[RowRound, ...]
    seconds: float
    rule: str
    lossless: bool

    @property
    def emitted(self) -> int:
        """Tokens that the target's passes gave, the one that ended the text included."""
        return sum(len(each.tokens) for each in self.rounds)

    @property
    def target_passes(self) -> int:
        return len(self.rounds)

    @property
    def drafter_passes(self) -> int:
        return sum(each.depth > 0 for each in self.rounds)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens emitted per pass of the target; plain decoding has 1."""
        return self.emitted / max(1, self.target_passes)

    @property
    def accepted_per_round(self) -> float:
        """Draft tokens accepted per pass of the target: passes saved."""
        return sum(each.accepted for each in self.rounds) / max(1, self.target_passes)


class SpecEngine:
    """A target, the tokenizer of both, and a drafter (None: model-free sources only)."""

    def __init__(
        self,
        target: Target,
        text: Text | None = None,
        drafter: Drafter | None = None,
        eos: Sequence[int] = (),
    ) -> None:
        """`eos`: the target's end tokens."""
        self.target, self.text, self.drafter, self.eos = target, text, drafter, frozenset(eos)
        self.parts = PartsCache()

    def config(self, config: SpecConfig | None = None, **options: Any) -> SpecConfig:
        """`config` with `options` put over it."""
        return (config or SpecConfig()).replace(**options)

    def stream(
        self, prompts: Sequence[Sequence[int]], config: SpecConfig | None = None, **options: Any
    ) -> Iterator[Round]:
        """Decode token ids together; a `Round` after every pass of the target."""
        config = self.config(config, **options)
        if config.stop and self.text is None:
            raise DllmError(f"stop={config.stop!r}: this engine has no tokenizer to find them with")
        parts = self.parts.of(config)
        requests = [self.request(row, ids, config) for row, ids in enumerate(as_ids(prompts))]
        yield from speculate(self.target, self.drafter, requests, parts)

    def generate(
        self,
        prompts: Any,
        config: SpecConfig | None = None,
        *,
        chat: Chat = "auto",
        on_round: Callable[[Round], None] | None = None,
        **options: Any,
    ) -> Any:
        """Decode one prompt to a SpecOutput, or a list of prompts, together, to a list of them.

        A prompt is text, a list of messages ({"role", "content"}) or token ids: a list, a tensor,
        an array, or what a tokenizer returned. chat: wrap text in the chat template ("auto": if
        there is one). on_round: is given every round.
        Options are SpecConfig's fields; an unknown one is an error. Ctrl-C returns what is emitted
        so far.
        """
        config = self.config(config, **options)
        batch, single = as_batch(prompts)
        ids = [encode_prompt(self.text, prompt, chat) for prompt in batch]
        rounds: list[list[RowRound]] = [[] for _ in batch]
        seconds = [0.0] * len(batch)
        try:
            for each in self.stream(ids, config):
                for row in each.rows:
                    rounds[row.row].append(row)
                    seconds[row.row] += each.draft + each.verify + each.host
                if on_round is not None:
                    on_round(each)
        except KeyboardInterrupt:
            pass
        outputs = [self.output(*of, config) for of in zip(rounds, seconds, strict=True)]
        return outputs[0] if single else outputs

    def request(self, row: int, ids: Sequence[int], config: SpecConfig) -> Request:
        """One row as the loop wants it. Its draws depend on the seed and its number alone."""
        vocab = self.target.vocab_size
        if not ids:
            raise DllmError(f"row {row}: an empty prompt; the target needs at least one token")
        if outside := [token for token in ids if not 0 <= token < vocab]:
            raise DllmError(
                f"row {row}: token id {outside[0]} is outside the target's vocabulary [0, {vocab})"
            )
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + row)
        return Request(
            ids=list(ids),
            room=config.max_new_tokens,
            rng=TorchRng(generator),
            ended=lambda emitted: self.ended(emitted, config.stop),
            process=warper(config),
        )

    def ended(self, emitted: Sequence[int], stop: Sequence[str]) -> FinishReason | None:
        """Why a text is finished with these tokens, if it is."""
        if emitted[-1] in self.eos:
            return "eos"
        if stop and self.text is not None:
            text = self.text.decode(emitted)
            if any(string in text for string in stop):
                return "stop"
        return None

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text."""
        if self.text is None:
            raise DllmError("this engine has no tokenizer, so there is no text to show")
        texts = [self.text.decode(ids[:end]) for end in range(len(ids) + 1)]
        return [after[len(before) :] for before, after in pairwise(texts)]

    def output(self, rounds: Sequence[RowRound], seconds: float, config: SpecConfig) -> SpecOutput:
        """What the rounds of a row came to."""
        ids = [token for each in rounds for token in each.tokens]
        reason: Any = rounds[-1].finish_reason if rounds else None
        if reason == "eos":
            ids = ids[:-1]
        text = self.text.decode(ids) if self.text is not None else ""
        if reason == "stop":
            text = text[: min(at for s in config.stop if (at := text.find(s)) >= 0)]
            ids = self.within(ids, text)
        rule = self.parts.of(config).rule
        return SpecOutput(
            text=text,
            token_ids=ids,
            finish_reason=reason or "interrupted",
            rounds=tuple(rounds),
            seconds=seconds,
            rule=type(rule).__name__.lower(),
            lossless=rule.lossless,
        )

    def within(self, ids: list[int], text: str) -> list[int]:
        """The longest run of tokens from the start that says no more than `text`."""
        assert self.text is not None
        while ids and not text.startswith(self.text.decode(ids)):
            ids = ids[:-1]
        return ids


def warper(config: SpecConfig) -> Any:
    """The change of logits that temperature, top_k and top_p ask for; None for greedy decoding."""
    if config.temperature == 0:
        return None
    warpers = LogitsProcessorList()
    if config.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        warpers.append(TopPLogitsWarper(float(config.top_p)))

    def process(emitted: Sequence[int], logits: Tensor) -> Tensor:
        ids: Any = None  # none of these looks at the text
        changed: Tensor = warpers(ids, logits[None])
        return changed[0]

    return process if len(warpers) else None
