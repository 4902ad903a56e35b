"""Protocol of what turns text into token ids and back: dllm.text.tokenizer.ChatTokenizer is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

Message = Mapping[str, str]  # {"role": ..., "content": ...}


class TextCodec(Protocol):
    """Text to ids and back; `chat` gives those of a conversation, where there is a template."""

    @property
    def has_chat_template(self) -> bool: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def chat(self, messages: Sequence[Message]) -> list[int]: ...
