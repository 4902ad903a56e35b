"""Scores against closed forms in float64, and the order that rules rank by."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dllm.decoding.canvas import Canvas, Windows, positions
from dllm.samplers import candidates
from dllm.samplers.candidates import (
    Candidates,
    Progress,
    Proposal,
    draw,
    per_window,
    score,
    truncate,
)
from dllm.samplers.fastdllm import ThresholdRule
from dllm.samplers.quota import Quota
from dllm.samplers.rule import commits, steps_of_window, top

V, MASK, END = 7, 3, 1
NEEDS = frozenset({"margin", "entropy"})


def view(logits: torch.Tensor, needs: frozenset[str] = NEEDS, **how) -> Candidates:
    """Candidates of logits [B, K, V], every row being K masked positions and nothing else."""
    batch, size, _ = logits.shape
    canvas = Canvas.from_prompts([[]] * batch, size, MASK)
    zero = torch.zeros(batch, dtype=torch.long)
    pos, valid = positions(canvas.masked)
    proposal = Proposal(**({"banned": (MASK,), "stop_ids": (END,)} | how))
    return Candidates(
        pos=pos,
        valid=valid,
        **score(logits, pos, valid, zero, canvas, proposal, needs),
        **dict.fromkeys(("start", "window_step", "step", "prompt"), zero),
        **dict.fromkeys(("end", "window_masked", "length"), zero + size),
        row=canvas.row,
        filled=zero.float(),
    )


def distribution_of(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64).copy()
    z[..., MASK] = -np.inf
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def logits_of(width: int, bound: float) -> st.SearchStrategy[np.ndarray]:
    cells = st.floats(-bound, bound, width=width)
    return hnp.arrays(f"float{width}", (2, 3, V), elements=cells)


@settings(max_examples=60)
@given(st.one_of(logits_of(32, 8), logits_of(64, 8), logits_of(32, 2)))
def test_scores_have_their_closed_forms(z):
    found, p = view(torch.from_numpy(z)), distribution_of(z)
    ranked = np.sort(p)
    close = {"rtol": 2e-5, "atol": 2e-7}
    assert found.conf.dtype == found.log1m.dtype == torch.float32
    best = np.delete(z, MASK, -1).argmax(-1)  # of the logits: exp may round a gap away
    np.testing.assert_array_equal(found.token, best + (best >= MASK))
    np.testing.assert_allclose(found.conf, ranked[..., -1], **close)
    np.testing.assert_allclose(found.log1m, np.log(ranked[..., :-1].sum(-1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found.margin, ranked[..., -1] - ranked[..., -2], rtol=2e-5, atol=5e-7
    )
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-4, atol=2e-6)
    np.testing.assert_array_equal(found.ends, best == END)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gap", [16.0, 32.0, 64.0, 80.0])
def test_saturated_scores_keep_their_order(gap, dtype):
    """conf is 1.0 in float32; log(1 - p) and the entropy still tell how far it is from one."""
    z = torch.zeros(1, 2, V, dtype=dtype)
    z[0, 0, 2], z[0, 1, 2] = gap, gap + 2
    found = view(z)
    if gap > 20:
        assert found.conf.tolist() == [[1.0, 1.0]]
    rest = V - 2  # tokens besides the best and the mask
    expected = [np.log(rest) - g - np.log1p(rest * np.exp(-g)) for g in (gap, gap + 2)]
    assert found.log1m[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert found.rank().tolist() == [[1, 0]]
    assert found.entropy[0, 0] > found.entropy[0, 1] > 0
    for rule in (Quota(), Quota(confidence_eos_eot_inf=True)):
        one = rule.select(found).commit
        assert one.tolist() == [[False, True]]


def test_banned_tokens_have_no_mass():
    z = torch.zeros(1, 1, V)
    z[..., MASK], z[..., END], z[..., 4] = 50.0, 40.0, 1.0
    for temperature in (0.0, 2.0):
        found = view(z, banned=(MASK, END), temperature=temperature)
        assert found.token not in (MASK, END)
    p = np.e / (np.e + V - 3)
    assert view(z, banned=(MASK, END)).conf.item() == pytest.approx(p)


def test_a_banned_plus_infinity_does_no_harm():
    z = torch.zeros(1, 1, V)
    z[..., MASK], z[..., 4] = torch.inf, 1.0
    assert torch.isfinite(view(z).conf).all()


def test_the_model_may_forbid_all_but_one_token():
    z = torch.full((1, 1, V), -torch.inf)
    z[..., 4] = -3.0
    for temperature in (0.0, 1.0):
        found = view(z, temperature=temperature)
        assert (found.token.item(), found.conf.item(), found.entropy.item()) == (4, 1.0, 0.0)
        assert found.margin.item() == 1.0
        assert found.log1m.item() == -torch.inf


def test_the_logits_are_left_alone():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        z = torch.randn(2, 3, V, generator=torch.manual_seed(0)).to(dtype)
        before = z.clone()
        view(z, temperature=0.7, top_p=0.9, top_k=2, tempered=True)
        assert torch.equal(z, before)


def test_argmax_ties_go_to_the_lower_token():
    assert view(torch.zeros(1, 2, V)).token.tolist() == [[0, 0]]


@settings(max_examples=40)
@given(logits_of(64, 4), st.sampled_from([0.5, 2.0]), st.booleans())
def test_confidence_distribution(z, temperature, tempered):
    """`tempered` confidences are of the distribution drawn from, the others of the model's own."""
    found = view(torch.from_numpy(z), temperature=temperature, tempered=tempered)
    p = distribution_of(z / temperature if tempered else z)
    own = np.take_along_axis(p, found.token.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.conf, own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.9, "top_p": 0.9}, {"tempered": True, "top_k": 2}]
)
def test_chunks_change_nothing(monkeypatch, how):
    z = torch.randn(3, 5, V, generator=torch.manual_seed(1), dtype=torch.float64)
    whole = view(z, **how)
    monkeypatch.setattr(candidates, "CHUNK", 1)
    cut = view(z, **how)
    for field in ("token", "conf", "log1m", "margin", "entropy", "ends"):
        assert torch.equal(getattr(whole, field), getattr(cut, field)), field


