"""Prompts (text, messages or token ids, in whatever holds them) and their token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

from dllm.errors import DllmError
from dllm.text.codec import Message, TextCodec

Prompt = str | Sequence[Message] | Sequence[int]
Chat = bool | Literal["auto"]

EXPECTED = (
    'expected text, a list of messages ({"role": ..., "content": ...}) or token ids: a list, a '
    "tensor, an array or what a tokenizer returns"
)
# what tokenizers return beside ids, and no model of this package would see
TOKENIZED = {
    *("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"),
    *("offset_mapping", "length", "overflow_to_sample_mapping"),
}


def as_batch(prompts: Any) -> tuple[list[Prompt], bool]:
    """The prompts that a caller means, and whether that was a single one and no batch.

    Token ids may be a tensor or an array of one or two dimensions, or a tokenizer's BatchEncoding,
    whose padding is left out. Any iterable of prompts is a batch. DllmError for everything else.
    """
    if isinstance(prompts, str):
        return [prompts], True
    if _is_encoding(prompts):
        return _encoded(prompts, "prompts")
    items = _items(prompts, "prompts")
    first = items[0] if items else None
    is_one = _token_id(first) is not None or (
        isinstance(first, Mapping) and not _is_encoding(first)
    )
    if is_one or (not items and getattr(prompts, "ndim", 0) == 1):
        return [as_prompt(items)], True
    return [as_prompt(item, f"prompts[{i}]") for i, item in enumerate(items)], False


def as_prompt(prompt: Any, name: str = "prompt") -> Prompt:
    """One prompt as text, a list of messages or a list of ints; see `as_batch`. name: for errors"""
    if isinstance(prompt, str):
        return prompt
    if _is_encoding(prompt):
        rows, _ = _encoded(prompt, name)
        if len(rows) != 1:
            raise DllmError(f"{name}: expected one prompt, found a batch of {len(rows)}")
        return rows[0]
    if getattr(prompt, "ndim", 1) == 2 and len(prompt) == 1:  # as tokenizers return it
        prompt = prompt[0]
    items = _items(prompt, name)
    if items and isinstance(items[0], Mapping):
        if wrong := [item for item in items if not isinstance(item, Mapping)]:
            raise DllmError(f"{name} holds messages and {_shown(wrong[0])}: {EXPECTED}")
        return items
    return _ids(items, name)


def as_ids(prompts: Any) -> list[list[int]]:
    """Prompts that can only be token ids, in whatever holds them."""
    rows = enumerate(_items(prompts, "prompts"))
    return [_ids(_items(prompt, f"row {row}"), f"row {row}") for row, prompt in rows]


def as_row_ids(row_ids: Any, count: int) -> list[int]:
    """The identities of `count` rows in random draws: integers of 64 bits, in whatever holds them.

    None: their indices.
    """
    if row_ids is None:
        return list(range(count))
    expected = f"expected {count} integers of 64 bits, one for each prompt"
    found = _ids(_items(row_ids, "row_ids", expected), "row_ids", expected)
    if len(found) != count:
        raise DllmError(f"{len(found)} row_ids for {count} prompts: {expected}")
    if large := [number for number in found if not -(2**63) <= number < 2**63]:
        raise DllmError(f"row_ids holds {large[0]}: {expected}")
    return found


def check_text(prompt: str) -> None:
    """DllmError for a blank text, which asks nothing; no token ids at all may be a prompt."""
    if not prompt.strip():
        raise DllmError(f"prompt {prompt!r}: expected text, found none")


def encode_prompt(text: TextCodec | None, prompt: Any, chat: Chat = "auto") -> list[int]:
    """Token ids of a prompt. chat: wrap text in the chat template ("auto": if there is one)."""
    if not (isinstance(chat, bool) or chat == "auto"):
        raise DllmError(f'{chat=}: expected True, False or "auto"')
    prompt = as_prompt(prompt)
    if not isinstance(prompt, str) and not (prompt and isinstance(prompt[0], Mapping)):
        return list(prompt)
    if isinstance(prompt, str):
        check_text(prompt)
    if text is None:
        raise DllmError("this engine has no tokenizer: give prompts as lists of token ids")
    if not isinstance(prompt, str):
        return text.chat(prompt)
    if chat is True or (chat == "auto" and text.has_chat_template):
        return text.chat([{"role": "user", "content": prompt}])
    return text.encode(prompt)


def _is_encoding(value: Any) -> bool:
    return isinstance(value, Mapping) and "input_ids" in value


def _encoded(encoding: Mapping[str, Any], name: str) -> tuple[list[Prompt], bool]:
    """The rows of what a tokenizer returned, without padding, and whether it is a single one."""
    if unknown := sorted(set(encoding) - TOKENIZED):
        raise DllmError(f"{name}: {unknown[0]!r} is nothing that these models take, ids alone are")
    given = encoding["input_ids"]
    items = _items(given, f"{name}.input_ids")
    single = bool(items) and _token_id(items[0]) is not None
    rows = as_ids([items] if single else items)
    mask = encoding.get("attention_mask")
    if mask is not None:
        masks = [mask] if single else _items(mask, f"{name}.attention_mask")
        if len(masks) != len(rows):
            raise DllmError(f"{name}: {len(masks)} rows of attention_mask for {len(rows)} prompts")
        rows = [_unpadded(ids, row, name) for ids, row in zip(rows, masks, strict=True)]
    return list(rows), single


def _unpadded(ids: list[int], mask: Any, name: str) -> list[int]:
    """The ids at which a row's attention mask is not 0, which may be so at its ends only."""
    try:
        seen = [bool(each) for each in mask]
    except (TypeError, ValueError, RuntimeError):
        seen = []
    if len(seen) != len(ids):
        raise DllmError(f"{name}: expected an attention_mask with a number for each of its ids")
    kept = [i for i, each in enumerate(seen) if each]
    if kept and kept[-1] - kept[0] + 1 != len(kept):
        raise DllmError(f"{name}: attention_mask hides tokens inside a prompt, not padding alone")
    return [ids[i] for i in kept]


def _items(value: Any, name: str, expected: str = EXPECTED) -> list[Any]:
    """What a list, a tensor, an array or another iterable holds; DllmError where order has none."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    has_items = isinstance(value, Iterable)
    if not has_items or isinstance(value, (str, bytes, bytearray, memoryview, Mapping, Set)):
        raise DllmError(f"{name}={_shown(value)}: {expected}")
    return list(value)


def _ids(items: list[Any], name: str, expected: str = EXPECTED) -> list[int]:
    ids = [_token_id(item) for item in items]
    for item, token in zip(items, ids, strict=True):
        if token is None:
            raise DllmError(f"{name} holds {_shown(item)}: {expected}")
    return ids  # type: ignore[return-value]


def _token_id(value: Any) -> int | None:
    """An int, also one of numpy or in a tensor without dimensions; None if it is none."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
