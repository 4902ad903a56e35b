"""Counter-based noise: a pure function of its counters that looks like independent uniforms."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.samplers.noise import gumbel, row_key, uniform
from tests.samplers.views import keys, views

N = 20_000
int64 = st.integers(-(2**63), 2**63 - 1)


def grid(n: int = N) -> torch.Tensor:
    return torch.arange(n)


@cache
def streams() -> dict[str, torch.Tensor]:
    """N numbers along each counter, the others at zero; and with a few of them elsewhere."""
    n, zero, one = grid(), torch.tensor([0]), torch.tensor([1])
    first = keys(0, [0])
    return {
        "rows": uniform(keys(0, n), zero, zero, zero),
        "steps": uniform(first, n, zero, zero),
        "positions": uniform(first, zero, n, zero),
        "other stream": uniform(first, zero, n, one),
        "next step": uniform(first, one, n, zero),
        "next row": uniform(keys(0, [1]), zero, n, zero),
        "next seed": uniform(keys(1, [0]), zero, n, zero),
        "seeds": torch.cat([uniform(keys(s, [0]), zero, zero, zero) for s in range(N // 10)]),
        "far row": uniform(keys(0, [2**40]), zero, n, zero),
    }


def literal(seed: int, *counters: int) -> float:
    """The formula in Python's integers; the row is the first counter."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    x = mixed(seed % 2**64)
    for counter in counters:
        x = mixed((x * 31 + 0x9E3779B97F4A7C15 + counter) % 2**64)
    return ((mixed(x) >> 12) + 0.5) * 2.0**-52


@given(st.integers(-(2**70), 2**70), int64, st.lists(int64, max_size=3))
def test_numbers_are_those_of_the_formula(seed, row, counters):
    key, tensors = torch.tensor(row_key(seed, row)), [torch.tensor(c) for c in counters]
    u = uniform(key, *tensors)
    assert u.dtype == torch.float64
    assert u == uniform(key, *tensors) == literal(seed, row, *counters)
    assert 0 < u < 1
    assert row_key(seed, row) == row_key(seed + 2**64, row)


@given(views(), int64)
def test_a_rule_draws_by_seed_row_step_and_position(view, seed):
    view = replace(view, key=keys(seed, view.row))
    expected = [
        [literal(seed, row, step, at, 1) for at in pos]
        for row, step, pos in zip(view.row.tolist(), view.step.tolist(), view.pos.tolist())
    ]
    assert view.uniform().tolist() == expected


def test_a_number_does_not_depend_on_its_neighbours():
    rows, positions = keys(7, [5, 0, 3])[:, None], torch.tensor([[4, 9], [9, 1], [0, 9]])
    together = uniform(rows, torch.tensor(2), positions)
    assert together.shape == (3, 2)
    for i in range(3):
        alone = uniform(rows[i : i + 1], torch.tensor([[2]]), positions[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = uniform(keys(0, [0]), grid(10))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(uniform(keys(0, [0]), grid(10)), first)


@pytest.mark.parametrize("name", streams())
def test_uniform(name):
    """Kolmogorov-Smirnov, first two moments and the lowest digits, each at 4 sigma or so."""
    u = np.sort(streams()[name].numpy())
    n = len(u)
    assert len(np.unique(u)) == n
    steps = np.arange(n)
    distance = max((u - steps / n).max(), ((steps + 1) / n - u).max())
    assert distance < 2.0 / math.sqrt(n)  # exceeded with probability 2 exp(-2 * 2^2) = 7e-4
    assert abs(u.mean() - 1 / 2) < 4 / math.sqrt(12 * n)
    assert abs(((u - 1 / 2) ** 2).mean() - 1 / 12) < 4 / math.sqrt(180 * n)
    low = (u * 2**20) % 1
    assert abs(low.mean() - 1 / 2) < 4 / math.sqrt(12 * n)


def test_streams_are_uncorrelated():
    found = {name: u[: N // 10] for name, u in streams().items()}
    names = list(found)
    matrix = np.corrcoef(np.stack([found[name].numpy() for name in names]))
    # "positions" of row 0, step 0 and the like share one number with another stream: no more
    assert np.abs(matrix - np.eye(len(names))).max() < 4.5 / math.sqrt(N // 10)


@pytest.mark.parametrize("lag", [1, 2, 31, 64])
def test_neighbours_along_a_counter_are_uncorrelated(lag):
    for name, u in streams().items():
        x = u.numpy()
        r = np.corrcoef(x[:-lag], x[lag:])[0, 1]
        assert abs(r) < 4.5 / math.sqrt(len(x) - lag), name


def test_no_two_of_many_counters_coincide():
    """Seeds, rows, steps, positions and streams of a real run: 2 * 64 * 8 * 32 * 2 numbers."""
    axes = [torch.arange(n).view([-1, *[1] * k]) for n, k in ((8, 2), (32, 1), (2, 0))]
    rows = (keys(seed, range(64)).view(-1, 1, 1, 1) for seed in (0, 1))
    found = torch.cat([uniform(key, *axes).flatten() for key in rows])
    assert len(found.unique()) == 2 * 64 * 8 * 32 * 2


def test_the_ends_are_open_and_the_gumbels_finite():
    lowest, highest = 2.0**-53, 1 - 2.0**-53  # what 52 random bits plus a half can give
    g = gumbel(torch.tensor([lowest, 0.5, highest], dtype=torch.float64))
    assert torch.isfinite(g).all()
    assert g.tolist() == pytest.approx(
        [-math.log(-math.log(lowest)), -math.log(math.log(2)), 36.7368], rel=1e-5
    )
    u = uniform(keys(0, [0]), grid(200_000))
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    odd = (u * 2.0**53).long() % 2  # every number sits in the middle of its cell
    assert odd.min() == 1


def test_zero_is_a_counter_like_any_other():
    """Mixing alone would leave it at zero, the lowest number there is."""
    for n in range(4):
        assert 1e-3 < uniform(keys(0, [0]), *[torch.tensor(0)] * n) < 1 - 1e-3


def test_gumbel_moments():
    g = gumbel(uniform(keys(5, [0]), grid()))
    assert g.mean() == pytest.approx(0.5772157, abs=4 * math.pi / math.sqrt(6 * N))
    assert g.var() == pytest.approx(math.pi**2 / 6, rel=0.06)
