"""Conversations that the generators make, and the ways in which people type an instruction."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

Turn = tuple[str, str]  # what the user says, what is answered


class Dialogue(NamedTuple):
    """task: its name.  turns: the last answer is what is learned and graded."""

    task: str
    turns: tuple[Turn, ...]


POLITE = (
    "please {}",
    "{} please",
    "can you {}",
    "{}, please",
    "could you {}",
    "pls {}",
    "{} thanks",
)


def sloppy(rng: random.Random, text: str, keep: str = "") -> str:
    """An instruction as somebody types it: lower case, polite, with a slip of the finger in a word
    that is not one of `keep`.
    """
    if rng.random() < 0.35:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.1:
        text = rng.choice(POLITE).format(text[:1].lower() + text[1:])
    if rng.random() < 0.08:
        text = typo(rng, text, keep)
    if rng.random() < 0.05:
        text = text.replace(" ", "  ", 1)
    return text


def typo(rng: random.Random, text: str, keep: str) -> str:
    """One letter of a long word left out, doubled, swapped with the next, or another one."""
    words, kept = text.split(" "), set(re.findall(r"\w+", keep))
    long = [i for i, w in enumerate(words) if len(w) > 3 and w.isalpha() and w not in kept]
    if not long:
        return text
    at = rng.choice(long)
    word = words[at]
    i = rng.randrange(1, len(word) - 1)
    words[at] = rng.choice(
        (
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + rng.choice(string.ascii_lowercase) + word[i + 1 :],
        )
    )
    return " ".join(words)


def ask(rng: random.Random, instruction: str, material: str, answer: str = "") -> str:
    """An instruction and what it is about, put together as people do."""
    said = sloppy(rng, instruction, f"{material} {answer}")
    chance = rng.random()
    if chance < 0.6:
        text = f"{said}: {material}"
    elif chance < 0.7:
        text = f"{said}:\n{material}"
    elif chance < 0.8:
        text = f"{said} {material}"
    elif chance < 0.9:
        text = f"{material}\n{said}{rng.choice(('', '.'))}"
    else:
        text = f"{said}: {material}" + (rng.choice(".!") if material[-1:].isalnum() else "")
    return text


def pick(rng: random.Random, wordings: Sequence[str], **values: object) -> str:
    """One of the wordings, filled in."""
    return rng.choice(wordings).format(**values)
