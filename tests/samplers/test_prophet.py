"""Prophet: when the rest of a row is filled at once."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas, positions
from dllm.engine import Engine
from dllm.samplers.candidates import Candidates
from dllm.samplers.prophet import Prophet
from tests.fakes import FakeModel, FakeText, scripted
from tests.samplers.canvases import MASK, canvas_of, on_device
from tests.samplers.views import keys

MARK = (6, 7)


def view_of(canvas: Canvas, gap: torch.Tensor, filled: float | list[float]) -> Candidates:
    """All masked positions of the canvas, `gap` [B, T] by position; padding holds NaN.

    filled: hundredths of an answer, whatever the canvas has.
    """
    pos, valid = map(torch.from_numpy, positions(canvas.masked))
    at = torch.arange(len(pos))[:, None], pos.clamp(max=canvas.ids.shape[1] - 1)
    prompt, length = torch.from_numpy(canvas.prompt), torch.from_numpy(canvas.length)
    zero, plain = torch.zeros_like(prompt), torch.full(pos.shape, 0.5)
    known = (torch.tensor(filled, dtype=torch.float64) * 100).round().long()
    return Candidates(
        pos=pos,
        valid=valid,
        token=torch.full_like(pos, 3),
        conf=plain,
        log1m=plain.log(),
        ends=torch.zeros_like(valid),
        start=prompt,
        end=length,
        window_masked=valid.sum(1),
        window_step=zero,
        step=zero,
        prompt=prompt,
        length=length,
        masked=(100 - known).expand(len(pos)),
        fillable=torch.full_like(zero, 100),
        row=torch.from_numpy(canvas.row),
        key=keys(0, canvas.row),
        width=int((length - prompt).max()),
        gap=gap[at].masked_fill(~valid, torch.nan),
        best=torch.full_like(pos, 4),
    )


def fires(rule: Prophet, canvas: Canvas, gap: list[float], filled: float = 0.0) -> bool:
    """One row; `gap` of the answer's positions."""
    size = canvas.ids.shape[1]
    gaps = torch.tensor([[0.0] * canvas.prompt.item() + gap + [0.0] * size])[:, :size]
    verdict = rule.check(view_of(canvas, gaps, filled), on_device(canvas), {})
    assert verdict.fill is not None
    assert verdict.length is None
    return bool(verdict.fill)


def literal(rule: Prophet, canvas: Canvas, b: int, gap: list[float], filled: float) -> bool:
    """Section 6 for one row, in plain Python."""
    prompt, length = int(canvas.prompt[b]), int(canvas.length[b])
    ids, known = canvas.ids[b].tolist(), canvas.known[b].tolist()
    if rule.at is not None:
        start = prompt + rule.at
    else:
        n = len(rule.marker_ids)
        ends = [
            i + n
            for i in range(prompt, length - n + 1)
            if tuple(ids[i : i + n]) == rule.marker_ids and all(known[i : i + n])
        ]
        if not ends:
            return False
        start = ends[-1] + rule.skip
    mine = canvas.generated[b].tolist()
    region = [i for i in range(start, min(start + rule.length, length)) if mine[i]]
    masked = [i for i in region if not known[i]]
    if not masked:
        return bool(region)
    threshold = 7.5 if filled < 0.33 else 5.0 if filled < 0.67 else 2.5
    return sum(gap[i] for i in masked) / len(masked) >= threshold


@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_rows_fire_as_the_text_says(seed, rows, by_marker):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 14, rows)
    odds = rng.dirichlet([3, 1, 2, 2, 1])
    answers = ["".join(rng.choice(list(".g678"), size, p=odds)) for size in sizes]
    where = {"marker_ids": MARK[: int(rng.integers(1, 3))], "skip": int(rng.integers(0, 3))}
    rule = Prophet(int(rng.integers(1, 6)), **where if by_marker else {"at": int(rng.integers(12))})
    canvas = canvas_of([6, 7][: int(rng.integers(0, 3))], *answers)
    if not canvas.masked.any():
        return
    # halves and wholes, so that means hit the thresholds exactly
    gap = torch.from_numpy(rng.choice([0.0, 2.5, 5.0, 7.5, 10.0], canvas.ids.shape)).float()
    filled = rng.choice([0.0, 0.32, 0.33, 0.5, 0.66, 0.67, 1.0], rows).tolist()
    verdict = rule.check(view_of(canvas, gap, filled), on_device(canvas), {})
    for b in range(rows):
        assert bool(verdict.fill[b]) == literal(rule, canvas, b, gap[b].tolist(), filled[b])


def test_the_threshold_falls_with_the_share_that_is_known():
    rule, canvas = Prophet(2, at=0), canvas_of([3], "....")
    for filled, threshold in ((0.0, 7.5), (0.32, 7.5), (0.33, 5.0), (0.66, 5.0), (0.67, 2.5)):
        assert fires(rule, canvas, [threshold, threshold], filled)
        assert not fires(rule, canvas, [threshold, threshold - 0.01], filled)


