"""Engine of speculative decoding: an AR target, a drafter, texts in, `SpecOutput`s out.

rounds (ids) -> stream (events) -> generate (outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from dllm.decoding.driving import drive
from dllm.errors import DllmError
from dllm.output import FinishReason
from dllm.text.prompts import Chat, as_batch, as_ids, as_row_ids, encode_prompt
from dllm.text.spelling import Speller
from dllm.text.tokenizer import ChatTokenizer
from dllm.verify.components import rule_name
from dllm.verify.config import ComponentsCache, SpecConfig
from dllm.verify.loop import Request, speculate
from dllm.verify.output import Round, RowRound, SpecEvents, SpecOutput, StandingRounds
from dllm.verify.protocol import Drafter
from dllm.verify.rng import TorchRng, row_seed
from dllm.verify.target.generation import TargetDecoding, own_decoding
from dllm.verify.target.model import HFTarget


class SpecEngine:
    """A target, the tokenizer of both, and a drafter (None: model-free sources only)."""

    def __init__(
        self, target: HFTarget, text: ChatTokenizer | None = None, drafter: Drafter | None = None
    ) -> None:
        self.target, self.text, self.drafter = target, text, drafter
        self.components = ComponentsCache()
        self.speller = Speller(text) if text else None

    @property
    def eos(self) -> frozenset[int]:
        """The target's end tokens, as its checkpoint has them."""
        return self.target.eos

    def config(self, config: SpecConfig | None = None, **options: Any) -> SpecConfig:
        """`config` with `options` put over it."""
        return (config or SpecConfig()).replace(**options)

    def decoding(self, prompts: Sequence[Sequence[int]], config: SpecConfig) -> TargetDecoding:
        """How the target decodes these prompts by itself; DllmError for what cannot be."""
        for row, ids in enumerate(prompts):
            self.check(row, ids)
        found = own_decoding(
            self.target.model,
            prompts,
            config.max_new_tokens,
            config.generate_options(),
            config.logits_processor,
            stop=config.stop,
        )
        if found.stop and self.text is None:
            raise DllmError(f"stop={found.stop!r}: this engine has no tokenizer to find them with")
        return found

    def rounds(
        self,
        prompts: Sequence[Sequence[int]],
        config: SpecConfig,
        *,
        row_ids: Sequence[int] | None = None,
        decoding: TargetDecoding | None = None,
    ) -> Iterator[Round]:
        """Decode token ids together; a `Round` after every pass of the target.

        row_ids: the identity of each row in random draws (default: its index), so that a row
        samples the same alone, in a batch, or on another machine.  decoding: the target's own, of
        these prompts (default: as `decoding` finds it).
        """
        prompts = as_ids(prompts)
        row_ids = as_row_ids(row_ids, len(prompts))
        found = decoding or self.decoding(prompts, config)
        components = self.components.of(config, found.sampled)
        if found.process is not None:
            found.process.check(drafts=self.drafter is not None or len(components.sources) > 0)
        requests = [
            self.request(ids, config, found, row_id)
            for ids, row_id in zip(prompts, row_ids, strict=True)
        ]
        rounds = speculate(self.target, self.drafter, requests, components, found.process)
        return self.components.watched(components, rounds)

    def stream(
        self,
        prompts: Any,
        config: SpecConfig | None = None,
        *,
        chat: Chat = "auto",
        row_ids: Sequence[int] | None = None,
        on_round: Callable[[Round], None] | None = None,
        **options: Any,
    ) -> SpecEvents:
        """Decode text, messages or ids; Started, RowRound and Finished events as they happen.

        KeyboardInterrupt ends the rows that are left with finish_reason "interrupted". Arguments
        are those of `generate`.
        """
        config = self.config(config, **options)
        batch, _ = as_batch(prompts)
        ids = [encode_prompt(self.text, prompt, chat) for prompt in batch]
        if not ids:
            return
        decoding = self.decoding(ids, config)
        output = partial(self.output, config=config, decoding=decoding)
        standing = StandingRounds.at_start(ids, config.max_new_tokens)
        try:
            rounds = self.rounds(ids, config, row_ids=row_ids, decoding=decoding)
            yield from standing.untold
            for each in rounds:
                standing = standing.after(each, output)
                yield from standing.untold
                if on_round is not None:
                    on_round(each)
        except KeyboardInterrupt:
            standing = standing.interrupted(output)
            yield from standing.untold

    def generate(
        self,
        prompts: Any,
        config: SpecConfig | None = None,
        *,
        chat: Chat = "auto",
        row_ids: Sequence[int] | None = None,
        on_round: Callable[[Round], None] | None = None,
        **options: Any,
    ) -> Any:
        """Decode one prompt to a SpecOutput, or a list of prompts, together, to a list of them.

        A prompt is text, a list of messages ({"role", "content"}) or token ids: a list, a tensor,
        an array, or what a tokenizer returned. chat: wrap text in the chat template ("auto": if
        there is one). row_ids: see `rounds`. on_round: is given every round. Options are
        SpecConfig's fields and further ones of the target's own decoding, put in place of its
        checkpoint's (`repetition_penalty=`, `min_p=`, ...); an unknown one is an error. Ctrl-C
        returns what is emitted so far.
        """
        batch, single = as_batch(prompts)
        asked: Any = {"chat": chat, "row_ids": row_ids, "on_round": on_round, **options}
        done, _ = drive(self.stream(batch, config, **asked))
        if len(done) < len(batch):
            raise KeyboardInterrupt
        return done[0] if single else [done[row] for row in range(len(batch))]

    def check(self, row: int, ids: Sequence[int]) -> None:
        """DllmError for a prompt that the target cannot read."""
        vocab = self.target.vocab_size
        if not ids:
            raise DllmError(f"row {row}: an empty prompt; the target needs at least one token")
        if outside := [token for token in ids if not 0 <= token < vocab]:
            raise DllmError(
                f"row {row}: token id {outside[0]} is outside the target's vocabulary [0, {vocab})"
            )

    def request(
        self, ids: Sequence[int], config: SpecConfig, decoding: TargetDecoding, row_id: int
    ) -> Request:
        """One row as the loop wants it. Its draws depend on the seed and `row_id` alone."""
        generator = torch.Generator().manual_seed(row_seed(config.seed, row_id))
        return Request(
            ids=list(ids),
            budget=config.max_new_tokens,
            rng=TorchRng(generator),
            ended=lambda emitted: self.ended(emitted, decoding),
        )

    def ended(self, emitted: Sequence[int], decoding: TargetDecoding) -> FinishReason | None:
        """Why a text is finished with these tokens, if it is."""
        if emitted[-1] in decoding.ends:
            return "eos"
        if decoding.stop and self.text is not None:
            text = self.text.decode(emitted)
            if any(string in text for string in decoding.stop):
                return "stop"
        return None

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text; a character of several is the piece of the last."""
        if self.speller is None:
            raise DllmError("this engine has no tokenizer, so there is no text to show")
        return self.speller.pieces(ids)

    def output(
        self,
        rounds: Sequence[RowRound],
        seconds: float,
        config: SpecConfig,
        decoding: TargetDecoding,
    ) -> SpecOutput:
        """What the rounds of a row came to."""
        ids = [token for each in rounds for token in each.tokens]
        reason: Any = rounds[-1].finish_reason if rounds else None
        if reason == "eos":
            ids = ids[:-1]
        text = self.text.decode(ids) if self.text is not None else ""
        if reason == "stop":
            text = text[: min(at for s in decoding.stop if (at := text.find(s)) >= 0)]
            ids = self.within(ids, text)
        rule = self.components.of(config, decoding.sampled).rule
        return SpecOutput(
            text=text,
            token_ids=ids,
            finish_reason=reason or "interrupted",
            rounds=tuple(rounds),
            seconds=seconds,
            rule=rule_name(rule),
            lossless=rule.lossless,
            decoding=decoding.applied,
        )

    def within(self, ids: list[int], text: str) -> list[int]:
        """The longest run of tokens from the start that says no more than `text`."""
        assert self.text is not None
        while ids and not text.startswith(self.text.decode(ids)):
            ids = ids[:-1]
        return ids
