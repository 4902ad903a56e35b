"""A tokenizer from its tokenizer.json alone, so that a short run need not import transformers.

It gives the ids, texts, special tokens and chat templates that transformers'
`PreTrainedTokenizerFast` reads out of the same files, under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from dllm.files import read_json, read_text

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # tokens that have a role


class FastTokenizer:
    """The tokenizer of a checkpoint directory. Raises FileError, ValueError or a bare Exception.

    chat_template: one template, several by name, or None.
    """

    def __init__(self, folder: Path) -> None:
        settings = _mapping(folder / "tokenizer_config.json")
        older = _mapping(folder / "special_tokens_map.json")  # transformers 4 wrote both
        self.name_or_path = str(folder)
        self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.special_tokens_map = {
            key: _content(value)
            for key in (f"{name}_token" for name in NAMED)
            if (value := settings.get(key, older.get(key))) is not None
        }
        more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
        more = more or older.get("additional_special_tokens") or ()
        special = [*self.special_tokens_map.values(), *map(_content, _values(more))]
        self.all_special_tokens = list(dict.fromkeys(special))
        added = [*_added(settings), *_added_by_hand(folder)]
        self._add(added, special)
        self.chat_template = _templates(folder, settings)

    def _add(self, added: Sequence[AddedToken], special: Sequence[str]) -> None:
        """Add what the tokenizer does not have as an added token yet, in this order."""
        known = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        for token in (*added, *(AddedToken(text, special=True) for text in special)):
            if token.content not in known:
                known.add(token.content)
                token.special = token.special or token.content in special
                self.backend.add_tokens([token])

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; special tokens typed in it become theirs."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of `ids`, spaces untouched."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones too, with its id."""
        vocab: dict[str, int] = self.backend.get_vocab()
        return vocab

    def get_chat_template(self) -> str:
        """The template of a conversation. ValueError: none, or several without a default."""
        if isinstance(self.chat_template, str):
            return self.chat_template
        names = sorted(self.chat_template or ())
        if self.chat_template and "default" in self.chat_template:
            return self.chat_template["default"]
        raise ValueError(f"several chat templates and no default: {names}")

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def mask_token(self) -> str | None:
        return self.special_tokens_map.get("mask_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id(self.eos_token)

    @property
    def mask_token_id(self) -> int | None:
        return self._id(self.mask_token)

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)


def _mapping(file: Path) -> Mapping[str, Any]:
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file.name}: expected a JSON object")
    return found


def _content(token: Any) -> str:
    """The text of a token, which files give as text or with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"a special token is {token!r:.99}: expected text")
    return text


def _values(tokens: Any) -> Sequence[Any]:
    return list(tokens.values()) if isinstance(tokens, dict) else tokens


def _added(settings: Mapping[str, Any]) -> Iterator[AddedToken]:
    """The tokens that tokenizer_config.json adds, by id."""
    decoder = settings.get("added_tokens_decoder", {})
    for number in sorted(decoder, key=int):
        flags = {key: value for key, value in decoder[number].items() if key != "__type"}
        yield AddedToken(**flags)


def _added_by_hand(folder: Path) -> Iterator[AddedToken]:
    """Those of added_tokens.json, which older checkpoints have instead."""
    numbers = _mapping(folder / "added_tokens.json")
    for text in sorted(numbers, key=numbers.__getitem__):
        yield AddedToken(text, special=False)


def _templates(folder: Path, settings: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Files of their own go before the configuration, which may hold several by name too."""
    file, more = folder / "chat_template.jinja", folder / "additional_chat_templates"
    found = {"default": read_text(file)} if file.is_file() else {}
    found |= {each.stem: read_text(each) for each in sorted(more.glob("*.jinja"))}
    if not found:
        listed: str | list[dict[str, str]] | None = settings.get("chat_template")
        if not isinstance(listed, list):
            return listed
        found = {each["name"]: each["template"] for each in listed}
    return found["default"] if found.keys() == {"default"} else found
