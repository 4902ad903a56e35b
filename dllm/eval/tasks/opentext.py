"""Open text: a sentence that holds given words, as in ParallelBench (arXiv 2510.04767, section 4).

Graded is whether the words are there: grammar and sense are not, since that takes a model.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from dllm.eval.tasks.base import Grade, Sample, TaskBase
from dllm.eval.tasks.options import check_sizes

# Any verb goes with any noun: "We carry the old basket".
VERBS = tuple(
    "admire borrow bring buy carry choose collect describe draw examine fetch find follow forget "
    "hide hold keep like lose need notice paint praise recognise remember replace see sell show "
    "visit want watch".split()
)
ADJECTIVES = tuple(
    "ancient bright broken cheap clean dark dirty dusty elegant empty enormous expensive famous "
    "fresh funny gentle heavy hidden little lovely modern narrow new noisy old pretty quiet round "
    "rusty simple soft strange strong tall tiny ugly useful warm wide wooden".split()
)
NOUNS = tuple(
    "bakery balcony barrel basket bench bicycle blanket bridge bucket building camera candle "
    "carpet castle chair church clock corner curtain cushion dinner engine factory farm fence "
    "fountain garden gate harbour house kitchen ladder lamp library machine map market mirror "
    "museum painting palace parcel park picture roof school shop stable staircase statue street "
    "table tent theatre tower tractor umbrella village wall window".split()
)
WORD = re.compile(r"\w+(?:['’-]\w+)*")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]")


@dataclass(frozen=True)
class WordsToSentence(TaskBase):
    """A sentence that holds a verb, nouns, and as many adjectives or one less. n: words given.

    Right: each stands there as a whole word, in any case. Strict: in one sentence and nothing else.
    """

    name: ClassVar[str] = "words_to_sentence"
    n: tuple[int, ...] = (3, 4, 5)

    def __post_init__(self) -> None:
        if self.surface != "free":
            raise ValueError(f"surface={self.surface!r}: expected free, no answer's form is given")
        check_sizes(self.n, 2, 2 * len(ADJECTIVES))

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        verb = rng.choice(VERBS)
        adjectives = rng.sample(ADJECTIVES, (n - 1) // 2)
        nouns = rng.sample(NOUNS, n // 2)
        words = [verb, *adjectives, *nouns]
        rng.shuffle(words)
        prompt = (
            "Write one sentence that contains each of these words, exactly as it is written here:\n"
            f"\n{', '.join(words)}\n\nAnswer with the sentence only."
        )
        return Sample(prompt, _sentence(verb, adjectives, nouns), {"words": words})

    def grade(self, sample: Sample, reply: str) -> Grade:
        found = set(WORD.findall(reply.lower()))
        if not found:
            return Grade.of("parse", strict=False)
        reason = "ok" if found.issuperset(sample.facts["words"]) else "missing"
        return Grade.of(reason, strict=SENTENCE.fullmatch(reply.strip()) is not None)


def _sentence(verb: str, adjectives: list[str], nouns: list[str]) -> str:
    things = [f"{adjective} {noun}" for adjective, noun in zip(adjectives, nouns)]
    things += nouns[len(adjectives) :]
    return f"We {verb} the {' and the '.join(things)}."
