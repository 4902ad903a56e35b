"""The Fréchet rule against samplers.md, section 3, and what its boundary means."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.samplers.frechet import Frechet
from tests.samplers.views import Row, committed, hand_made, ranked, rows_of, views

NEAR = 1e-6  # as in test_fastdllm


def frechet_by_hand(row: list[Row], delta: float) -> list[int]:
    order, best = ranked(row), 1
    for n in range(1, len(order) + 1):
        lower = 1 - sum(c.rest for c in order[:n])
        upper = order[n - 1].rest
        if lower - upper > delta + NEAR:
            best = n
    return sorted(c.pos for c in order[:best])


@settings(max_examples=200)
@given(views(most=12), st.sampled_from([0.0, 0.02, 0.25, 0.3, 0.5, 0.9, 1.0]))
def test_it_is_the_literal_rule(view, delta):
    assert committed(Frechet(delta), view) == [frechet_by_hand(r, delta) for r in rows_of(view)]


def test_the_default_is_the_papers():
    assert Frechet() == Frechet(delta=0.25)


def test_the_doubts_add_up_from_the_surest_on():
    # Left after n tokens: .95-.05, .87-.08, .77-.1, .47-.3
    view = hand_made([0.9, 0.7, 0.95, 0.92])
    assert committed(Frechet(0.6), view) == [[0, 2, 3]]
    assert committed(Frechet(0.68), view) == [[2, 3]]
    assert committed(Frechet(0.1), view) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("confidences", "delta", "count"),
    [
        ([0.75, 0.75, 0.75], 0.0, 2),  # 1 - 4 * 0.25 = 0 is not above 0
        ([0.75, 0.75, 0.75], 0.25, 1),  # 1 - 3 * 0.25 = 0.25 is not above 0.25
        ([0.9, 0.9, 0.9], 0.7, 1),  # 1 - 3 * 0.1, however fp32 rounds 0.1
        ([1.0, 1.0], 1.0, 1),  # delta = 1: one at a time
    ],
)
def test_the_bound_is_strict_and_fp32_noise_is_not_a_pass(confidences, delta, count):
    c = torch.tensor([confidences], dtype=torch.float64)
    for direction in (-torch.inf, torch.inf):
        log1m = torch.log1p(-c).float()
        log1m = log1m.nextafter(torch.full_like(log1m, direction))
        view = hand_made(confidences, log1m=log1m)
        assert committed(Frechet(delta), view) == [list(range(count))]


def test_many_tiny_doubts_add_up_where_confidences_are_saturated():
    # 4000 doubts of 1e-7: fp32 confidences would each be off by a good part of that.
    left, many = 1e-7, 4000
    log1m = torch.full((1, many), float(np.log(left)))
    view = hand_made([1.0] * many, log1m=log1m)
    (chosen,) = committed(Frechet(1 - 2e-4), view)
    assert len(chosen) == pytest.approx(2e-4 / left - 1, abs=2)


@pytest.mark.parametrize("delta", [0.0, 0.25])
def test_the_committed_tokens_are_the_mode_of_every_joint_with_these_marginals(delta):
    """The bound itself: in random joints of three binary tokens, and with margin over any rival."""
    rng, fired = np.random.default_rng(1), 0
    cells = list(product((0, 1), repeat=3))
    for _ in range(300):
        p = rng.dirichlet(np.full(8, 0.3)).reshape(2, 2, 2)
        marginal = [p.sum(tuple(a for a in range(3) if a != i)) for i in range(3)]
        mode = [int(m.argmax()) for m in marginal]
        conf = [float(m.max()) for m in marginal]
        (chosen,) = committed(Frechet(delta), hand_made(conf))
        if len(chosen) > 1:
            fired += 1
            joint: dict[tuple[int, ...], float] = {}
            for cell in cells:
                key = tuple(cell[i] for i in chosen)
                joint[key] = joint.get(key, 0.0) + float(p[cell])
            own = joint.pop(tuple(mode[i] for i in chosen))
            assert own - max(joint.values()) > delta
    assert fired > 20


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan")])
def test_a_bad_delta_is_named(bad):
    with pytest.raises(ValueError, match=f"delta={bad}: expected"):
        Frechet(bad)
