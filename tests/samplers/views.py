"""Random ragged views for the tests of the rules, and the same views as plain Python.

A view has ties, saturated confidences, confidences exactly at the usual thresholds, padding
anywhere in a row, and garbage in the padding: NaN, or values that would win if they were looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from dllm.decoding.state import DeviceState
from dllm.samplers.candidates import Candidates, Decoded
from dllm.samplers.noise import row_key
from dllm.samplers.rule import CommitRule, commits
from dllm.samplers.transforming import State, Transform

VOCAB, STOP = 8, (1, 2)
SIZE = 48  # positions of the state that `fresh` makes: more than any view here has
PALETTE = (0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)  # shared values: ties, boundaries


def random_view(rng: np.random.Generator, rows: int, most: int, **overrides: Any) -> Candidates:
    """A view of `rows` rows with 1 to `most` candidates each and every optional field set.

    Candidates lie in a window up to twice as long; its other positions are `decoded`. `overrides`
    are fields of `Candidates` to put in place of the random ones.
    """
    count = rng.integers(1, most + 1, rows)
    size = count + rng.integers(0, most + 1, rows)  # of the window
    prompt = rng.integers(0, 4, rows)
    start = prompt + rng.integers(0, 4, rows)
    end = start + size
    length = end + rng.integers(0, 4, rows)
    window_step = rng.integers(0, 6, rows)
    step = window_step + rng.integers(0, 6, rows)
    width, deep = count.max() + rng.integers(0, 3), (size - count).max() + rng.integers(0, 2)

    out = _scores(rng, (rows, width))
    out["kl"] = rng.choice([0.0, 0.001, 0.005, 0.01, 0.015, np.inf], (rows, width))
    fresh = rng.random((rows, width)) < 0.3
    out["kl"][fresh] = rng.exponential(0.01, (rows, width))[fresh]
    out["kl"][step == 0] = np.inf

    pos, done = np.zeros((rows, width), int), np.zeros((rows, deep), int)
    valid, done_valid = np.zeros((rows, width), bool), np.zeros((rows, deep), bool)
    for b in range(rows):
        pos[b] = rng.integers(0, length[b], width)  # garbage, for the padding
        done[b] = rng.integers(0, length[b], deep)
        masked = np.sort(rng.choice(size[b], count[b], replace=False))
        at = np.sort(rng.choice(width, count[b], replace=False))
        pos[b, at], valid[b, at] = start[b] + masked, True
        at = np.sort(rng.choice(deep, size[b] - count[b], replace=False))
        done[b, at] = start[b] + np.setdiff1d(np.arange(size[b]), masked)
        done_valid[b, at] = True

    done_conf = rng.choice(PALETTE, (rows, deep))
    scores = {name: _tensor(value, valid, rng) for name, value in out.items()}
    fillable = rng.integers(count, length - prompt + 1)
    row = rng.permutation(rows + 2)[:rows]
    view = Candidates(
        pos=torch.from_numpy(pos),
        valid=torch.from_numpy(valid),
        ends=torch.isin(scores["token"], torch.tensor(STOP)),
        window_masked=torch.from_numpy(rng.integers(count, size + 1)),
        masked=torch.from_numpy(rng.integers(count, fillable + 1)),
        fillable=torch.from_numpy(fillable),
        row=torch.from_numpy(row),
        key=keys(int(rng.integers(2**31)), row),
        width=int(size.max()),
        decoded=Decoded(
            torch.from_numpy(done),
            torch.from_numpy(done_valid),
            _tensor(done_conf, done_valid, rng),
        ),
        **{
            name: torch.from_numpy(value)
            for name, value in [
                ("start", start),
                ("end", end),
                ("window_step", window_step),
                ("step", step),
                ("prompt", prompt),
                ("length", length),
            ]
        },
        **scores,
    )
    return replace(view, **overrides)


def keys(seed: int, rows: Iterable[int]) -> Tensor:
    """[B] keys of the draws of these rows."""
    return torch.tensor([row_key(seed, int(row)) for row in rows])


def fresh(component: CommitRule | Transform, rows: int, size: int = SIZE) -> State:
    """The state that the engine gives a component for new rows of `size` positions."""
    return DeviceState.fresh(component.fields, rows, size, torch.device("cpu")).values


def _scores(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Distributions over VOCAB tokens and what rules read off them, in float64; log1m exact."""
    # How much of a distribution its best token leaves to the others: shared values, any, saturated.
    kind = rng.choice(3, shape, p=[0.45, 0.35, 0.2])
    left = np.choose(
        kind,
        [
            1 - rng.choice(PALETTE, shape),
            rng.uniform(0.01, 0.8, shape),
            np.exp(-rng.choice([18.0, 20.0, 30.0, 50.0], shape)),
        ],
    )
    others = rng.dirichlet(np.full(VOCAB - 1, 0.5), shape) + 1e-6
    others[rng.random(shape) < 0.3] = 1.0  # equal others, so that entropies tie as well
    others /= others.sum(-1, keepdims=True)
    flat = (others.max(-1) * left >= 1 - left)[..., None]
    others = np.where(flat, 1 / (VOCAB - 1), others) * left[..., None]
    best = rng.integers(0, VOCAB, shape)
    distribution = np.insert(others, 0, 1 - left, axis=-1)
    distribution = np.take_along_axis(
        distribution, (np.arange(VOCAB) - best[..., None]) % VOCAB, -1
    )

    token, log1m = best.copy(), np.log(left)
    if rng.random() < 0.3:  # tokens are drawn
        drawn = rng.random(shape) < 0.3
        token[drawn] = rng.integers(0, VOCAB, shape)[drawn]
        other = token != best
        own = np.take_along_axis(distribution, token[..., None], -1)[..., 0]
        log1m[other] = np.log1p(-own[other])
    two = np.sort(distribution, -1)[..., -2:]
    return {
        "token": token,
        "conf": np.take_along_axis(distribution, token[..., None], -1)[..., 0],
        "log1m": log1m,
        "best": best,
        "best_conf": 1 - left,
        "margin": two[..., 1] - two[..., 0],
        "gap": np.log(two[..., 1]) - np.log(two[..., 0]),
        "entropy": -(distribution * np.log(distribution)).sum(-1),
        "logits": np.log(distribution) + rng.normal(size=(*shape, 1)),
    }


