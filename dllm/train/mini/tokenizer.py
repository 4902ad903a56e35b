"""The tokenizer of `mini`: pairs of letters, single digits and punctuation, bytes for the rest.

A word is cut from the left into pairs of letters, so that it is spelled in one way wherever it
stands, no word is special, and the pieces show its letters to a model that has to sort.
"""

from __future__ import annotations

import string
from itertools import product

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from dllm.train.tokenizer import SPECIALS

LETTERS = r"[A-Z][a-z]|[A-Z]{2}|[a-z]{2}|[A-Za-z]"
PIECES = rf" ?(?:{LETTERS})| ?[0-9]| {{4}}|\n| ?[^A-Za-z0-9\s]|\s"


def build_tokenizer() -> Tokenizer:
    """The tokenizer; it depends on no text."""
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    lower, upper = string.ascii_lowercase, string.ascii_uppercase
    pairs = ["".join(pair) for a, b in ((lower, lower), (upper, lower), (upper, upper))
             for pair in product(a, b)]  # fmt: skip
    plain = [*lower, *upper, *pairs, *string.digits, *string.punctuation]
    vocab = {token: i for i, token in enumerate(SPECIALS)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(byte, len(vocab))
    for text in (*plain, *(f" {piece}" for piece in plain), "    ", "\n"):
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            vocab.setdefault(piece, len(vocab))
    # Without merges, ignore_merges takes a known piece whole and any other byte by byte.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer
