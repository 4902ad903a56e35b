"""Speculation on a screen: which tokens a draft gave, and which the target itself.

Knows rounds and outputs; knows no model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dllm.verify.engine import SpecOutput
from dllm.verify.loop import Round, RowRound
from dllm.view import CONTROLS

DRAFTED, OWN = "bright_green", "bold"
LEGEND = Text.assemble(("accepted from the draft", DRAFTED), "  ", ("the target's own", OWN))

Pieces = Callable[[Sequence[int]], list[str]]  # token ids -> what each adds to the text


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
        "seconds": round(output.seconds, 6),
        "rounds": [
            {k: v for k, v in asdict(each).items() if k not in ("row", "finish_reason")}
            | {"accepted": each.accepted}
            for each in output.rounds
        ],
    }


def coloured(rounds: Sequence[RowRound], shown: int, pieces: Pieces) -> Text:
    """The first `shown` tokens of a row, accepted drafts and the target's own told apart."""
    tokens = [token for each in rounds for token in each.tokens]
    drafted = [i < each.accepted for each in rounds for i in range(len(each.tokens))]
    text = Text()
    for piece, from_draft in zip(pieces(tokens[:shown]), drafted):
        text.append(piece.translate(CONTROLS), DRAFTED if from_draft else OWN)
    return text


def summary(output: SpecOutput) -> str:
    """One line of numbers about an answer."""
    sources = Counter(source for each in output.rounds for source in each.sources)
    drafts = ", ".join(f"{count} {name}" for name, count in sources.most_common())
    law = "output as the target alone" if output.lossless else "NOT the target's own law"
    rate = output.emitted / output.seconds if output.seconds else 0.0
    return (
        f"target passes {output.target_passes} · tokens {output.emitted} · tokens/pass "
        f"{output.tokens_per_pass:.1f} · drafter passes {output.drafter_passes} · accepted: "
        f"{drafts or 'none'} · tokens/s {rate:.0f} · {output.rule} ({law}) · "
        f"finished: {output.finish_reason}"
    )


class SpecView:
    """One answer while it is decoded, and its text and numbers when it is done.

    In a terminal, when `live`, every round stays for at least `delay` seconds.
    """

    def __init__(self, pieces: Pieces, *, delay: float, live: bool) -> None:
        self.pieces, self.delay = pieces, delay
        self.console = Console(highlight=False)
        self.rounds: list[RowRound] = []
        self.live: Live | None = None
        if live and self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, each: Round) -> None:
        """Take in a round of the first row, and draw."""
        self.rounds += [row for row in each.rows if row.row == 0]
        if self.live is None or not self.rounds:
            return
        last, tokens = self.rounds[-1], sum(len(row.tokens) for row in self.rounds)
        text = coloured(self.rounds, tokens, self.pieces)
        note = (
            f"round {len(self.rounds)}: {last.drafts} drafts verified, {last.accepted} accepted"
            f" · {tokens} tokens"
        )
        self.live.update(Group(text, Text(note, "dim"), LEGEND), refresh=True)
        time.sleep(self.delay)

    def finish(self, output: SpecOutput) -> None:
        """Print the answer on stdout and its numbers on stderr."""
        if self.console.is_terminal:
            text = coloured(output.rounds, len(output.token_ids), self.pieces)
            self.console.print(text, soft_wrap=True)
            self.console.print(LEGEND)
        else:
            print(output.text)
        Console(stderr=True, highlight=False).print(summary(output), soft_wrap=True, markup=False)
