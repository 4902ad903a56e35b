"""Suffix source: what came behind the earlier occurrences of the text's own end.

Prompt lookup, CopySpec and suffix decoding copy from there; here all of them are one automaton
that reads each token once, in constant time on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from dllm.checks import check_whole
from dllm.verify.draft.lattice import Branch
from dllm.verify.sources.memory import Rate, SourceSession

NAME = "suffix"
LENGTHS = 32  # longer matches count as equally good
DECAY = 0.98  # of the average of how often a match of some length goes on


@dataclass(frozen=True)
class Suffix:
    """Continuations of the longest end of the text that has occurred before.

    least: tokens of the shortest match.  paths: continuations, the latest first; one each for
    different next tokens.
    """

    least: int = 2
    paths: int = 3

    def __post_init__(self) -> None:
        check_whole("least", self.least, 1)
        check_whole("paths", self.paths, 1, 1024)

    def open(self) -> Matches:
        return Matches(self.least, self.paths)


@dataclass(slots=True, eq=False)
class State:
    """All substrings that end at the same places; `length` is the longest's.

    end: a place where they occur (index of the last token).  behind: token -> state, the latest
    last.  link: the state of the longest suffix that also occurs elsewhere; None for the root.
    """

    length: int
    end: int
    link: State | None
    behind: dict[int, State] = field(default_factory=dict)


class Automaton:
    """The suffix automaton of a growing text (Blumer et al. 1985).

    It remembers recent occurrences: at each token the `fresh` longest repeated suffixes note where
    they were and what came behind. Shorter ones may point to an older place.
    """

    fresh = 8

    def __init__(self) -> None:
        self.text: list[int] = []
        self.root = self.last = State(0, -1, None)

    @property
    def match(self) -> State:
        """The longest suffix of the text that has occurred before, at another end."""
        return self.last.link or self.root

    def add(self, token: int) -> None:
        end = len(self.text)
        suffixes = list(islice(self.suffixes(self.last.link), self.fresh))
        self.text.append(token)
        new = State(self.last.length + 1, end, self.root)
        state: State | None = self.last
        while state is not None and token not in state.behind:
            state.behind[token] = new
            state = state.link
        if state is not None:
            new.link = self.followed(state, token)
        for state in suffixes:
            state.end = end - 1
            state.behind[token] = state.behind.pop(token)
        self.last = new

    @staticmethod
    def suffixes(state: State | None) -> Iterator[State]:
        while state is not None:
            yield state
            state = state.link

    @staticmethod
    def followed(state: State, token: int) -> State:
        """The state of state's longest string and `token`, split off where it holds longer ones."""
        whole = state.behind[token]
        if whole.length == state.length + 1:
            return whole
        part = State(state.length + 1, whole.end, whole.link, dict(whole.behind))
        whole.link = part
        before: State | None = state
        while before is not None and before.behind.get(token) is whole:
            before.behind[token] = part
            before = before.link
        return part


class Matches(SourceSession):
    """One row's automaton, and how often a match of some length went on as its n-th latest did."""

    name = NAME

    def __init__(self, least: int, paths: int) -> None:
        self.least, self.paths = least, paths
        self.automaton = Automaton()
        self.rates = [[Rate() for _ in range(LENGTHS + 1)] for _ in range(paths)]

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            match = self.automaton.match
            if match.length >= self.least:
                for rank, said in enumerate(islice(reversed(match.behind), self.paths)):
                    self.rate(rank, match.length).add(said == token, DECAY)
            self.automaton.add(token)

    def rate(self, rank: int, length: int) -> Rate:
        return self.rates[rank][min(length, LENGTHS)]

    def weight(self, rank: int, length: int) -> float:
        """Probability that the n-th latest goes on; the first estimate only knows the length."""
        return self.rate(rank, length).given(length / (length + 1) / 2**rank, 1.0)

    def branches(self, depth: int) -> list[Branch]:
        match = self.automaton.match
        if match.length < self.least or not depth:
            return []
        found = []
        for rank, token in enumerate(islice(reversed(match.behind), self.paths)):
            start = match.behind[token].end
            # What reaches the text's end goes on with its own beginning: the text repeats itself.
            tokens = tuple(islice(cycle(self.automaton.text[start : start + depth]), depth))
            later = (self.weight(0, match.length + i) for i in range(1, depth))
            found.append(Branch(tokens, (self.weight(rank, match.length), *later), NAME))
        return found