def _tensor(value: np.ndarray, valid: np.ndarray, rng: np.random.Generator) -> Tensor:
    """fp32 with garbage in the padding; ids stay int64, and what is there is a valid id."""
    if value.dtype.kind == "i":
        return torch.from_numpy(value)
    garbage = np.where(rng.random(valid.shape) < 0.5, np.nan, rng.choice([-99.0, 0, 1, 99]))
    shape = (*valid.shape, *[1] * (value.ndim - valid.ndim))
    return torch.from_numpy(np.where(valid.reshape(shape), value, garbage.reshape(shape))).float()


def views(rows: int = 4, most: int = 8) -> st.SearchStrategy[Candidates]:
    """Random views of 1 to `rows` rows with 1 to `most` candidates."""

    def build(seed: int, some_rows: int, some: int) -> Candidates:
        return random_view(np.random.default_rng(seed), some_rows, some)

    return st.builds(build, st.integers(0, 2**32), st.integers(1, rows), st.integers(1, most))


def hand_made(conf: list[float], pos: list[int] | None = None, **overrides: Any) -> Candidates:
    """One row with these confidences at these positions (0, 1, ...), all other fields plain.

    Without `overrides` for it, the window is [0, last position] and nothing is committed yet. The
    width is that of the window.
    """
    where = torch.tensor([pos if pos is not None else list(range(len(conf)))])
    end, zero = where.amax(1) + 1, torch.zeros(1, dtype=torch.long)
    c = torch.tensor([conf], dtype=torch.float64)
    view = Candidates(
        pos=where,
        valid=torch.ones_like(where, dtype=torch.bool),
        token=torch.full_like(where, 3),
        conf=c.float(),
        log1m=torch.log1p(-c).float(),
        ends=torch.zeros_like(where, dtype=torch.bool),
        start=zero,
        end=end,
        window_masked=torch.full_like(end, len(conf)),
        window_step=zero,
        step=zero,
        prompt=zero,
        length=end,
        masked=torch.full_like(end, len(conf)),
        fillable=torch.full_like(end, len(conf)),
        row=zero,
        key=keys(0, [0]),
        width=0,
    )
    view = replace(view, **overrides)
    return replace(view, width=int((view.end - view.start).max()))


@dataclass(frozen=True)
class Row:
    """One candidate as Python numbers; `column` is where it stands in the view."""

    column: int
    pos: int
    token: int
    conf: float
    log1m: float
    ends: bool
    margin: float = np.nan
    entropy: float = np.nan
    gap: float = np.nan
    best: int = -1
    best_conf: float = np.nan
    kl: float = np.nan

    @property
    def rest(self) -> float:
        """1 - conf, exact also where conf is saturated."""
        return float(np.exp(self.log1m))


def rows_of(view: Candidates) -> list[list[Row]]:
    """The valid candidates of each row, positions ascending."""
    names = [f.name for f in fields(Row)[1:] if getattr(view, f.name) is not None]
    return [
        [
            Row(k, **{name: getattr(view, name)[b, k].item() for name in names})
            for k in range(view.pos.shape[1])
            if view.valid[b, k]
        ]
        for b in range(len(view.pos))
    ]


def ranked(row: list[Row], *scores: Callable[[Row], float]) -> list[Row]:
    """Best first: higher scores (none: conf, then log1m), ties to the lower position."""
    keys = scores or (lambda c: c.conf, lambda c: -c.log1m)
    return sorted(row, key=lambda c: (*(-key(c) for key in keys), c.pos))


def committed(rule: CommitRule, view: Candidates) -> list[list[int]]:
    """Positions each row commits, the floor of one included; never padding."""
    chosen = commits(view, rule.select(view))
    assert not (chosen & ~view.valid).any()
    return [view.pos[b, chosen[b]].tolist() for b in range(len(chosen))]


def alone(view: Candidates, b: int) -> Candidates:
    """Row `b` by itself and without its padding."""
    real = view.valid[b]
    cut: dict[str, Any] = {}
    for f in fields(Candidates):
        value = getattr(view, f.name)
        if isinstance(value, Tensor):
            cut[f.name] = value[b : b + 1] if value.ndim == 1 else value[b : b + 1, real]
    if view.decoded is not None:
        d = view.decoded
        cut["decoded"] = Decoded(*(t[b : b + 1, d.valid[b]] for t in (d.pos, d.valid, d.conf)))
    return replace(view, **cut, state={k: v[b : b + 1] for k, v in view.state.items()})
