"""The live view of speculation: tokens of the draft and the target's own, told apart.

Knows the rows that a `SpecFollower` rebuilds; knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from dllm.cli.terminal import printable
from dllm.cli.view import RowsView
from dllm.text.following import SpecRow
from dllm.verify.output import RowRound, SpecEvent, SpecOutput

DRAFTED, OWN = "bright_green", "bold"
LEGEND = Text.assemble(("accepted from the draft", DRAFTED), "  ", ("the target's own", OWN))


def coloured(row: SpecRow) -> Text:
    """The answer of a row, accepted drafts and the target's own told apart.

    It is what is returned: a stop string may begin inside a token.
    """
    text = Text()
    for piece, from_draft in zip(row.pieces, row.drafted()):
        text.append(printable(piece), DRAFTED if from_draft else OWN)
    if row.output is None:
        return text
    answer = printable(row.output.text)
    # not so where a decoder changes what its tokens spell one by one
    return text[: len(answer)] if text.plain.startswith(answer) else Text(answer)


def summary(output: SpecOutput) -> str:
    """One line of numbers about an answer."""
    sources = Counter(source for each in output.rounds for source in each.sources)
    drafts = ", ".join(f"{count} {name}" for name, count in sources.most_common())
    own = "output as the target alone" if output.lossless else "NOT the target's own distribution"
    rate = output.emitted / output.seconds if output.seconds else 0.0
    return (
        f"target passes {output.target_passes} · tokens {output.emitted} · tokens/pass "
        f"{output.tokens_per_pass:.1f} · drafter passes {output.drafter_passes} · accepted: "
        f"{drafts or 'none'} · tokens/s {rate:.0f} · {output.rule} ({own}) · "
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


class SpecView(RowsView):
    """Drafted and verified rows; see `RowsView`. A batch is drawn once a round."""

    def show(
        self, event: SpecEvent, seconds: float, pieces: Mapping[int, str] | None = None
    ) -> None:
        """Take in an event; draw where it completes a round of all rows that still run."""
        self.follower.apply(event, seconds, pieces)
        if self.live is None or not isinstance(event, RowRound):
            return
        running = [row for row in self.follower.rows.values() if row.output is None]
        if len({len(row.rounds) for row in running}) == 1:
            self.pause(seconds)
            self.live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """The rows as they are now."""
        lines: list[RenderableType] = []
        for number, row in self.follower.rows.items():
            lines += [*self.title(number), coloured(row), Text(progress(row), "dim")]
        return Group(*lines, LEGEND)

    def title(self, n: int) -> list[Text]:
        """The prompt of a row, where there are several."""
        return super().title(n) if len(self.follower.rows) > 1 else []

    def print_result(self) -> None:
        """Answers on stdout, their numbers on stderr."""
        errors = Console(stderr=True, highlight=False)
        for number, row in self.follower.rows.items():
            if self.console.is_terminal:
                self.console.print(*self.title(number), coloured(row), sep="\n", soft_wrap=True)
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
