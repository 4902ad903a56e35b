"""First-hitting sampler: a uniform order, ancestral sampling's distribution, and noise with a whole
tail.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.samplers.candidates import TOKEN_STREAM, Candidates, draw
from dllm.samplers.fhs import FirstHitting
from dllm.samplers.noise import gumbel, uniform
from dllm.samplers.rule import commits
from tests.samplers.views import alone, committed, hand_made, keys, rows_of, views

N = 20_000


@given(views(), st.integers(1, 4))
def test_the_largest_uniforms_are_committed(view, count):
    luck = view.uniform()
    for b, row in enumerate(rows_of(view)):
        order = sorted(row, key=lambda c, b=b: -luck[b, c.column].item())
        expected = sorted(c.pos for c in order[:count])
        assert committed(FirstHitting(count), view)[b] == expected
        assert committed(FirstHitting(count), alone(view, b)) == [expected]


@given(views())
def test_probabilities_do_not_matter(view):
    other = replace(view, conf=1 - view.conf, log1m=-view.log1m, token=view.token * 0)
    assert committed(FirstHitting(), view) == committed(FirstHitting(), other)


ROW_KEYS = keys(5, range(N))


def many(masked: int, step: int, valid: torch.Tensor, token: torch.Tensor) -> Candidates:
    """N rows with `masked` positions each, after `step` forwards."""
    view = hand_made([0.5] * masked)
    names = "pos conf log1m ends start end window_masked prompt length masked fillable"
    grow = {
        name: getattr(view, name).expand(N, *getattr(view, name).shape[1:])
        for name in names.split()
    }
    at = torch.full((N,), step)
    rows = {"row": torch.arange(N), "key": ROW_KEYS}
    return replace(view, **grow, **rows, step=at, window_step=at, valid=valid, token=token)


def test_every_order_is_equally_likely():
    valid, order = torch.ones(N, 3, dtype=torch.bool), []
    for step in range(3):
        view = many(3, step, valid, torch.zeros(N, 3, dtype=torch.long))
        chosen = FirstHitting().select(view).commit
        assert (chosen.sum(1) == 1).all()
        order.append(chosen.int().argmax(1))
        valid = valid & ~chosen
    code = order[0] * 9 + order[1] * 3 + order[2]
    counts = torch.bincount(code, minlength=27).double()
    seen = counts[counts > 0]
    assert len(seen) == 6
    chi2 = ((seen - N / 6) ** 2 / (N / 6)).sum()
    assert chi2 < 20.5  # 5 degrees of freedom, p = 0.001


SYMBOLS, POSITIONS, HIDDEN = 2, 3, 2


def network(seed: int = 0) -> dict[tuple[int, ...], np.ndarray]:
    """State (HIDDEN: a masked position) -> distributions [POSITIONS, SYMBOLS]; conditionals that
    fit no joint distribution.
    """
    rng = np.random.default_rng(seed)
    states = itertools.product(range(SYMBOLS + 1), repeat=POSITIONS)
    return {state: rng.dirichlet([0.7] * SYMBOLS, POSITIONS) for state in states}


def ancestral(steps: int) -> np.ndarray:
    """Law of the answer by ancestral sampling, masked share 1 - k / steps after step k; exact."""
    distributions = network()
    states = list(distributions)
    distribution = dict.fromkeys(states, 0.0) | {(HIDDEN,) * POSITIONS: 1.0}
    for left in range(steps, 0, -1):
        after = dict.fromkeys(states, 0.0)
        for state, weight in distribution.items():
            if weight == 0:
                continue
            choices = []
            for i, symbol in enumerate(state):
                if symbol == HIDDEN:
                    hit = [(s, p / left) for s, p in enumerate(distributions[state][i])]
                    choices.append([(HIDDEN, 1 - 1 / left), *hit])
                else:
                    choices.append([(symbol, 1.0)])
            for picks in itertools.product(*choices):
                after[tuple(s for s, _ in picks)] += weight * math.prod(p for _, p in picks)
        distribution = after
    return np.array([distribution[x] for x in itertools.product(range(SYMBOLS), repeat=POSITIONS)])


def first_hitting(count: int) -> np.ndarray:
    """Law of the answer by the rule, tokens drawn as the engine draws them; N rows."""
    distributions = network()
    codes = torch.tensor([3 ** (POSITIONS - 1 - i) for i in range(POSITIONS)])
    table = torch.tensor(
        np.array([distributions[state] for state in distributions])
    ).log()  # by base-3 code
    x = torch.full((N, POSITIONS), HIDDEN)
    pos, stream = torch.arange(POSITIONS)[None], torch.tensor([[TOKEN_STREAM]])
    for step in range(-(-POSITIONS // count)):
        z = table[(x * codes).sum(1)]
        u = uniform(5, torch.arange(N)[:, None], torch.tensor([[step]]), pos, stream)
        view = many(POSITIONS, step, x == HIDDEN, draw(z, u))
        chosen = commits(view, FirstHitting(count).select(view))
        x = torch.where(chosen, view.token, x)
    code = (x * torch.tensor([SYMBOLS ** (POSITIONS - 1 - i) for i in range(POSITIONS)])).sum(1)
    return (torch.bincount(code, minlength=SYMBOLS**POSITIONS).double() / N).numpy()


def apart(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation."""
    return 0.5 * float(np.abs(p - q).sum())


