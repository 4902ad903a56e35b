"""DiffuSpec's path search and length control against the paper's own words."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.verify.research.cps import AdlController, Cps
from tests.verify.control.test_controllers import seen
from tests.verify.drafts import ROOT, columns_of, lattice_of, lattices, memory_of, table


def score(path, columns, proxy, lam):
    before = (ROOT, *path)
    return sum(
        lam * math.log(columns[i][v]) + (1 - lam) * math.log(proxy[before[i], v])
        for i, v in enumerate(path)
    )


def pruned(columns, mass, width, eos):
    """The fewest tokens that have the mass, at most `width`, and every end token."""
    kept = []
    for column in columns:
        tokens, total = [], 0.0
        for token in sorted(column, key=column.get, reverse=True):
            if (total < mass and len(tokens) < width) or token in eos:
                tokens.append(token)
            total += column[token]
        kept.append({token: column[token] for token in tokens})
    return kept


def complete(columns, eos):
    """All paths that end with an end token or behind the last column."""
    found = [()]
    for column in columns:
        found = [
            longer
            for path in found
            for longer in (
                [path] if path and path[-1] in eos else [(*path, token) for token in column]
            )
        ]
    return found


@given(
    lattices(),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.4, 0.8, 1.0]),
    st.integers(1, 4),
)
def test_a_wide_beam_finds_the_best_path(lattice, seed, lam, mass, width):
    """Raw sums: an early end token competes with its score as it stands."""
    columns = pruned(columns_of(lattice), mass, width, lattice.eos)
    search = Cps(beam=10**4, mass=mass, width=width, lam=lam)
    tree = search.grow(ROOT, lattice, memory_of(seed=seed), 9, None)
    found = tuple(tree.tokens[1:])
    assert tree.parents == [-1, *range(tree.drafts)]
    all_paths = complete(columns, lattice.eos)
    assert found in all_paths
    scores = {path: score(path, columns, table(seed), lam) for path in all_paths}
    assert scores[found] >= max(scores.values()) - 1e-9
    given = [columns[i][token] for i, token in enumerate(found)]
    np.testing.assert_allclose(tree.weights[1:], np.cumprod(given))


def literal_beam(columns, eos, proxy, lam, beam):
    kept = [()]
    for column in columns:
        grown = []
        for path in kept:
            grown += [path] if path and path[-1] in eos else [(*path, token) for token in column]
        kept = sorted(grown, key=lambda path: -score(path, columns, proxy, lam))[:beam]
    return kept[0]


@given(lattices(), st.integers(0, 99), st.integers(1, 3))
def test_the_beam(lattice, seed, beam):
    columns = pruned(columns_of(lattice), 0.8, 15, lattice.eos)
    tree = Cps(beam=beam).grow(ROOT, lattice, memory_of(seed=seed), 9, None)
    best = literal_beam(columns, lattice.eos, table(seed), 0.5, beam)
    found = tuple(tree.tokens[1:])
    assert score(found, columns, table(seed), 0.5) == pytest.approx(
        score(best, columns, table(seed), 0.5)
    )


def test_cps_has_the_published_defaults():
    assert Cps() == Cps(beam=3, mass=0.8, width=15, lam=0.5)


def test_cps_prefers_an_early_end():
    """As published: nothing makes up for the length, so two good tokens lose to one poor end."""
    lattice = lattice_of([{1: 0.6, 0: 0.3}, {2: 0.5, 4: 0.5}, {2: 0.5, 4: 0.5}], eos=[0])
    assert Cps().grow(ROOT, lattice, memory_of(), 9, None).tokens == [ROOT, 0]


@dataclass
class LiteralAdl:
    """The paper's algorithm with its names; positions count from 1."""

    k_min: int
    k_max: int
    delta: float
    rho: float
    ema_gen: float = 0.0
    ema_acc: float = 0.0

    def step(self, k: int, first_eos: int | None, accepted: int) -> int:
        l_gen = k if first_eos is None else min(first_eos - 1, k)
        self.ema_gen = (1 - self.rho) * self.ema_gen + self.rho * l_gen
        self.ema_acc = (1 - self.rho) * self.ema_acc + self.rho * accepted
        k_next = self.ema_gen
        if self.ema_acc >= self.ema_gen:
            k_next += self.delta
        if k_next < self.k_min:
            return self.k_min
        return self.k_max if k_next > self.k_max else int(np.floor(k_next))


@given(st.data())
def test_adl_is_the_published_rule(data):
    k_min = data.draw(st.integers(1, 30))
    k_max = data.draw(st.integers(k_min, 60))
    delta = data.draw(st.sampled_from([0, 3, 10]))
    rho = data.draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))
    control = AdlController(k_min, k_max, delta, rho).open(3)
    literal = [LiteralAdl(k_min, k_max, delta, rho) for _ in range(3)]
    lengths = [k_max] * 3
    for row in data.draw(st.lists(st.integers(0, 2), max_size=30)):
        k = lengths[row]
        assert [control.depth(r) for r in range(3)] == lengths
        assert control.drafts(row) == k
        eos = data.draw(st.none() | st.integers(1, k))
        drafted = k if eos is None else eos - 1
        # as much as was drafted is often accepted, so that the length also grows
        accepted = data.draw(st.integers(0, drafted) | st.just(drafted))
        lengths[row] = literal[row].step(k, eos, accepted)
        control.observe(row, seen(k, k if eos is None else eos - 1, accepted))


def test_adl_stays_short_unless_whole_drafts_are_accepted():
    control = AdlController().open(2)
    for accepted in (29, 19, 19, 19, 19, 19):
        control.observe(0, seen(control.depth(0), control.depth(0), accepted))
        control.observe(1, seen(control.depth(1), control.depth(1), control.depth(1)))
    assert [control.depth(0), control.depth(1)] == [20, 30]
