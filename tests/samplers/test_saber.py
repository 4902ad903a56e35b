"""Saber: the bar is a running mean, and what fell most is taken back, never all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.samplers.candidates import Candidates, Decoded, State
from dllm.samplers.saber import Saber
from tests.samplers.views import Row, alone, fresh, hand_made, random_view, ranked, rows_of

NAN = float("nan")


@dataclass
class Literal:
    """samplers.md, 11b, for one row."""

    n: int
    committed_at: list[float] = field(default_factory=list)
    last: dict[int, float] = field(default_factory=dict)

    def step(
        self, row: list[Row], decoded: dict[int, float], fresh: bool
    ) -> tuple[list[int], list[int]]:
        if fresh:
            self.committed_at, self.last = [], {}
        bar = math.fsum(self.committed_at) / len(self.committed_at) if self.committed_at else 1.0
        chosen = [c for c in row if c.conf > bar]
        if len(chosen) < self.n:
            chosen = ranked(row)[: self.n]
        self.committed_at += [c.conf for c in chosen]
        k = len(chosen)
        again = min(max(self.n // 2, math.ceil(k / 8)), k - 1)
        # float32, so that equal drops tie here as well
        drop = {p: np.float32(self.last.get(p, c)) - np.float32(c) for p, c in decoded.items()}
        back = sorted(decoded, key=lambda p: (-drop[p], p))[:again]
        self.last = decoded | {c.pos: c.best_conf for c in row}
        return sorted(c.pos for c in chosen), sorted(back)


def decoded_of(view: Candidates, b: int) -> dict[int, float]:
    d = view.decoded
    assert d is not None
    return {int(p): c.item() for p, v, c in zip(d.pos[b], d.valid[b], d.conf[b], strict=True) if v}


def decide(rule: Saber, view: Candidates) -> list[tuple[list[int], list[int]]]:
    """Positions committed and taken back, row by row."""
    selection = rule.select(view)
    assert view.decoded is not None
    assert selection.remask is not None
    assert not (selection.commit & ~view.valid).any()
    assert not (selection.remask & ~view.decoded.valid).any()
    back = [sorted(pos[m].tolist()) for pos, m in zip(view.decoded.pos, selection.remask)]
    return [(pos[m].tolist(), r) for pos, m, r in zip(view.pos, selection.commit, back)]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5), st.integers(1, 12))
def test_a_batch_decides_as_the_text_says_row_by_row(seed, rows, n, most):
    rng = np.random.default_rng(seed)
    rule = Saber(n)
    literals = [Literal(n) for _ in range(rows)]
    state = fresh(rule, rows)
    for _ in range(4):
        view = random_view(rng, rows, most, state=state)
        singles = [alone(view, b) for b in range(rows)]
        expected = [
            literals[b].step(row, decoded_of(view, b), int(view.window_step[b]) == 0)
            for b, row in enumerate(rows_of(view))
        ]
        assert decide(rule, view) == expected
        assert [decide(rule, single)[0] for single in singles] == expected


def view_of(
    masked: dict[int, float], decoded: dict[int, float], step: int, state: State
) -> Candidates:
    view = hand_made(list(masked.values()), list(masked), state=state)
    end = torch.tensor([max(*masked, *decoded, 0) + 1])
    return replace(
        view,
        best=view.token,
        best_conf=view.conf,
        end=end,
        window_step=torch.tensor([step]),
        decoded=Decoded(
            torch.tensor([list(decoded)], dtype=torch.long),
            torch.ones(1, len(decoded), dtype=torch.bool),
            torch.tensor([list(decoded.values())], dtype=torch.float32),
        ),
    )


def run(rule: Saber, *steps: tuple[dict[int, float], dict[int, float]]):
    state = fresh(rule, 1, 60)
    return [decide(rule, view_of(h, d, n, state))[0] for n, (h, d) in enumerate(steps)]


def test_the_bar_is_one_at_the_start_and_then_the_mean():
    first = ({0: 0.8, 1: 0.6, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.2}, {})
    above = ({2: 0.75, 3: 0.72, 4: 0.71, 5: 0.69}, {0: 0.8, 1: 0.6})
    got = run(Saber(), first, above)  # the mean of .8 and .6 is .7
    assert got[0] == ([0, 1], [])
    assert got[1][0] == [2, 3, 4]


def test_all_that_was_committed_counts_in_the_mean():
    steps = [
        ({0: 0.5, 1: 0.5, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1}, {}),
        ({2: 0.875, 3: 0.875, 4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1}, {0: 0.5, 1: 0.5}),
        # the mean is .6875; the last step's alone would be .875
        ({0: 0.7, 4: 0.7, 5: 0.7, 6: 0.6, 7: 0.1}, {1: 0.5, 2: 0.9, 3: 0.9}),
    ]
    assert run(Saber(), *steps)[2][0] == [0, 4, 5]


def test_the_bar_itself_is_not_above_it():
    first = ({0: 0.5, 1: 0.5, 2: 0.25, 3: 0.25, 4: 0.25}, {})
    equal = ({2: 0.5, 3: 0.5, 4: 0.5}, {0: 0.5, 1: 0.5})
    assert run(Saber(), first, equal)[1][0] == [2, 3]


def test_what_fell_most_is_taken_back():
    first = ({0: 0.8, 1: 0.9, 2: 0.4, 3: 0.4}, {})
    second = ({2: 0.4, 3: 0.4}, {0: 0.4, 1: 0.6})  # fell by .4 and .3
    assert run(Saber(), first, second)[1] == ([2, 3], [0])


def test_the_largest_drop_is_taken_back_even_if_nothing_fell():
    first = ({0: 0.5, 1: 0.5, 2: 0.4, 3: 0.4}, {})
    second = ({2: 0.4, 3: 0.4}, {0: 0.75, 1: 0.625})
    assert run(Saber(), first, second)[1] == ([2, 3], [1])


def test_a_token_not_scored_before_counts_as_unchanged():
    first = ({0: 0.5, 1: 0.5, 2: 0.4, 3: 0.4}, {})
    grew = ({2: 0.4, 3: 0.4}, {0: 0.75, 1: 0.75, 9: 0.1})
    fell = ({2: 0.4, 3: 0.4}, {0: 0.75, 1: 0.25, 9: 0.1})
    assert run(Saber(), first, grew)[1][1] == [9]
    assert run(Saber(), first, fell)[1][1] == [1]


def test_the_fall_is_that_of_the_most_likely_token_not_of_the_drawn_one():
    state = fresh(Saber(), 1)
    view = view_of({0: 0.5, 1: 0.5, 2: 0.4, 3: 0.4}, {}, 0, state)
    decide(Saber(), replace(view, best_conf=torch.tensor([[0.5, 0.9, 0.4, 0.4]])))
    later = view_of({2: 0.4, 3: 0.4}, {0: 0.3, 1: 0.6}, 1, state)  # fell by .2 and by .3
    assert decide(Saber(), later)[0][1] == [1]


def test_tokens_of_this_step_stay():
    """Departure from the released code: only what was decoded before can be taken back."""
    first = ({0: 0.9, 1: 0.9, 2: 0.9, 3: 0.9}, {})
    second = ({2: 0.1, 3: 0.1}, {0: 0.95, 1: 0.95})  # the masked positions fell by .8
    assert run(Saber(), first, second)[1] == ([2, 3], [0])


def test_a_single_token_takes_nothing_back():
    first = ({0: 0.9, 1: 0.9, 2: 0.2}, {})
    second = ({2: 0.3}, {0: 0.1, 1: 0.1})
    assert run(Saber(), first, second)[1] == ([2], [])
    assert run(Saber(1), ({0: 0.9, 1: 0.1}, {}), ({1: 0.3}, {0: 0.1}))[1] == ([1], [])


@pytest.mark.parametrize(
    ("n", "k", "again"),
    [(2, 2, 1), (2, 8, 1), (2, 9, 2), (2, 17, 3), (4, 4, 2), (6, 6, 3), (1, 2, 1), (1, 9, 2)],
)
def test_how_many_are_taken_back(n, k, again):
    done = dict.fromkeys(range(20), 0.5)
    start = (dict.fromkeys(range(20, 60), 0.0), done)  # the bar drops to 0
    masked = {pos: 0.5 if pos < 30 + k else 0.0 for pos in range(30, 60)}
    commit, back = run(Saber(n), start, (masked, done))[1]
    assert len(commit) == k
    assert back == list(range(again))


def test_a_new_window_starts_at_one_again_and_forgets_the_last_step():
    state = fresh(Saber(), 1)
    decide(Saber(), view_of({0: 0.1, 1: 0.1, 2: 0.9, 3: 0.1}, {}, 0, state))
    later = view_of({4: 0.9, 5: 0.8, 6: 0.7}, {2: 0.5, 3: 0.1}, 0, state)
    assert decide(Saber(), later)[0] == ([4, 5], [2])  # all unchanged: the lower position


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 24))
def test_every_step_gains_a_token_so_the_window_ends(seed, n, size):
    rng = np.random.default_rng(seed)
    masked, state, step = set(range(size)), fresh(Saber(n), 1), 0
    while masked:
        conf = rng.choice([0.1, 0.5, 0.5, 0.9, 1.0], size)
        view = view_of(
            {p: conf[p] for p in sorted(masked)},
            {p: conf[p] for p in range(size) if p not in masked},
            step,
            state,
        )
        commit, back = decide(Saber(n), view)[0]
        after = (masked - set(commit)) | set(back)
        assert len(after) < len(masked)
        masked, step = after, step + 1
    assert step <= size


def test_the_rule_says_what_it_is():
    assert Saber().count == 2
    assert Saber().remasks
    assert Saber().needs == {"best", "decoded"}


@pytest.mark.parametrize("count", [0, -1, NAN])
def test_a_bad_count_names_its_value(count):
    with pytest.raises(ValueError, match=f"count={count}"):
        Saber(count)
