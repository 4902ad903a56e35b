"""Draws follow their distributions: tokens, and the positions of the random rules.

Seeds are fixed and every row is a draw, so a test passes always or never; the bounds are 4 sigma.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import permutations, product

import numpy as np
import pytest

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.output import Commit
from tests.fakes import EOS, EOT, MASK, VOCAB, FakeModel, Out, hashed, scripted

DRAWS = 3000


def first_commits(out: Out, draws: int = DRAWS, **options) -> list[list[Commit]]:
    """The commits of `draws` rows without a prompt, which share all but their identity."""
    config = DecodeConfig(history=True, **options)
    outputs = Engine(FakeModel(out)).generate([[]] * draws, config)
    return [output.history for output in outputs]


def assert_distribution(found: Counter, distribution: Mapping) -> None:
    """Chi-square within 4 sigma, and nothing outside the support."""
    total = sum(found.values())
    assert set(found) <= {key for key, p in distribution.items() if p > 0}
    assert sum(distribution.values()) == pytest.approx(1)
    cells = [(found[key], p * total) for key, p in distribution.items() if p * total >= 5]
    chi2, df = sum((n - e) ** 2 / e for n, e in cells), len(cells) - 1
    assert df > 0
    assert chi2 < df + 4 * np.sqrt(2 * df)


def token_distribution(
    z: np.ndarray, temperature: float, top_p: float = 1, top_k: int = 0
) -> np.ndarray:
    """softmax(z / T) without the mask token, cut to top_p and then to top_k, renormalised."""
    z = z / temperature
    z[MASK] = -np.inf
    p = np.exp(z - z.max())
    p /= p.sum()
    order = sorted(range(VOCAB), key=lambda token: -p[token])
    mass, kept = 0.0, []
    for token in order:
        if mass < top_p:
            kept.append(token)
        mass += p[token]
    kept = kept[:top_k] if top_k else kept
    cut = np.zeros(VOCAB)
    cut[kept] = p[kept] / p[kept].sum()
    return cut


@pytest.mark.parametrize("sampler", ["quota", "dream"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"temperature": 1.0, "top_p": 0.75},
        {"temperature": 1.5, "top_k": 4},
        {"temperature": 1.5, "top_p": 0.8, "top_k": 3},
    ],
)
def test_tokens_follow_the_tempered_distribution(sampler, options):
    out, draws = hashed(3, spread=0.8), DRAWS if sampler == "quota" else 300  # drawn alike
    rows = first_commits(out, draws, max_new_tokens=1, sampler=sampler, **options)
    distribution = token_distribution(out(np.array([MASK]))[0], **options)
    assert_distribution(Counter(row[0].token_ids[0] for row in rows), dict(enumerate(distribution)))
    conf = {row[0].token_ids[0]: row[0].confidences[0] for row in rows}
    # Dream's confidences are of the distribution that is drawn from, others of the model's own
    if sampler == "quota":
        distribution = token_distribution(out(np.array([MASK]))[0], 1.0)
    for token, value in conf.items():
        assert value == pytest.approx(distribution[token], rel=1e-6)


def test_positions_draw_independently():
    out = hashed(8, spread=0.7)
    rows = first_commits(out, max_new_tokens=2, sampler="quota:steps=1", temperature=1.0, top_k=4)
    distributions = [token_distribution(z, 1.0, top_k=4) for z in out(np.array([MASK, MASK]))]
    joint = {
        (a, b): distributions[0][a] * distributions[1][b]
        for a, b in product(range(VOCAB), repeat=2)
    }
    assert_distribution(Counter(tuple(row[0].token_ids) for row in rows), joint)


def test_seeds_draw_independently():
    """Row r of one seed is not row r + k of the next."""
    out = hashed(8, spread=0.3)
    options = {"max_new_tokens": 8, "sampler": "quota:steps=1", "temperature": 1.0}
    texts = [
        {tuple(row[0].token_ids) for row in first_commits(out, draws=100, seed=seed, **options)}
        for seed in range(6)
    ]
    assert len(set.union(*texts)) == 600


def order_of(row: list[Commit]) -> tuple[int, ...]:
    assert all(len(commit.positions) == 1 for commit in row)
    return tuple(commit.positions[0] for commit in row)


def plackett_luce(weights: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw of `count` positions without replacement."""
    distribution = {}
    for order in permutations(range(len(weights)), count):
        left, p = weights.sum(), 1.0
        for i in order:
            p, left = p * weights[i] / left, left - weights[i]
        distribution[order] = p
    return distribution


