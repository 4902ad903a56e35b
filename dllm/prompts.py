"""What a prompt may be (text, messages, token ids), and how each becomes token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from dllm.errors import DllmError

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]
Chat = bool | Literal["auto"]


class ChatCodec(Protocol):
    """Text to ids, with a chat template; dllm.text.Text is one."""

    @property
    def has_chat_template(self) -> bool: ...
    def encode(self, text: str) -> list[int]: ...
    def chat(self, messages: Sequence[Message]) -> list[int]: ...


def as_batch(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """A list of prompts, and whether the caller gave a single one. Tensors and arrays are ids."""
    if isinstance(prompts, str):
        return [prompts], True
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if prompts and isinstance(prompts[0], (int, Mapping)):
        return [prompts], True  # type: ignore[list-item]
    return list(prompts), False  # type: ignore[arg-type]


def encode_prompt(text: ChatCodec | None, prompt: Prompt, chat: Chat = "auto") -> list[int]:
    """Token ids of a prompt. chat: wrap text in the chat template ("auto": if there is one)."""
    if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
        return [int(item) for item in prompt]  # type: ignore[arg-type]
    if text is None:
        raise DllmError("this engine has no tokenizer: give prompts as lists of token ids")
    if not isinstance(prompt, str):
        return text.chat(prompt)  # type: ignore[arg-type]
    if chat is True or (chat == "auto" and text.has_chat_template):
        return text.chat([{"role": "user", "content": prompt}])
    return text.encode(prompt)