def test_the_mean_counts_and_only_over_the_region():
    rule, canvas = Prophet(2, at=1), canvas_of([3, 3], ".....")
    assert fires(rule, canvas, [0.0, 15.0, 0.0, 0.0, 0.0])
    assert not fires(rule, canvas, [15.0, 7.0, 7.9, 15.0, 15.0])


def test_committed_positions_of_the_region_are_left_out_of_the_mean():
    rule = Prophet(3, at=0)
    assert fires(rule, canvas_of([], "8.8."), [0.0, 7.5, 0.0, 0.0])
    assert not fires(rule, canvas_of([], "8.8."), [99.0, 7.4, 99.0, 99.0])


def test_a_region_that_is_all_committed_is_settled():
    assert fires(Prophet(2, at=0), canvas_of([], "88.."), [0.0] * 4)


def test_without_a_region_nothing_fires():
    assert not fires(Prophet(at=4), canvas_of([], "...."), [99.0] * 4)
    assert not fires(Prophet(marker_ids=MARK), canvas_of([], "...."), [99.0] * 4)
    assert not fires(Prophet(marker_ids=MARK), canvas_of([], "..67"), [99.0] * 4)
    assert not fires(Prophet(2, at=0), canvas_of([], "gg.."), [99.0] * 4)
    assert not fires(Prophet(marker_ids=(6, 7, 8)), canvas_of([], ".."), [99.0] * 2)


def test_a_region_ends_with_the_row():
    assert fires(Prophet(5, at=2), canvas_of([], "...."), [0.0, 0.0, 8.0, 7.0])


def test_the_region_is_behind_the_marker_and_what_is_skipped():
    canvas = canvas_of([], "67....")
    assert fires(Prophet(1, marker_ids=MARK), canvas, [0, 0, 8.0, 0, 0, 0])
    assert fires(Prophet(1, marker_ids=MARK, skip=1), canvas, [0, 0, 0, 8.0, 0, 0])
    assert not fires(Prophet(1, marker_ids=MARK, skip=1), canvas, [0, 0, 8.0, 0, 8.0, 0])


def test_the_last_marker_counts():
    canvas = canvas_of([], "67.67..")
    assert fires(Prophet(1, marker_ids=MARK), canvas, [0, 0, 0, 0, 0, 8.0, 0])
    assert not fires(Prophet(1, marker_ids=MARK), canvas, [0, 0, 8.0, 0, 0, 0, 0])


def test_a_marker_in_the_prompt_or_half_known_is_none():
    assert not fires(Prophet(1, marker_ids=MARK), canvas_of([6, 7], "..."), [8.0] * 3)
    assert not fires(Prophet(1, marker_ids=MARK), canvas_of([6], "7.."), [8.0] * 3)
    assert not fires(Prophet(1, marker_ids=(6, MASK)), canvas_of([], "6..."), [8.0] * 4)


def test_it_asks_for_the_whole_row():
    assert Prophet(at=0).whole_row
    assert Prophet(at=0).needs == {"gap", "best"}


def test_bind_encodes_the_marker():
    vocabulary = SimpleNamespace(encode=FakeText().encode)
    assert Prophet(marker="ab").bind(vocabulary).marker_ids == (3, 4)
    assert Prophet(at=0).bind(vocabulary).marker_ids == ()
    assert Prophet(marker="ab", marker_ids=(9,)).bind(vocabulary).marker_ids == (9,)
    with pytest.raises(ValueError, match="marker='a'"):
        Prophet(marker="a").bind(SimpleNamespace(encode=lambda text: []))


def test_a_rule_that_was_not_bound_says_so():
    with pytest.raises(ValueError, match="marker='ab'"):
        fires(Prophet(marker="ab"), canvas_of([], ".."), [0.0, 0.0])


def test_the_engine_fills_the_row_once_the_answer_is_sure():
    """The region is in the last block, and its gap enough for the last third only."""
    heights = {i: 4.0 if i >= 10 else 9.0 for i in range(12)}
    model = FakeModel(scripted({i: 3 + i % 2 for i in range(12)}, heights))
    rule = "prophet:length=2,marker=ab,skip=1"
    config = DecodeConfig(12, 2, sampler="quota", stop_rule=rule, prefilled="7:ab", history=True)
    (output,) = Engine(model, FakeText()).generate([[]], config, chat=False)
    assert output.nfe == model.calls == 8  # 7 of 10 are known before the eighth step
    assert sorted(output.history[-1].positions) == [9, 10, 11]
    assert output.token_ids == [3, 4, 3, 4, 3, 4, 3, 3, 4, 4, 3, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "at=None, marker=''"),
        ({"at": 1, "marker": "x"}, "at=1, marker='x'"),
        ({"at": -1}, "at=-1"),
        ({"at": 0, "length": 0}, "length=0"),
        ({"at": 0, "skip": -1}, "skip=-1"),
        ({"at": 0, "early": float("nan")}, "early=nan"),
        ({"at": 0, "late": -1.0}, r"late=-1\.0"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        Prophet(**options)
