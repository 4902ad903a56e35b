"""Strings to token ids and back: a checkpoint's tokenizer and chat format, without remote code.

Knows tokenizer files and chat templates; knows no model and no canvas. transformers is imported
only for a tokenizer without tokenizer.json.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from dllm.errors import DllmError, LoadError
from dllm.files import is_stream, read_json
from dllm.tensors import check_file
from dllm.text.fast_tokenizer import FastTokenizer
from dllm.text.templates import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dllm.models.protocol import TokenIds

AnyTokenizer: TypeAlias = "FastTokenizer | PreTrainedTokenizerBase"
Messages = Sequence[Mapping[str, str]]  # {"role": ..., "content": ...}

SURROGATE = re.compile("[\ud800-\udfff]")
TEXTS = (".json", ".jinja", ".model", ".txt")  # what a tokenizer's files are called
LARGEST = 2**28  # bytes of one: seven times the largest known
REASONING = ("reasoning_content", "thinking", "reasoning")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
EXPECTED = "tokenizer.json, or vocab.json with merges.txt"
REMOTE_QWEN = ("DreamTokenizer",)  # remote-code classes that are Qwen2's tokenizer, copied


def llada_chat(messages: Messages, bos: str) -> str:
    """LLaDA's format: a header line per message; bos once; always ends as the assistant's turn."""
    turns = (
        f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content'].strip()}<|eot_id|>"
        for m in messages
    )
    return bos + "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def chatml(messages: Messages, bos: str) -> str:
    """ChatML, as Qwen3 and Fast-dLLM v2 use it; it has no bos."""
    turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def dream_chat(messages: Messages, bos: str) -> str:
    """ChatML with Dream's default system line where the messages bring none."""
    if messages[0]["role"] != "system":
        default = {"role": "system", "content": "You are a helpful assistant."}
        messages = [default, *messages]
    return chatml(messages, bos)


