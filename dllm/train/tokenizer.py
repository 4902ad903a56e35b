"""The bundled model's tokenizer: whole words, single digits and punctuation, with byte fallback.

A word and the space before it are one token, so that an item is the same token wherever it stands.
Words outside the vocabulary fall apart into bytes; nothing is lost in encode and decode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PIECES = r" {4}| ?[A-Za-z]+| ?[0-9]|\n| ?[^A-Za-z0-9\s]|\s"
EOS, MASK, USER, ASSISTANT = "<|endoftext|>", "<|mask|>", "<|user|>", "<|assistant|>"
SPECIALS = (EOS, MASK, USER, ASSISTANT)
# The space puts the first word of an answer into its usual form; the decoder strips it again.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{USER}' if message['role'] == 'user' else '{ASSISTANT}' }}}}"
    "{{ ' ' + message['content'] | trim }}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)


def build_tokenizer(texts: Iterable[str], *, pieces: str = PIECES, before: str = " ") -> Tokenizer:
    """A tokenizer whose pieces are those of `texts`, in order of first use.

    pieces: the regular expression that cuts a text.  before: what every text is put behind.
    """
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    vocab = {token: i for i, token in enumerate(SPECIALS)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(byte, len(vocab))
    for text in texts:
        for piece, _ in pre_tokenizer.pre_tokenize_str(before + text):
            vocab.setdefault(piece, len(vocab))
    # Without merges, ignore_merges takes a known piece whole and any other byte by byte.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (special tokens, chat template)."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
