"""dKV-Cache-Greedy against the released loop: what comes next, what came last, masks beside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.greedy import GreedyPolicy, shuffled
from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.canvas import Canvas
from dllm.engine import Engine
from dllm.output import Commit
from dllm.registry import SpecError
from tests.cache.literal import Row, agree, cases, every, nth, spec
from tests.cache.models import PLAIN, Watched, decoder, run
from tests.cache.steps import step_of


def beside(row: Row, chosen: list[int], width: int) -> set[int]:
    """The released loop: from every chosen position outwards, left and right in turn."""
    found: set[int] = set()
    for p in chosen:
        left, right, count, turn_left = p - 1, p + 1, 0, True
        while count < width and (left >= 0 or right < row.end):
            at = left if turn_left else right
            if 0 <= at < row.end and at not in row.known | found | set(chosen):
                found.add(at)
                count += 1
            left, right = left - turn_left, right + (not turn_left)
            turn_left = not turn_left
    return found


def order_of(length: int, row: int = 0) -> list[int]:
    """Positions as the row's random order has them."""
    canvas = Canvas.from_prompts([[3]], length - 1, mask_id=5, row_ids=[row])
    return np.argsort(-shuffled(step_of(canvas))[0], kind="stable").tolist()


@settings(max_examples=40)
@given(
    cases,
    every(None, 2, 3, 4),
    st.integers(0, 4),
    st.integers(1, 4),
    st.sampled_from(["random", "confidence"]),
)
def test_it_is_the_released_one(case, refresh, neighbours, ahead, order):
    ranks = order_of(len(case.prompt) + case.size)

    def method(row: Row) -> tuple[set[int], list[int]]:
        refreshed = row.i == 0 or nth(row.i, refresh)
        if order == "random":
            chosen = [p for p in ranks if p in row.masks][:ahead]
        elif refreshed:
            return row.every, row.masks
        else:
            chosen = sorted(row.masks, key=lambda p: (-row.seen[p], p))[:ahead]
        few = set(chosen) | row.last | beside(row, chosen, neighbours)
        return (row.every if refreshed else few), sorted(chosen)

    options = {"refresh": refresh, "neighbours": neighbours, "ahead": ahead, "order": order}
    agree(case, method, spec("delayed-greedy", **options))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_few_positions_are_computed_however_long_the_row(shift, order):
    watched = Watched(decoder(shift))
    cache = f"delayed-greedy:ahead=2,neighbours=3,refresh=8,order={order}"
    run(
        watched,
        [[7] * 50],
        max_new_tokens=40,
        block_length=20,
        sampler="quota:logits_eos_inf=true",
        cache=cache,
    )
    widths = [len(query) for query in watched.queries]
    most = 2 * (1 + 3 + shift) + 1
    full = [n for n, width in enumerate(widths) if width == 90]
    assert full == [0, 8, 16, 20, 28, 36]
    assert all(width <= most for width in widths if width < 90)


def test_a_random_order_is_the_rows_own():
    orders = {tuple(order_of(12, row)) for row in range(5)}
    assert len(orders) == 5
    assert all(sorted(order) == list(range(12)) for order in orders)


def test_every_position_comes_first_equally_often():
    canvas = Canvas.from_prompts([[3]] * 4000, 7, mask_id=5)
    first = np.bincount(shuffled(step_of(canvas)).argmax(1), minlength=8) / 4000
    assert np.allclose(first, 1 / 8, atol=0.03)  # six standard deviations


@settings(max_examples=12)
@given(st.lists(st.lists(st.sampled_from(PLAIN), max_size=5), min_size=2, max_size=3))
def test_a_row_keeps_its_random_order_alone(batch):
    config = DecodeConfig(9, 5, sampler="quota", cache="delayed-greedy:order=random,ahead=1")
    engine = Engine(decoder())

    def commits(prompts: list[list[int]], ids: list[int]) -> list[list[tuple[int, ...]]]:
        found = list(engine.stream_steps(prompts, config, row_ids=ids))
        return [
            [tuple(e.positions) for e in found if isinstance(e, Commit) and e.row == row]
            for row in range(len(prompts))
        ]

    together = commits(batch, list(range(len(batch))))
    assert together == [commits([prompt], [row])[0] for row, prompt in enumerate(batch)]


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_a_rule_that_takes_back_is_followed(order):
    """Saber wants to see the window's tokens: they are computed although none are offered."""
    cache = f"delayed-greedy:order={order},refresh=none"
    watched = Watched(decoder())
    (output,) = run(
        watched, [[5, 6]], max_new_tokens=10, block_length=None, sampler="saber", cache=cache
    )
    assert any(commit.remasked for commit in output.history)
    known: set[int] = set()
    for query, commit in zip(watched.queries, output.history, strict=True):
        assert known <= query
        known = (known | set(commit.positions)) - set(commit.remasked)
        assert set(commit.positions) <= query


def test_parts_that_look_at_all_masked_positions_are_refused():
    with pytest.raises(
        ConfigError, match=r"planner 'slowfast' looks at all masked positions, but cache Greedy"
    ):
        run(decoder(), [[5]], max_new_tokens=4, planner="slowfast", cache=GreedyPolicy())


@pytest.mark.parametrize(
    ("option", "least"), [("refresh=0", 1), ("neighbours=-1", 0), ("ahead=0", 1)]
)
def test_bad_options_are_named(option, least):
    config = DecodeConfig(cache=f"delayed-greedy:{option}")
    with pytest.raises(SpecError, match=f"{option}: expected a whole number of at least {least}"):
        config.make("cache")


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match="order='x': expected confidence or random"):
        GreedyPolicy(order="x")
