"""Control by the clock: as much drafting as gives the most tokens per second, down to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dllm.checks import check_positive, check_whole
from dllm.verify.control.controllers import ControlSession, Observed, Spent
from dllm.verify.control.costs import Calibration, CostModel, best_width, steps

Mode = Literal["plain", "branches", "drafter"]
RATE = 0.1  # weight of the newest round in running averages
NEARLY = 0.97  # speed at which branches are still looked for
HOPE = 2  # rounds with drafts before anything is known
TRIAL = 4  # rounds of a trial
STAKE = 2.0  # what a trial may lose, in rounds of plain decoding
FIRST = 8  # rounds until a mode that stopped paying is tried again
LONGEST = 1024  # rounds between trials, unless one of them costs more than its share of these


@dataclass(frozen=True)
class CostController:
    """Per round as many positions and nodes as give the most tokens per second of all live rows.

    Three modes: plain decoding; model-free branches only; the drafter. The fastest so far is used
    and each of the others tried now and then, the more rarely the more it lost: at most a share
    `waste` of the time, but for the first trial. Within a mode the common width of the pass, a
    power of two, maximises (1 + E[accepted]) / (draft + verify + host) with learned seconds
    (CaDDTree, arXiv 2606.01813; over a batch: SmartSpec, arXiv 2406.14066) and weights calibrated
    by what was accepted; a trial takes them as they come. Positions: those that are reached in a
    share `threshold` of rounds and one more; twice as many after all that was verified was
    accepted, the least after an end token; `least` to `most`, at first `depth`. memory: rounds for
    which measured seconds count.

    What was learned stays with the controller, for the next request: use one per pair of models.
    """

    paper: ClassVar[str] = "CaDDTree, arXiv 2606.01813; SmartSpec, arXiv 2406.14066"
    depth: int = 8
    least: int = 4
    most: int = 32
    nodes: int = 63
    threshold: float = 0.1
    waste: float = 0.01
    memory: int = 512
    learned: Learned = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_whole("least", self.least, 1)
        check_whole("depth", self.depth, self.least)
        check_whole("most", self.most, self.depth, 4096)
        check_whole("nodes", self.nodes, 1)
        check_whole("memory", self.memory, 16)
        for name in ("threshold", "waste"):
            check_positive(name, getattr(self, name), 1)
        object.__setattr__(self, "learned", Learned(self))

    def open(self, rows: int) -> ControlSession:
        return CostSession(self, rows)


class Arm:
    """How a mode does: averages of tokens and of seconds per row and round, relative to plain."""

    def __init__(self) -> None:
        self.rounds = 0
        self.tokens = 0.0
        self.seconds = 0.0
        self.wait = FIRST  # rounds to the trial after the next
        self.due = 0  # the round of the next trial

    @property
    def rate(self) -> float:
        """Speed relative to plain decoding; 0 before the first round."""
        return self.tokens / self.seconds if self.rounds else 0.0

    def add(self, tokens: float, seconds: float) -> None:
        self.rounds += 1
        step = max(RATE, 1 / self.rounds)
        self.tokens += step * (tokens - self.tokens)
        self.seconds += step * (seconds - self.seconds)


class Learned:
    """Knowledge of one controller: costs, calibration, and which mode is best."""

    def __init__(self, options: CostController) -> None:
        self.waste, self.most = options.waste, options.most
        self.start = float(options.depth)  # positions of the first draft of a text
        self.costs = CostModel(options.memory)
        self.right: dict[Mode, Calibration] = {"branches": Calibration(), "drafter": Calibration()}
        self.arms: dict[Mode, Arm] = {"branches": Arm(), "drafter": Arm()}
        self.seen = 0  # rounds, compared or not
        self.round = 0
        self.trial: Mode | None = None
        self._left = 0  # rounds
        self._lost = 0.0  # typical seconds, those of a plain round being 1
        self._paid = 0.0  # the same in real seconds

    def best(self) -> Mode:
        """The fastest mode; plain unless another is faster.

        Branches may be a little slower: where they have nothing to say they cost next to nothing,
        and texts that they suit come unannounced.
        """
        mode = max(self.arms, key=lambda mode: self.arms[mode].rate)
        if self.arms[mode].rate > 1:
            return mode
        return "branches" if self.arms["branches"].rate > NEARLY else "plain"

    def mode(self, rows: int) -> Mode:
        """What to do in this round.

        A new pair begins with drafts, so that a short text has them; then come plain rounds, with
        which all is compared.
        """
        if not self.costs.known(rows):
            return "plain" if self.seen >= HOPE else "drafter"
        return self.trial or self.best()

    def add(self, mode: Mode, tokens: float, seconds: float, paid: float) -> None:
        """Learn from a round: tokens per row; typical and real seconds, in plain rounds."""
        self.round += 1
        if mode != "plain":
            before = self.best()
            self.arms[mode].add(tokens, seconds)
            if mode == self.trial:
                self._judge(mode, tokens, seconds, paid)
            elif before == mode != self.best():  # it stopped paying
                self.arms[mode].due = self.round + self.arms[mode].wait
        if self.trial is None:
            self._begin()

    def first(self, seen: Observed) -> None:
        """Learn from the first draft of a text how many positions the next one's needs."""
        if seen.accepted >= seen.depth:
            self.start = min(2 * self.start, self.most)
        else:
            self.start += RATE * (seen.accepted + 1 - self.start)

    def _begin(self) -> None:
        """Start the next trial that is due."""
        best = self.best()
        for mode, arm in self.arms.items():
            if mode != best and arm.due <= self.round:
                arm.rounds = min(arm.rounds, 1)  # the old average counts as one more round
                self.trial, self._left, self._lost, self._paid = mode, TRIAL, 0.0, 0.0
                return

    def _judge(self, mode: Mode, tokens: float, seconds: float, paid: float) -> None:
        """Go on with a trial, or end it and say when the next one comes."""
        others = [arm for name, arm in self.arms.items() if name != mode]
        best = max(1.0, *(arm.rate for arm in others))
        self._left -= 1
        self._lost += seconds - tokens / best
        self._paid += paid - tokens / best
        if self._left and self._lost <= STAKE:
            return
        self.trial = None
        arm = self.arms[mode]
        if arm.rate > best:
            arm.wait = FIRST
            for other in others:
                other.due = max(other.due, self.round + other.wait)
            return
        wait = min(max(2 * arm.wait, ceil(self._paid / self.waste)), LONGEST)
        arm.wait = max(wait, ceil(self._lost / self.waste))
        arm.due = self.round + arm.wait


