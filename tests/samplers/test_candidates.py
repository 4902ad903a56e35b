"""Scores against closed forms in float64, options by row, windows."""

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
    Proposal,
    draw,
    per_window,
    score,
    truncate,
)
from dllm.samplers.noise import row_key, uniform
from dllm.samplers.quota import Quota
from dllm.samplers.rule import steps_of_window
from tests.samplers.canvases import committed_at
from tests.samplers.views import keys

V, MASK, END = 7, 3, 1
NEEDS = frozenset({"margin", "entropy"})


def view(logits: torch.Tensor, needs: frozenset[str] = NEEDS, **how) -> Candidates:
    """Candidates of logits [B, K, V], every row being K masked positions and nothing else."""
    batch, size, _ = logits.shape
    canvas = Canvas.from_prompts([[]] * batch, size, MASK)
    zero = torch.zeros(batch, dtype=torch.long)
    pos, valid = map(torch.from_numpy, positions(canvas.masked))
    proposal = Proposal(**({"banned": (MASK,), "stop_ids": torch.tensor([END])} | how))
    key = keys(0, canvas.row)
    return Candidates(
        pos=pos,
        valid=valid,
        **score(logits, pos, valid, key, zero, proposal, needs),
        **dict.fromkeys(("start", "window_step", "step", "prompt"), zero),
        **dict.fromkeys(("end", "window_masked", "length", "masked", "fillable"), zero + size),
        row=torch.from_numpy(canvas.row),
        key=key,
        width=size,
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


# --- options by row -----------------------------------------------------------------------------

OPTIONS = {
    "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    "top_p": st.sampled_from([0.3, 0.7, 0.9, 1.0]),
    "top_k": st.sampled_from([0, 1, 3, V, V + 5]),
    "tempered": st.booleans(),
    "ends_banned": st.booleans(),
}


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.float64]),
    st.lists(st.fixed_dictionaries(OPTIONS), min_size=1, max_size=5),
    st.sets(st.sampled_from(["temperature", "top_p", "top_k", "tempered", "ends_banned"])),
)
def test_options_by_row_give_what_each_row_gives_alone(seed, dtype, rows, by_row):
    """Bit for bit; options outside `by_row` are one number for all, that of the first row."""
    rows = [row | {name: rows[0][name] for name in row.keys() - by_row} for row in rows]
    rng = np.random.default_rng(seed)
    size, count = 4, len(rows)
    z = rng.choice([-1.0, 0.0, 0.5, 2.0], (count, size, V)) + rng.choice(
        [0, 1], (count, size, 1)
    ) * rng.normal(0, 3, (count, size, V))  # ties in half of the positions
    logits = torch.from_numpy(z).to(dtype)
    pos = torch.arange(size).expand(count, -1)
    valid = torch.ones_like(pos, dtype=torch.bool)
    key, step = keys(seed, range(count)), torch.arange(count)
    needs = frozenset({"margin", "entropy", "gap", "best", "logits"})
    stop_ids = torch.tensor([END])

    def column(name):
        if name not in by_row:
            return rows[0][name]
        kind = torch.float64 if isinstance(rows[0][name], float) else None
        return torch.tensor([row[name] for row in rows], dtype=kind)[:, None, None]

    how = Proposal(
        **{name: column(name) for name in ("temperature", "top_p", "top_k", "tempered")},
        banned=(MASK,) if "ends_banned" in by_row else banned(rows[0]),
        banned_too=(END, column("ends_banned")) if "ends_banned" in by_row else None,
        stop_ids=stop_ids,
    )
    together = score(logits, pos, valid, key, step, how, needs)
    for b, row in enumerate(rows):
        own = {name: row[name] for name in ("temperature", "top_p", "top_k", "tempered")}
        alone = Proposal(**own, banned=banned(row), stop_ids=stop_ids)
        cut = slice(b, b + 1)
        one = score(logits[cut], pos[cut], valid[cut], key[cut], step[cut], alone, needs)
        assert one.keys() == together.keys()
        for name, value in one.items():
            assert torch.equal(together[name][cut].nan_to_num(7), value.nan_to_num(7)), name


def banned(row: dict) -> tuple[int, ...]:
    return (MASK, END) if row["ends_banned"] else (MASK,)


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(0, 2**20))
def test_tokens_are_drawn_from_the_stream_of_tokens(seed, row, step):
    z = torch.randn(1, 5, V, dtype=torch.float64, generator=torch.manual_seed(3))
    key, steps = torch.tensor([row_key(seed, row)]), torch.tensor([step])
    pos, zero = torch.arange(5)[None], torch.zeros(1, 1, dtype=torch.long)
    found = score(z, pos, pos >= 0, key, steps, Proposal(1.0), frozenset())
    u = uniform(key[:, None], steps[:, None], pos, zero)
    assert torch.equal(found["token"], draw(z, u))


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


# --- windows -------------------------------------------------------------------------------------


def test_masked_positions_of_the_window_in_ascending_order_with_padding():
    canvas = Canvas.from_prompts([[5], [5, 5]], 4, MASK)
    canvas = committed_at(canvas, 0, [2], 6)
    windows = Windows(np.array([1, 2]), np.array([4, 6]))
    pos, valid = positions(canvas.masked & windows.contains(canvas.pos))
    assert valid.tolist() == [[True, True, False, False], [True] * 4]
    assert pos[0, :2].tolist() == [1, 3]
    assert pos[1].tolist() == [2, 3, 4, 5]


def test_every_window_becomes_a_row_of_the_view():
    whole = view(torch.arange(2 * 6 * V).view(2, 6, V).float())
    steps = torch.tensor([[3, 1], [2, 7]])
    window = {
        "start": torch.tensor([[0, 2], [1, 4]]),
        "end": torch.tensor([[2, 5], [4, 4]]),
        "window_step": steps,
        "window_masked": steps + 10,
    }
    split = per_window(whole, window)
    inside = [split.pos[i, split.valid[i]].tolist() for i in range(4)]
    assert inside == [[0, 1], [2, 3, 4], [1, 2, 3], []]
    assert split.row.tolist() == [0, 0, 1, 1]
    assert split.start.tolist() == [0, 2, 1, 4]
    assert split.end.tolist() == [2, 5, 4, 4]
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
