"""Public engine API: prompts in, events or Outputs out. The loop itself is dllm.decoding.step.

stream_steps (ids) -> stream (text) -> generate (Outputs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from dllm.checks import check_whole
from dllm.config import AUTO, ConfigError, DecodeConfig
from dllm.decoding.canvas import Prefilled
from dllm.decoding.driving import drive
from dllm.decoding.rows import DecodeRequest
from dllm.decoding.speculation import SpeculatingBatch
from dllm.decoding.step import DecodeError
from dllm.models.protocol import Model
from dllm.output import Event, Events, Output
from dllm.presets import TUNED, preset_options
from dllm.text.codec import TextCodec
from dllm.text.prompts import Chat, as_batch, as_ids, as_row_ids, encode_prompt


class Engine:
    """A model and its tokenizer, ready to decode. `dllm.load` makes one."""

    def __init__(
        self,
        model: Model,
        text: TextCodec | None = None,
        tuned: Mapping[str, Any] | None = None,
    ) -> None:
        """`tuned` are the options behind sampler="auto"."""
        self.model, self.text, self.tuned = model, text, tuned

    def config(
        self, config: DecodeConfig | None = None, *, preset: str | None = None, **options: Any
    ) -> DecodeConfig:
        """`config` with a preset (a name or a .json file) and then `options` put over it.

        sampler="auto" becomes what `dllm tune` found for this model. Raises ConfigError.
        """
        config = config or DecodeConfig()
        if preset is not None:
            config = config.replace(**preset_options(preset, self.model.spec.family))
        config = config.replace(**options)
        if config.sampler != AUTO:
            return config
        if self.tuned is None:
            raise ConfigError(
                "sampler='auto': this model is not tuned; run `dllm tune` and put the file it "
                f"writes into the model's directory as {TUNED}, or give it as the preset"
            )
        return config.replace(**self.tuned)

    def stream_steps(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        *,
        row_ids: Sequence[int] | None = None,
        prefilled: Sequence[Prefilled] | None = None,
    ) -> Events:
        """Decode token ids; yield Started, Commit and Finished events of all rows as they happen.

        row_ids: the identity of each row in random draws (default: its index), so that a row
        samples the same alone, in a batch, or on another machine. prefilled: by row, (offset behind
        the prompt, token ids) that stand in its answer from the start. KeyboardInterrupt ends the
        rows that are left with finish_reason "interrupted". A row that cannot go on (its logits are
        no numbers) ends alone with finish_reason "error"; DecodeError names all of them once the
        other rows have ended.
        """
        prompts = as_ids(prompts)
        row_ids = as_row_ids(row_ids, len(prompts))
        self.check(prompts, config, prefilled)
        if not prompts:
            return
        longest = max(map(len, prompts)) + config.max_new_tokens
        batch = SpeculatingBatch(self.model, self.text, config, len(prompts), longest)
        stands = prefilled or [()] * len(prompts)
        ids = row_ids or range(len(prompts))
        own = zip(prompts, ids, stands, strict=True)
        batch.join([DecodeRequest(prompt, config, row_id, stand) for prompt, row_id, stand in own])
        try:
            yield from batch.events
            while batch.active:
                batch.step()
                yield from batch.events
        except KeyboardInterrupt:
            batch.interrupt()
            yield from batch.events
        if batch.failed:  # the other rows went on to their ends
            raise DecodeError("; ".join(batch.failed))

    def stream(
        self,
        prompts: Any,
        config: DecodeConfig | None = None,
        *,
        chat: Chat = "auto",
        row_ids: Sequence[int] | None = None,
        **options: Any,
    ) -> Events:
        """Decode text, messages or ids; events and row_ids as in `stream_steps`.

        Prompts, chat and options are those of `generate`.
        """
        config = self.config(config, **options)
        batch, _ = as_batch(prompts)
        ids = [self.encode(prompt, chat) for prompt in batch]
        yield from self.stream_steps(ids, config, row_ids=row_ids)

    @overload
    def generate(
        self, prompts: str, config: DecodeConfig | None = ..., **options: Any
    ) -> Output: ...
    @overload
    def generate(self, prompts: Any, config: DecodeConfig | None = ..., **options: Any) -> Any: ...
    def generate(
        self,
        prompts: Any,
        config: DecodeConfig | None = None,
        *,
        chat: Chat = "auto",
        row_ids: Sequence[int] | None = None,
        **options: Any,
    ) -> Output | list[Output]:
        """Decode one prompt to an Output, or a list of prompts to a list of Outputs.

        A prompt is text, a list of messages ({"role", "content"}) or token ids: a list, a tensor,
        an array, or what a tokenizer returned. chat: wrap text in the chat template ("auto": if
        there is one). row_ids: see `stream_steps`.
        Options are `preset` (see `config`) and DecodeConfig's fields; an unknown one is an error.
        Ctrl-C returns what is committed so far.
        """
        batch, single = as_batch(prompts)
        events = self.stream(batch, config, chat=chat, row_ids=row_ids, **options)
        done, _ = drive(events)
        if len(done) < len(batch):
            raise KeyboardInterrupt
        return done[0] if single else [done[row] for row in range(len(batch))]

    def batch(
        self, rows: int, length: int, config: DecodeConfig | None = None, **options: Any
    ) -> LiveBatch:
        """An empty batch that prompts can join and leave while it runs.

        rows: most prompts at a time; length: most positions of each, prompt and answer. Options:
        cache, cache_mib, cfg_scale and buckets are those of all rows; each prompt may bring others
        of its own.
        """
        check_whole("rows", rows, 1)
        check_whole("length", length, 2)
        return LiveBatch(self, rows, length, self.config(config, **options))

    def encode(self, prompt: Any, chat: Chat = "auto") -> list[int]:
        """Token ids of a prompt; see `generate` for what it may be."""
        return encode_prompt(self.text, prompt, chat)

    def check(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        prefilled: Sequence[Prefilled] | None,
    ) -> None:
        """DecodeError where ids or lengths do not fit the model."""
        if prefilled is not None and len(prefilled) != len(prompts):
            raise DecodeError(f"{len(prefilled)} prefilled for {len(prompts)} prompts")
        vocab, most = self.model.spec.vocab_size, getattr(self.model.spec, "max_positions", None)
        for row, prompt in enumerate(prompts):
            stands = [token for _, ids in (prefilled[row] if prefilled else ()) for token in ids]
            outside = [token for token in (*prompt, *stands) if not 0 <= token < vocab]
            if outside:
                raise DecodeError(
                    f"row {row}: token id {outside[0]} is outside the vocabulary [0, {vocab})"
                )
            size = len(prompt) + config.max_new_tokens
            if most is not None and size > most:
                raise DecodeError(
                    f"row {row}: {len(prompt)} prompt tokens and max_new_tokens="
                    f"{config.max_new_tokens} need {size} positions; the model has {most}"
                )


class LiveBatch:
    """A running batch: prompts join, step together and leave; each is what it would be alone.

    `Engine.batch` makes one. A prompt whose logits are no numbers ends alone, with finish_reason
    "error".
    """

    def __init__(self, engine: Engine, rows: int, length: int, config: DecodeConfig) -> None:
        self.engine, self.config = engine, config
        self._batch = SpeculatingBatch(engine.model, engine.text, config, rows, length)

    @property
    def active(self) -> Sequence[int]:
        """Numbers of the prompts that are being decoded."""
        return self._batch.active

    @property
    def free(self) -> int:
        """How many prompts may join now."""
        return self._batch.places - len(self._batch.active)

    def add(
        self,
        prompt: Any,
        *,
        chat: Chat = "auto",
        row_id: int | None = None,
        prefilled: Prefilled = (),
        **options: Any,
    ) -> int:
        """Let one prompt join, from the next step on; its number, which its events carry.

        The arguments are those of `Engine.generate` and `stream_steps`; options are put over the
        batch's. Raises ConfigError or DecodeError, and then the batch is as before.
        """
        config = self.engine.config(self.config, **options)
        ids = self.engine.encode(prompt, chat)
        self.engine.check([ids], config, [prefilled])
        return self._batch.join([DecodeRequest(ids, config, row_id, prefilled)])[0]

    def cancel(self, number: int) -> None:
        """End a prompt with what is committed so far; nothing if it has ended."""
        self._batch.cancel(number)

    def step(self) -> list[Event]:
        """One forward for all prompts, if there are any; the events since the last call."""
        if self._batch.active:
            self._batch.step()
        self._batch.failed.clear()  # each stands in its row's output
        return list(self._batch.events)
