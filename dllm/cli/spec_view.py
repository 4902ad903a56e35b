"""Speculation on a screen: which tokens a draft gave, and which the target itself.

Knows the rows that a `SpecFollower` rebuilds; knows no model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from dllm.cli.view import CONTROLS
from dllm.text.following import SpecFollower, SpecRow
from dllm.verify.output import RowRound, SpecEvent, SpecOutput

DRAFTED, OWN = "bright_green", "bold"
LEGEND = Text.assemble(("accepted from the draft", DRAFTED), "  ", ("the target's own", OWN))


def as_dict(output: SpecOutput) -> dict[str, Any]:
    """The fields of a JSON line, rounds included."""
    return {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "target_passes": output.target_passes,
        "drafter_passes": output.drafter_passes,
        "tokens_per_pass": round(output.tokens_per_pass, 3),
        "accepted_per_round": round(output.accepted_per_round, 3),
        "rule": output.rule,
        "lossless": output.lossless,
        "decoding": output.decoding,
        "seconds": round(output.seconds, 6),
        "rounds": [
            {k: v for k, v in asdict(each).items() if k not in ("row", "finish_reason")}
            | {"accepted": each.accepted}
            for each in output.rounds
        ],
    }


def coloured(row: SpecRow) -> Text:
    """The answer of a row, accepted drafts and the target's own told apart.

    It is what is returned: a stop string may begin inside a token.
    """
    text = Text()
    for piece, from_draft in zip(row.pieces, row.drafted()):
        text.append(piece.translate(CONTROLS), DRAFTED if from_draft else OWN)
    if row.output is None:
        return text
    answer = row.output.text.translate(CONTROLS)
    # not so where a decoder changes what its tokens spell one by one
    return text[: len(answer)] if text.plain.startswith(answer) else Text(answer)


def summary(output: SpecOutput) -> str:
    """One line of numbers about an answer."""
    sources = Counter(source for each in output.rounds for source in each.sources)
    drafts = ", ".join(f"{count} {name}" for name, count in sources.most_common())
    distribution = "output as the target alone" if output.lossless else "NOT the target's own law"
    rate = output.emitted / output.seconds if output.seconds else 0.0
    return (
        f"target passes {output.target_passes} · tokens {output.emitted} · tokens/pass "
        f"{output.tokens_per_pass:.1f} · drafter passes {output.drafter_passes} · accepted: "
        f"{drafts or 'none'} · tokens/s {rate:.0f} · {output.rule} ({distribution}) · "
        f"target: {described(output.decoding)} · "
        f"finished: {output.finish_reason}"
    )


def described(decoding: Mapping[str, Any]) -> str:
    """The target's own decoding in a few words, long lists by their length."""
    words = ["sampled" if decoding["do_sample"] else "greedy"]
    for name, value in decoding.items():
        if isinstance(value, list) and len(value) > 3:
            words.append(f"{name} ({len(value)})")
        elif name != "do_sample":
            words.append(f"{name} {value}")
    return ", ".join(words)


class SpecView:
    """The rows of a batch while they are decoded, and their texts and numbers when they are done.

    In a terminal, when `live`, a round stays for at least `delay` seconds; `speed` divides that.
    """

    def __init__(
        self,
        follower: SpecFollower,
        titles: Sequence[str] = (),
        *,
        delay: float,
        speed: float = 1.0,
        live: bool = True,
    ) -> None:
        """titles: of the rows; shown where there are several."""
        self.follower, self.titles, self.delay, self.speed = follower, titles, delay, speed
        self.console = Console(highlight=False)
        self.began, self.seconds = time.perf_counter(), 0.0  # of the round on the screen
        self.live: Live | None = None
        if live and self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
        if kind is None and self.follower.rows:
            self._print_result()

    def show(
        self, event: SpecEvent, seconds: float, pieces: Mapping[int, str] | None = None
    ) -> None:
        """Take in an event; draw where it completes a round of all rows that still run."""
        self.follower.apply(event, seconds, pieces)
        if self.live is None or not isinstance(event, RowRound):
            return
        running = [row for row in self.follower.rows.values() if row.output is None]
        if len({len(row.rounds) for row in running}) == 1:
            wait = max(self.delay, seconds - self.seconds) / self.speed
            time.sleep(max(0.0, self.began + wait - time.perf_counter()))
            self.live.update(self.render(), refresh=True)
            self.began, self.seconds = time.perf_counter(), seconds

    def render(self) -> RenderableType:
        """The rows as they are now."""
        parts: list[RenderableType] = []
        for number, row in self.follower.rows.items():
            parts += [*self._title(number), coloured(row), Text(progress(row), "dim")]
        return Group(*parts, LEGEND)

    def _title(self, number: int) -> list[Text]:
        if len(self.follower.rows) == 1 or number >= len(self.titles):
            return []
        title = " ".join(self.titles[number].translate(CONTROLS).split())
        return [Text(f"› {title}", "dim", no_wrap=True, overflow="ellipsis")]

    def _print_result(self) -> None:
        """Answers on stdout, their numbers on stderr."""
        errors = Console(stderr=True, highlight=False)
        for number, row in self.follower.rows.items():
            if self.console.is_terminal:
                self.console.print(*self._title(number), coloured(row), sep="\n", soft_wrap=True)
            else:
                print(row.output.text if row.output else "".join(row.pieces))
        if self.console.is_terminal:
            self.console.print(LEGEND)
        for row in self.follower.rows.values():
            if row.output is not None:
                errors.print(summary(row.output), soft_wrap=True, markup=False)


def progress(row: SpecRow) -> str:
    """One line of numbers about the last round of a row."""
    if not row.rounds:
        return "round 0"
    last = row.rounds[-1]
    return (
        f"round {len(row.rounds)}: {last.drafts} drafts verified, {last.accepted} accepted"
        f" · {len(row.tokens)} tokens"
    )