def test_random_remasking_takes_all_orders_alike():
    rows = first_commits(
        scripted({0: 7, 1: 8, 2: 9}), max_new_tokens=3, sampler="quota:remasking=random"
    )
    assert_distribution(Counter(map(order_of, rows)), dict.fromkeys(permutations(range(3)), 1 / 6))


HEIGHTS = {0: 1.0, 1: 2.5, 2: 4.0, 3: 3.0, 4: 1.7}


def confidences() -> np.ndarray:
    return np.array([np.exp(h) / (np.exp(h) + VOCAB - 2) for h in HEIGHTS.values()])


def test_alg_temp_orders_positions_by_plackett_luce():
    out = scripted(dict.fromkeys(range(3), 7), HEIGHTS)
    rows = first_commits(
        out, max_new_tokens=3, sampler="dream:alg=maskgit_plus,steps=3,alg_temp=0.4"
    )
    distribution = plackett_luce(np.exp(confidences()[:3] / 0.4), 3)
    assert_distribution(Counter(map(order_of, rows)), distribution)


def test_alg_temp_draws_several_positions_without_replacement():
    out = scripted(dict.fromkeys(range(5), 7), HEIGHTS)
    rows = first_commits(
        out, max_new_tokens=5, sampler="dream:alg=maskgit_plus,steps=2,alg_temp=0.3"
    )
    distribution: Counter = Counter()
    for order, p in plackett_luce(np.exp(confidences() / 0.3), 2).items():
        distribution[tuple(sorted(order))] += p
    assert_distribution(Counter(tuple(row[0].positions) for row in rows), distribution)


def test_origin_commits_each_position_with_the_rate_of_the_step():
    """Upstream commits nothing with probability (1 - r)^3; here the surest position goes then."""
    out = scripted(dict.fromkeys(range(3), 7), {0: 1.0, 1: 4.0, 2: 2.0})
    rows = first_commits(out, max_new_tokens=3, sampler="dream:alg=origin,steps=3")
    r = 1 - (1 - (1 - 1e-3) / 3)
    distribution: Counter = Counter()
    for chosen in product([False, True], repeat=3):
        subset = tuple(i for i in range(3) if chosen[i]) or (1,)
        distribution[subset] += r ** sum(chosen) * (1 - r) ** (3 - sum(chosen))
    assert_distribution(Counter(tuple(row[0].positions) for row in rows), distribution)
    assert max(len(row) for row in rows) == 3  # the last step commits all that is left


def test_origin_rate_grows_with_the_steps():
    """With two masks left after the first of two steps, the last step takes both."""
    out = scripted(dict.fromkeys(range(3), 7), {0: 1.0, 1: 4.0, 2: 2.0})
    rows = first_commits(out, draws=300, max_new_tokens=3, sampler="dream:alg=origin,steps=2")
    assert {len(row) for row in rows} == {1, 2}
    assert all(sum(len(commit.positions) for commit in row) == 3 for row in rows)


def test_the_token_draw_does_not_decide_the_position():
    """Two streams: for random remasking, which position goes first tells nothing of its token."""
    out = scripted({}, 0.0)
    rows = first_commits(
        out, max_new_tokens=2, sampler="quota:remasking=random", temperature=1.0, top_k=VOCAB
    )
    plain = [token for token in range(VOCAB) if token not in (MASK, EOS, EOT)]
    found = Counter(
        (row[0].positions[0], row[0].token_ids[0]) for row in rows if row[0].token_ids[0] in plain
    )
    distribution = dict.fromkeys(product(range(2), plain), 1 / (2 * len(plain)))
    assert_distribution(found, distribution)