CHAT_FORMATS: dict[str, tuple[Callable[[Messages, str], str], tuple[str, ...]]] = {
    # family -> its published format, and the tokens without which it would be plain text
    "llada": (llada_chat, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "dream": (dream_chat, ("<|im_start|>", "<|im_end|>")),
    "fast_dllm_v2": (chatml, ("<|im_start|>", "<|im_end|>")),
    "sdar": (chatml, ("<|im_start|>", "<|im_end|>")),
}


class ChatTokenizer:
    """Tokenizer and chat format of one checkpoint; see `load_text`."""

    def __init__(self, tokenizer: AnyTokenizer, family: str) -> None:
        self.tokenizer = tokenizer
        self.family = family

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added. A special token typed in the text becomes its id.

        DllmError where the text holds half of a surrogate pair, which is no character.
        """
        if half := SURROGATE.search(text):
            place, code = half.start(), half[0].encode("unicode-escape").decode()
            raise DllmError(
                f"character {place} of the text is {code}, half of a surrogate pair: no UTF-8"
            )
        return cast(list[int], self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`, spaces untouched."""
        text = self.tokenizer.decode(
            list(ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return cast(str, text)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works: a template in the checkpoint, or its family's format fits."""
        return bool(self.tokenizer.chat_template) or self._family_format() is not None

    def chat(self, messages: Messages) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins; see `render`."""
        return self.encode(self.render(messages))

    def render(self, messages: Messages) -> str:
        """Text of a conversation up to where the assistant's answer begins.

        The checkpoint's own template decides, else the format its family published. No bos is added
        beside the one the template may write. Raises DllmError for malformed messages, or for a
        base model, which has no chat format.
        """
        _check_messages(messages)
        if self.tokenizer.chat_template:
            return self._render(messages)
        if (published := self._family_format()) is not None:
            return published(messages, self.tokenizer.bos_token or "")
        raise DllmError(
            f"this {self.family} checkpoint has no chat template (a base model?): "
            "give the prompt as plain text instead of messages"
        )

    def answer(self, messages: Messages | None, reply: str) -> list[int]:
        """Ids of `reply` as the assistant's turn behind `messages` (None: behind plain text).

        A template may put something before it, a space for one.
        """
        if messages is not None and self.tokenizer.chat_template:
            turn = {"role": "assistant", "content": reply}
            before, whole = self._render(messages), self._render([*messages, turn], begin=False)
            if whole.startswith(before) and (at := whole.find(reply, len(before))) >= 0:
                reply = whole[len(before) : at + len(reply)]
        return self.encode(reply)

    def _render(self, messages: Messages, begin: bool = True) -> str:
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of them the default
            raise DllmError(str(error)) from error
        values = {
            **self.tokenizer.special_tokens_map,
            "messages": [_as_template_sees(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": begin,
        }
        return render(template, values)

    def _family_format(self) -> Callable[[Messages, str], str] | None:
        published, needed = CHAT_FORMATS.get(self.family, (None, ()))
        vocab = self.tokenizer.get_vocab()
        return published if all(token in vocab for token in needed) else None


def _as_template_sees(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers gives it to a template: without Nones; reasoning under all names
    that templates know it by.
    """
    found = {key: value for key, value in message.items() if value is not None}
    for name in REASONING:
        if name in found:
            return {"thinking": found[name], **found, "reasoning_content": found[name]}
    return found


def has_tokenizer(path: str | os.PathLike[str]) -> bool:
    """Whether the checkpoint directory `path`, or the base of an adapter in it, has a tokenizer."""
    from dllm.models.adapter_files import TOKENIZERS, tokenizer_folder  # late: it needs torch

    folder = tokenizer_folder(Path(path))
    return any((folder / name).exists() for name in TOKENIZERS)


def load_text(path: str | os.PathLike[str], spec: TokenIds) -> ChatTokenizer:
    """Tokenizer of the checkpoint directory `path`, checked against the model's `spec`.

    The directory of an adapter may leave it to its base.
    Raises LoadError if there is no tokenizer that can be built without remote code, or if its mask,
    end of sequence or size contradict the model.
    """
    from dllm.models.adapter_files import tokenizer_folder  # late: it needs torch

    folder = tokenizer_folder(Path(path))
    tokenizer = load_tokenizer(folder)
    mask = tokenizer.mask_token_id
    if mask is not None and mask != spec.mask_id:
        raise LoadError(
            f"{folder}: the tokenizer's mask token {tokenizer.mask_token!r} is id {mask}, but the "
            f"model's mask_id is {spec.mask_id}"
        )
    eos = tokenizer.eos_token_id
    # padding is not compared: DiffuCoder and Fast-dLLM v2 pad with an id that their model does not
    if eos is not None and eos not in spec.stop_ids:
        raise LoadError(
            f"{folder}: the tokenizer ends with {tokenizer.eos_token!r}, id {eos}, but the model "
            f"with one of {list(spec.stop_ids)}"
        )
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= spec.vocab_size:
        raise LoadError(
            f"{folder}: the tokenizer has ids up to {highest}, but the model only "
            f"{spec.vocab_size} tokens"
        )
    return ChatTokenizer(tokenizer, spec.family)


def _check_messages(messages: Messages) -> None:
    shape = 'a non-empty list like [{"role": "user", "content": "..."}]'
    if isinstance(messages, (str, Mapping)) or not messages:
        raise DllmError(f"messages={messages!r}: expected {shape}")
    for message in messages:
        ok = isinstance(message, Mapping) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not ok:
            raise DllmError(f"message {message!r}: expected {shape}")


def load_tokenizer(folder: Path) -> AnyTokenizer:
    """The first that applies, none of which runs code of the checkpoint; LoadError if none does.

    tokenizer.json describes itself, so it goes first whatever class the configuration names
    (LLaDA, SDAR, Fast-dLLM v2). Dream ships vocab.json and merges.txt under a remote class that is
    Qwen2's. Anything else is left to transformers.
    """
    for file in folder.iterdir() if folder.is_dir() else ():
        _check_file(file)  # transformers opens whatever it finds, a pipe too
    there = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    for file in there:
        check_file(file, error=LoadError)
    if not there:  # transformers would warn of a model it does not know before it says so
        raise LoadError(f"{folder}: no tokenizer; expected {EXPECTED}")

    try:
        if (folder / "tokenizer.json").is_file():
            return FastTokenizer(folder)
        return _by_transformers(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        reason = str(error).partition("\n")[0]
        raise LoadError(
            f"{folder}: no tokenizer that works without remote code ({reason}); expected {EXPECTED}"
        ) from error


def _by_transformers(folder: Path) -> PreTrainedTokenizerBase:
    """What has no tokenizer.json."""
    from transformers import AutoTokenizer, Qwen2Tokenizer

    kind: Any = Qwen2Tokenizer if _declared_class(folder) in REMOTE_QWEN else AutoTokenizer
    loaded = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return cast("PreTrainedTokenizerBase", loaded)


def _check_file(file: Path) -> None:
    """LoadError for a pipe or a device, and for a text that is too large to be a tokenizer's."""
    if is_stream(file):
        raise LoadError(f"{file}: expected a regular file, found a pipe or a device")
    if file.suffix in TEXTS and file.is_file() and file.stat().st_size > LARGEST:
        raise LoadError(f"{file}: expected at most {LARGEST / 2**20:.0f} MiB")


def _declared_class(folder: Path) -> object:
    settings = folder / "tokenizer_config.json"
    return read_json(settings).get("tokenizer_class") if settings.is_file() else None