class CostSession:
    """One request. It asks what was learned what to do, and adds to it."""

    def __init__(self, options: CostController, rows: int) -> None:
        self.options = options
        self.learned = options.learned
        self.depths = [max(round(self.learned.start), options.least)] * rows
        self._reached = np.zeros((rows, options.most))  # share of rounds that accepted this much
        self._rounds = [0] * rows
        self._live = list(range(rows))
        self._seen: dict[int, Observed] = {}
        self._fresh = True  # the first pass reads the prompt: it says nothing about later ones
        self._drafting = False  # whether the drafter has read all but the last rounds
        self._begin()

    def _begin(self) -> None:
        """Settle on what the next round does."""
        self.mode = self.learned.mode(len(self._live))
        self.trying = self.learned.trial is not None

    def depth(self, row: int) -> int:
        return self.depths[row] if self.mode == "drafter" else 0

    def drafts(self, row: int) -> int:
        if self.mode == "plain":
            return 0
        return min(self.options.nodes, self.learned.costs.widest(len(self._live)) - 1)

    def sizes(self, weights: Sequence[NDArray[np.float64]]) -> list[int]:
        longest = max((len(row) for row in weights), default=0)
        if self.mode == "plain" or not longest:
            return [0] * len(weights)
        if not self.trying:
            weights = [self.learned.right[self.mode](row) for row in weights]
        depth = max(self.depths[row] for row in self._live) if self.mode == "drafter" else 0
        widths = [width for width in steps(longest + 1) if width > 1 or not self.trying]
        costs = [self.learned.costs.round(len(weights), width, depth, True) for width in widths]
        width = best_width(weights, widths, costs)
        return [min(width - 1, len(row)) for row in weights]

    def observe(self, row: int, seen: Observed) -> None:
        self._seen[row] = seen
        if self.mode != "plain" and seen.drafts:
            self.learned.right[self.mode].add(seen.weights, seen.kept)
        if seen.depth:
            self._learn_depth(row, seen)

    def _learn_depth(self, row: int, seen: Observed) -> None:
        self._rounds[row] += 1
        if self._rounds[row] == 1:
            self.learned.first(seen)
        reached = seen.accepted > np.arange(self.options.most)
        step = max(RATE, 1 / self._rounds[row])
        self._reached[row] += step * (reached - self._reached[row])
        if seen.end < seen.depth:
            depth = seen.end - seen.accepted
        elif seen.accepted >= min(seen.depth, seen.drafts) > 0:
            depth = 2 * self.depths[row]
        else:
            depth = 1 + int((self._reached[row] >= self.options.threshold).sum())
        self.depths[row] = min(max(depth, self.options.least), self.options.most)

    def spent(self, seen: Spent) -> None:
        rounds, self._seen = self._seen, {}
        self._live = list(rounds) or self._live
        fresh, self._fresh = self._fresh, False
        self.learned.seen += 1
        behind, self._drafting = not self._drafting, self.mode == "drafter"
        if not fresh:
            searched, costs = self.mode != "plain", self.learned.costs
            costs.add(seen, searched, drafting=not behind)
            plain = costs.plain(seen.rows)
            if costs.known(seen.rows) and plain:
                tokens = sum(1 + row.accepted for row in rounds.values()) / seen.rows
                typical = costs.round(seen.rows, seen.width, seen.depth, searched)
                real = seen.draft + seen.verify + seen.host
                self.learned.add(self.mode, tokens, typical / plain, real / plain)
        self._begin()
