"""The tokenizer of `mini`: pairs of letters, single digits and punctuation, bytes for the rest.

A word is cut from the left into pairs of letters, so that it is spelled in one way wherever it
stands, no word is special, and the pieces show its letters to a model that has to sort.
"""

from __future__ import annotations

import string
from itertools import product

from tokenizers import Tokenizer

from dllm.train.tokenizer import build_tokenizer

LETTERS = r"[A-Z][a-z]|[A-Z]{2}|[a-z]{2}|[A-Za-z]"
PIECES = rf" ?(?:{LETTERS})| ?[0-9]| {{4}}|\n| ?[^A-Za-z0-9\s]|\s"


def letter_pair_tokenizer() -> Tokenizer:
    """The tokenizer; it depends on no text."""
    lower, upper = string.ascii_lowercase, string.ascii_uppercase
    cases = ((lower, lower), (upper, lower), (upper, upper))
    pairs = ["".join(pair) for first, second in cases for pair in product(first, second)]
    plain = [*lower, *upper, *pairs, *string.digits, *string.punctuation]
    texts = [*plain, *(f" {piece}" for piece in plain), "    ", "\n"]
    return build_tokenizer(texts, pieces=PIECES, before="")