def test_the_logits_that_are_kept_are_those_that_were_scored(monkeypatch):
    monkeypatch.setattr(candidates, "CHUNK", 1)  # every position in the memory of the one before
    z = torch.randn(2, 3, V, generator=torch.manual_seed(2))
    expected = z.clone()
    expected[..., MASK] = -torch.inf
    assert torch.equal(view(z, NEEDS | {"logits"}).logits, expected)


# --- truncation and drawing ----------------------------------------------------------------------


def kept(z: list[float], top_p: float = 1.0, top_k: int = 0) -> list[int]:
    cut = truncate(torch.tensor([[z]], dtype=torch.float64), top_p, top_k)[0, 0]
    return torch.isfinite(cut).nonzero()[:, 0].tolist()


def test_truncation_sets_are_exact():
    z = np.log([0.1, 0.4, 0.2, 0.3]).tolist()
    assert kept(z) == [0, 1, 2, 3]
    assert [kept(z, top_p=p) for p in (1e-9, 0.39, 0.41, 0.71, 0.91)] == [
        [1],
        [1],
        [1, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert [kept(z, top_k=k) for k in (1, 2, 3, 4, 9)] == [
        [1],
        [1, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert kept(z, top_p=0.95, top_k=2) == [1, 3]
    assert kept(z, top_p=0.45, top_k=3) == [1, 3]


def test_top_p_of_equals_keeps_the_lower_tokens():
    assert kept([0.0] * 4, top_p=0.49) == [0, 1]
    assert kept([0.0] * 4, top_p=0.51) == [0, 1, 2]


def test_draw_inverts_the_cumulative_mass():
    z = torch.log(torch.tensor([[[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]], dtype=torch.float64))
    low, high = 2.0**-53, 1 - 2.0**-53
    wanted = {low: 1, 0.2499: 1, 0.2501: 3, 0.7499: 3, 0.7501: 4, high: 4}
    for u, token in wanted.items():
        assert draw(z, torch.tensor([[u]], dtype=torch.float64)).item() == token


# --- order ---------------------------------------------------------------------------------------


def bare(conf: list, log1m: list, valid: list | None = None) -> Candidates:
    c = torch.tensor(conf)
    fields = dict.fromkeys(Candidates.__slots__)
    pos = torch.arange(c.shape[1]).expand(c.shape)
    ok = torch.ones_like(c, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return Candidates(**fields | {"conf": c, "log1m": torch.tensor(log1m), "pos": pos, "valid": ok})


scores = st.sampled_from([0.0, 0.25, 0.5, 1.0])
pairs = st.lists(st.tuples(scores, scores, st.booleans()), min_size=1, max_size=6)


@given(pairs)
def test_rank_is_lexicographic(rows):
    conf, log1m, valid = ([list(column)] for column in zip(*rows))
    found = bare(conf, log1m, valid)
    keys = range(len(rows))
    real = sum(valid[0])  # padding is behind them in whatever order
    by_certainty = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][0], rows[k][1], k))
    assert found.rank()[0].argsort().tolist()[:real] == by_certainty[:real]
    by_score = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][1], k))
    assert found.rank(found.log1m)[0].argsort().tolist()[:real] == by_score[:real]
    count = real // 2
    best = top(found, torch.tensor([count]), found.log1m)[0].nonzero()[:, 0].tolist()
    assert best == sorted(by_score[:count])


