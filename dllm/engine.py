"""Public engine API: prompts in, events or Outputs out. The loop itself is dllm.decoding.step.

stream_steps (ids) -> stream (text) -> generate (Outputs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from dllm.config import AUTO, ConfigError, DecodeConfig
from dllm.decoding.canvas import Prefilled
from dllm.decoding.driving import drive
from dllm.decoding.step import DecodeError, Decoding
from dllm.models.protocol import Model
from dllm.output import Events, Output
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
        rows that are left with finish_reason "interrupted". Raises DecodeError.
        """
        prompts = as_ids(prompts)
        row_ids = as_row_ids(row_ids, len(prompts))
        self._check(prompts, config, prefilled)
        if not prompts:
            return
        decoding = Decoding(self.model, self.text, prompts, config, row_ids, prefilled)
        try:
            yield from decoding.events
            while decoding.active:
                decoding.step()
                yield from decoding.events
        except KeyboardInterrupt:
            decoding.interrupt()
            yield from decoding.events

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

    def encode(self, prompt: Any, chat: Chat = "auto") -> list[int]:
        """Token ids of a prompt; see `generate` for what it may be."""
        return encode_prompt(self.text, prompt, chat)

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        prefilled: Sequence[Prefilled] | None,
    ) -> None:
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