def test_the_distribution_is_ancestral_sampling_with_many_steps():
    coarse, limit = ancestral(2), ancestral(400)
    rule = first_hitting(1)
    assert apart(rule, limit) < 0.012  # sqrt(8 / N) / 2 is 0.010, bias 1 / 400 per pair
    assert apart(rule, coarse) > 0.03


def test_two_tokens_a_forward_are_another_distribution():
    assert apart(first_hitting(2), ancestral(400)) > 0.03


A, V = 1 / 1024, 50_000  # chance that a position is unmasked in a small step; a Zipf vocabulary
ZIPF = 1 / np.arange(1, V + 1) / (1 / np.arange(1, V + 1)).sum()
TAIL = float(ZIPF[1000:].sum())


def race(bits: int) -> tuple[float, float]:
    """P(unmasked) and the tail's share, by Gumbel-max over {mask} and tokens, u below 1 - 2^-bits.

    Gumbel-max is a race: -ln(u) / weight, the least wins. A token comes before the mask, whose time
    is t, if u > exp(-weight * t); where weight * t is below 2^-bits no u does. Two tokens before
    the mask have chance a^2 and are left out.
    """
    n = 200
    times = -np.log1p(-(np.arange(n) + 0.5) / n) / (1 - A)  # quantiles of the mask's time
    wins = np.zeros(V)
    for t in times:
        above = -np.expm1(-A * ZIPF * t)  # P(u > exp(-weight * t)) for u up to 1
        wins += np.maximum(above - 2.0**-bits, 0) / n
    return float(wins.sum()), float(wins[1000:].sum() / wins.sum())


def test_float32_noise_loses_the_tail_of_a_joint_draw():
    """samplers.md, section 10: unmasked 6.2e-4 in place of 9.8e-4, tail .052 in place of .343."""
    unmasked, tail = race(24)
    assert unmasked == pytest.approx(6.2e-4, abs=0.05e-4)
    assert tail == pytest.approx(0.052, abs=0.001)
    largest = torch.tensor(1 - 2.0**-24, dtype=torch.float32)
    assert float(gumbel(largest)) == pytest.approx(16.64, abs=0.01)
    assert largest.nextafter(torch.tensor(2.0)) == 1


def test_our_noise_keeps_it():
    unmasked, tail = race(52)
    assert unmasked == pytest.approx(A, rel=0.01)
    assert tail == pytest.approx(TAIL, rel=1e-3)
    assert tail == pytest.approx(0.343, abs=0.001)
    u = uniform(0, torch.arange(N))
    assert u.dtype == torch.float64
    assert ((u * 2**24) % 1 != 0).all()  # finer than float32's grid
    largest = 1 - torch.tensor(2.0**-53, dtype=torch.float64)  # 0.5 below the grid's end
    assert float(gumbel(largest)) > 36.7


def test_our_draw_keeps_the_joint_distribution():
    """The inverse of the cumulative mass at evenly spread u: shares are exact up to the spread."""
    z = torch.tensor(np.concatenate([A * ZIPF, [1 - A]])).log()
    assert not torch.isinf(z).any()
    n = 512
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n * A  # where tokens are drawn
    token = draw(z.expand(1, n, -1), u[None])[0]
    assert (token < V).all()
    assert (token >= 1000).double().mean() == pytest.approx(TAIL, abs=1.5 / n)
    edges = torch.tensor([[A * (1 - 1e-9), A * (1 + 1e-9)]], dtype=torch.float64)
    assert (draw(z.expand(1, 2, -1), edges) < V).tolist() == [[True, False]]


@pytest.mark.parametrize("count", [0, -1, float("nan")])
def test_a_bad_count_names_its_value(count):
    with pytest.raises(ValueError, match=f"count={count}"):
        FirstHitting(count)
