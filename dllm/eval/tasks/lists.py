"""List operations: copy, reverse, sort, shuffle; replace, insert, remove by index or at random.

The operations are those of ParallelBench's waiting line (arXiv 2510.04767, section 4); questions,
vocabularies and graders are our own. Positions count from 1, and no item comes twice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar, Literal

from dllm.eval.tasks.base import Grade, Sample, Span, TaskBase
from dllm.eval.tasks.datasets import is_held_out, lists
from dllm.eval.tasks.options import ask, check_shots, check_sizes
from dllm.eval.tasks.reading import list_spans

Wording = Literal["full", "short"]
Vocabulary = Literal["words", "letters"]
POOLS: dict[str, Sequence[str]] = {"words": lists.ALL_ITEMS, "letters": ascii_uppercase}
CLOSING = "Answer with the new list only, as JSON in the same form."


@dataclass(frozen=True)
class ListTask(TaskBase):
    """A list operation with one right answer.

    wording: "full" says all that an instruct model has to know; "short" is a held-out prompt in the
    form that the bundled model was trained on. vocabulary: of the items. shots: example turns
    before the question; None means 1, or 0 with the short wording.
    """

    n: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 12, 16)
    wording: Wording = "full"
    vocabulary: Vocabulary = "words"
    shots: int | None = None
    asks: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_sizes(self.n, 2, len(POOLS[self.vocabulary]) - 1)  # one more is the new item
        check_shots(self.shots or 0)
        if self.wording == "short" and self.vocabulary != "words":
            raise ValueError(f"vocabulary={self.vocabulary!r}: expected words with wording=short")
        if self.wording == "short" and self.shots:
            raise ValueError(f"shots={self.shots}: expected 0 with wording=short")

    def sample(self, rng: random.Random, n: int, i: int) -> Sample:
        shots = int(self.wording == "full") if self.shots is None else self.shots
        return ask(lambda rng: self._draw(rng, n), rng, shots)

    def grade(self, sample: Sample, reply: str) -> Grade:
        got = _read(reply)
        strict = reply.strip() == self.write(sample, got)
        return Grade.of(self._reason(sample, got), strict=strict)

    def items(self, sample: Sample, reply: str) -> list[Span]:
        return list_spans(reply)

    def form(self, n: int) -> tuple[str, int]:
        return "copy", n + self.name.startswith("insert") - self.name.startswith("remove")

    def symbols(self, sample: Sample) -> Sequence[str]:
        return _read(sample.answer)

    def write(self, sample: Sample, words: Sequence[str]) -> str:
        return self._write(list(words))

    def _write(self, words: list[str]) -> str:
        return json.dumps(words) if self.wording == "full" else lists.join(words)

    def _draw(self, rng: random.Random, n: int) -> Sample:
        """A question of `n` items, without examples."""
        if self.wording == "short":
            while not is_held_out((found := lists.question(rng, self.name, n))[0]):
                pass
            prompt, items, i, new = found
        else:
            letters = self.vocabulary == "letters"
            items = rng.sample(ascii_uppercase, n + 1) if letters else lists.draw(rng, n + 1)
            new = items.pop()
            i = rng.randrange(lists.places(self.name, n))
            prompt = self._ask(items, i, new)
        answer = self._write(self._result(rng, items, i, new))
        return Sample(prompt, answer, lists.facts(self.name, items, i, new))

    def _ask(self, items: list[str], i: int, new: str) -> str:
        asks = self.asks.format(i=i + 1, x=json.dumps(new))
        return f"{asks}\n\n{json.dumps(items)}\n\n{CLOSING}"

    def _result(self, rng: random.Random, items: list[str], i: int, new: str) -> list[str]:
        return lists.apply(self.name, items, i, new)

    def _reason(self, sample: Sample, got: list[str]) -> str:
        items = sample.facts["items"]
        if self._accepts(sample, got):
            return "ok"
        if not got:
            return "parse"
        if len(got) != len(_read(sample.answer)):
            return "length"
        if not set(got) <= {*items, sample.facts.get("new")}:
            return "foreign"
        if len(set(got)) < len(got):
            return "duplicate"
        if got == items:
            return "unchanged"
        return "order" if self._needs(sample) <= set(got) else "missing"

    def _accepts(self, sample: Sample, got: list[str]) -> bool:
        return got == _read(sample.answer)

    def _needs(self, sample: Sample) -> set[str]:
        """Items that every right answer holds."""
        return set(_read(sample.answer))


def _read(text: str) -> list[str]:
    return [text[start:end] for start, end in list_spans(text)]


class Copy(ListTask):
    """The same list again."""

    name = "copy"
    asks = "Copy this list: the same items in the same order."


class Reverse(ListTask):
    """The list from its end to its beginning."""

    name = "reverse"
    asks = "Reverse this list: the last item becomes the first, and the first item the last."


class Sort(ListTask):
    """The list in alphabetical order."""

    name = "sort"
    asks = "Sort this list alphabetically, from a to z."


class ReplaceIndex(ListTask):
    """A new item in place of the one at a given position."""

    name = "replace_index"
    asks = (
        "Replace the item at position {i} of this list with {x}. Positions count from 1, and all "
        "other items stay as they are."
    )


class InsertIndex(ListTask):
    """A new item at a given position of the new list."""

    name = "insert_index"
    asks = (
        "Insert {x} into this list so that it stands at position {i} of the new list. Positions "
        "count from 1, and all other items stay in their order."
    )


class RemoveIndex(ListTask):
    """The list without the item at a given position."""

    name = "remove_index"
    asks = (
        "Remove the item at position {i} from this list. Positions count from 1, and all other "
        "items stay in their order."
    )


class RandomTask(ListTask):
    """A list operation at any place: its answer is one uniform draw of the right ones."""

    def form(self, n: int) -> tuple[str, int]:
        return self.name, n

    def symbols(self, sample: Sample) -> Sequence[str]:
        return [*sample.facts["items"], *self._needs(sample)]

    def _accepts(self, sample: Sample, got: list[str]) -> bool:
        items, new = sample.facts["items"], sample.facts.get("new", "")
        indices = range(lists.places(self.name, len(items)))
        return any(got == lists.apply(self.name, items, i, new) for i in indices)

    def _needs(self, sample: Sample) -> set[str]:
        return {sample.facts["new"]} if "new" in sample.facts else set()


class Shuffle(RandomTask):
    """The same items in any order but their own, which only the bundled dataset's facts allow."""

    name = "shuffle"
    asks = "Shuffle this list: the same items in a different order."

    def _result(self, rng: random.Random, items: list[str], i: int, new: str) -> list[str]:
        while True:
            order = rng.sample(items, len(items))
            if order != items:
                return order

    def _accepts(self, sample: Sample, got: list[str]) -> bool:
        items = sample.facts["items"]
        changed = got != items or sample.facts.get("same", False)
        return changed and sorted(got) == sorted(items)


class ReplaceRandom(RandomTask):
    """A new item in place of any one of the list."""

    name = "replace_random"
    asks = (
        "Replace one item of this list, chosen at random, with {x}. All other items stay as they "
        "are."
    )


class InsertRandom(RandomTask):
    """A new item at any position."""

    name = "insert_random"
    asks = (
        "Insert {x} into this list at a random position, which may also be the beginning or the "
        "end. All other items stay in their order."
    )


class RemoveRandom(RandomTask):
    """The list without any one of its items."""

    name = "remove_random"
    asks = "Remove one item, chosen at random, from this list. All other items stay in their order."