floats = st.floats(width=32, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 1.0, 2**-149, -(2**-149)]
)


@given(st.lists(st.tuples(floats, floats, st.booleans()), min_size=1, max_size=9))
def test_all_finite_and_infinite_scores_are_in_order(rows):
    first, second, valid = ([list(column)] for column in zip(*rows))
    found = bare(first, second, valid)
    keys, real = range(len(rows)), sum(valid[0])
    by_one = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][0], k))
    by_two = sorted(keys, key=lambda k: (not rows[k][2], -rows[k][0], -rows[k][1], k))
    for kind in (torch.float32, torch.float64):
        one, two = torch.tensor(first, dtype=kind), torch.tensor(second, dtype=kind)
        for scores, expected in (((one,), by_one), ((one, two), by_two), ((one, one, two), by_two)):
            ranks = found.rank(*scores)[0]
            assert ranks.argsort().tolist()[:real] == expected[:real]
            assert sorted(ranks.tolist()) == [*keys]


def test_many_ties_keep_their_order():
    """Long enough that a sort which is not stable would show."""
    count = 5000
    conf = [[0.25, 0.5] * (count // 2)]
    order = bare(conf, [[0.0] * count]).rank()[0].argsort().tolist()
    assert order == [*range(1, count, 2), *range(0, count, 2)]


def test_padding_ranks_last_and_is_never_taken():
    found = bare([[0.1, 0.9, float("nan")]], [[0.0, -2.0, float("nan")]], [[True, False, False]])
    assert found.rank()[0, 0] == 0
    assert top(found, torch.tensor([3])).tolist() == [[True, False, False]]


def test_rows_rank_apart():
    assert bare([[0.1, 0.2], [0.4, 0.3]], [[0.0, 0.0]] * 2).rank().tolist() == [[1, 0], [0, 1]]


def test_the_threshold_itself_is_enough():
    found = bare([[0.9, 0.8999, 0.95]], [[0.0] * 3])
    assert ThresholdRule(0.9).select(found).commit.tolist() == [[True, False, True]]
    assert ThresholdRule(0.99).select(found).commit.tolist() == [[False, False, False]]
    assert commits(found, ThresholdRule(0.99).select(found)).tolist() == [[False, False, True]]


# --- windows -------------------------------------------------------------------------------------


def test_masked_positions_of_the_window_in_ascending_order_with_padding():
    canvas = Canvas.from_prompts([[5], [5, 5]], 4, MASK)
    canvas.commit(
        torch.tensor([[2], [3]]), torch.tensor([[6], [6]]), torch.tensor([[True], [False]])
    )
    windows = Windows(torch.tensor([1, 2]), torch.tensor([4, 6]))
    pos, valid = positions(canvas.masked & windows.contains(canvas.pos))
    assert valid.tolist() == [[True, True, False, False], [True] * 4]
    assert pos[0, :2].tolist() == [1, 3]
    assert pos[1].tolist() == [2, 3, 4, 5]


def test_every_window_becomes_a_row_of_the_view():
    whole = view(torch.arange(2 * 6 * V).view(2, 6, V).float())
    windows = Windows(torch.tensor([[0, 2], [1, 4]]), torch.tensor([[2, 5], [4, 4]]))
    steps = torch.tensor([[3, 1], [2, 7]])
    progress = Progress(whole.step, steps, steps + 10, windows.start)
    split = per_window(whole, windows, progress)
    inside = [split.pos[i, split.valid[i]].tolist() for i in range(4)]
    assert inside == [[0, 1], [2, 3, 4], [1, 2, 3], []]
    assert split.row.tolist() == [0, 0, 1, 1]
    assert split.window_step.tolist() == [3, 1, 2, 7]
    assert split.window_masked.tolist() == [13, 11, 12, 17]
    assert torch.equal(split.conf, whole.conf.repeat_interleave(2, 0))


@given(st.integers(1, 40), st.integers(1, 40), st.none() | st.integers(1, 60))
def test_shares_of_the_steps_add_up(size, block, steps):
    edges = [*range(0, size, block), size]
    n = len(edges) - 1
    length = torch.full((n,), size + 3)
    rows = SimpleNamespace(
        length=length,
        prompt=torch.full((n,), 3),
        start=torch.tensor(edges[:-1]) + 3,
        end=torch.tensor(edges[1:]) + 3,
    )
    shares = steps_of_window(rows, steps).tolist()
    total = size if steps is None else steps
    assert min(shares) >= 1
    assert sum(shares) >= total
    if all(total * edge // size != total * last // size for last, edge in pairwise(edges)):
        assert sum(shares) == total
    if total * block % size == 0 and size % block == 0:
        assert shares == [max(1, total * block // size)] * n  # upstream's T * Lb / G
