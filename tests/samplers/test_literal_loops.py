"""The engine against one-row loops written from the papers: same tokens, same forwards.

The loops know nothing of our code: lists, numpy float64, masks found by `x == M`, all blocks
spelled out. What the engine does on purpose otherwise is marked "departure".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.engine import Engine
from tests.fakes import EOS, EOT, MASK, VOCAB, FakeModel, Out, hashed, leaning


@dataclass
class Literal:
    """One row being decoded, and the forwards it took."""

    out: Out
    prompt: list[int]
    size: int
    shift: int = 0
    cfg: float = 0.0
    nfe: int = 0
    commits: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x = [*self.prompt, *[MASK] * self.size]

    def logits(self) -> np.ndarray:
        """z [L, V]: row i predicts position i."""
        z = self._forward(self.x)
        if self.cfg:
            hidden = [MASK] * len(self.prompt) + self.x[len(self.prompt) :]
            unconditional = self._forward(hidden)
            z = unconditional + (self.cfg + 1) * (z - unconditional)
        z[:, MASK] = -np.inf  # departure: the mask token is never proposed
        return z

    def _forward(self, x: Sequence[int]) -> np.ndarray:
        self.nfe += 1
        out = self.out(np.array(x))
        return np.concatenate([out[:1], out[:-1]]) if self.shift else out.copy()

    def masks(self, start: int, end: int) -> list[int]:
        return [i for i in range(start, end) if self.x[i] == MASK]

    def commit(self, chosen: Iterable[int], y: np.ndarray) -> None:
        positions = sorted(chosen)
        for i in positions:
            self.x[i] = int(y[i])
        self.commits.append((positions, [self.x[i] for i in positions]))

    @property
    def ended(self) -> bool:
        """Departure from loops that run to the end: the first end token has no mask before it."""
        for token in self.x[len(self.prompt) :]:
            if token in (MASK, EOS, EOT):
                return token != MASK
        return False


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def doubt(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 - p of the tokens y, summed from the others: 1 - float64 p is 0 from a gap of 37 on."""
    p = softmax(z)
    p[np.arange(len(y)), y] = 0
    return p.sum(-1)


def best(candidates: Sequence[int], score: Callable[[int], float], count: int) -> list[int]:
    """Higher score first, then the lower position (torch.topk leaves ties open)."""
    return sorted(candidates, key=lambda i: (-score(i), i))[:count]


def llada(
    row: Literal,
    block: int,
    steps_of_block: Sequence[int],
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
) -> Literal:
    """samplers.md, section 1, low_confidence at temperature 0."""
    first, last = len(row.prompt), len(row.prompt) + row.size
    for start, steps in zip(range(first, last, block), steps_of_block, strict=True):
        end = min(start + block, last)
        m = len(row.masks(start, end))
        for t in range(steps):
            k = m // steps + (t < m % steps)
            if k == 0:
                break  # departure: a forward that commits nothing is not run
            z = row.logits()
            if logits_eos_inf:
                z[:, EOS] = -np.inf
            y = z.argmax(-1)
            c = -doubt(z, y)
            if confidence_eos_eot_inf:
                c[np.isin(y, (EOS, EOT))] = -2
            row.commit(best(row.masks(start, end), c.__getitem__, k), y)
            if row.ended:
                return row
    return row


def truncated(z: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """top_p, then top_k, on the logits of one position; -inf where a token is cut."""
    order = np.argsort(-z)
    p = softmax(z[order])
    keep = np.cumsum(p) - p <= top_p
    if top_k:
        keep[top_k:] = False
    cut = np.full_like(z, -np.inf)
    cut[order[keep]] = z[order[keep]]
    return cut


def dream(row: Literal, alg: str, steps: int, top_p: float = 1.0, top_k: int = 0) -> Literal:
    """samplers.md, section 2, at temperature 0: one global window, a linear grid from 1 to eps."""
    t = np.linspace(1, 1e-3, steps + 1)
    for n in range(steps):
        masked = row.masks(0, len(row.x))
        if not masked:
            break  # departure: no forward on a full row
        z = np.array([truncated(zi, top_p, top_k) for zi in row.logits()])
        p, y = softmax(z), z.argmax(-1)
        if alg == "maskgit_plus":
            score = p.max(-1)
        elif alg == "topk_margin":
            score = np.sort(p)[:, -1] - np.sort(p)[:, -2]
        else:
            score = (p * np.log(p + 1e-10)).sum(-1)
        k = int(np.floor(len(masked) * (1 - t[n + 1] / t[n]))) if n < steps - 1 else len(masked)
        row.commit(best(masked, score.__getitem__, max(k, 1)), y)  # departure: 0 becomes 1
        if row.ended:
            break
    return row


def fast_dllm(row: Literal, block: int, threshold: float) -> Literal:
    """samplers.md, section 3: all candidates at or above the threshold, and always the best."""
    first, last = len(row.prompt), len(row.prompt) + row.size
    for start in range(first, last, block):
        end = min(start + block, last)
        while masked := row.masks(start, end):
            z = row.logits()
            y = z.argmax(-1)
            c = -doubt(z, y)
            sure = [i for i in masked if 1 + c[i] >= threshold]
            row.commit({*best(masked, c.__getitem__, 1), *sure}, y)
            if row.ended:
                return row
    return row


def check(literal: Literal, block: int | None, sampler: str, **options: float) -> None:
    """The engine, given the same row, does what `literal` has done."""
    model = FakeModel(literal.out, literal.shift)
    config = DecodeConfig(literal.size, block, sampler=sampler, cfg_scale=literal.cfg, history=True)
    (output,) = Engine(model).generate([literal.prompt], config, **options)
    assert [(c.positions, c.token_ids) for c in output.history] == literal.commits
    assert output.nfe == model.calls == literal.nfe


def literals(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[Literal]:
    seeds, spreads = st.integers(0, 2**32), st.sampled_from([0.5, 2.0, 4.0])
    ends = st.sampled_from([-9.0, 0.0, 3.0])
    return st.builds(
        Literal,
        out=st.builds(lambda *a: leaning(EOS, a[0], hashed(*a[1:])), ends, seeds, spreads),
        prompt=st.lists(st.integers(0, VOCAB - 1).filter(lambda token: token != MASK), max_size=5),
        size=sizes,
        shift=st.sampled_from([0, 1]),
        cfg=st.sampled_from([0.0, 0.0, 0.7]),
    )


@settings(max_examples=60)
@given(
    st.data(), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.booleans()
)
def test_llada_quota(data, blocks, block, per_block, eos_inf, eot_inf):
    """As upstream asserts: the block divides the length, the blocks divide the steps."""
    row = data.draw(literals(st.just(blocks * block)))
    llada(row, block, [per_block] * blocks, eos_inf, eot_inf)
    switches = f"logits_eos_inf={eos_inf},confidence_eos_eot_inf={eot_inf}"
    check(row, block, f"quota:steps={blocks * per_block},{switches}")


@settings(max_examples=50)
@given(literals(st.integers(1, 11)), st.integers(1, 12), st.integers(1, 14))
def test_llada_quota_where_nothing_divides(row, block, steps):
    """Departure: shares of the steps by length, rounded so that they add up, one at least."""
    edges = [*range(0, row.size, block), row.size]
    upto = [steps * edge // row.size for edge in edges]
    llada(row, block, [max(b - a, 1) for a, b in pairwise(upto)])
    check(row, block, f"quota:steps={steps}")


@settings(max_examples=40)
@given(literals(st.integers(1, 8)))
def test_llada_sequential_greedy(row):
    llada(row, row.size, [row.size])
    check(row, None, "quota")


@settings(max_examples=60)
@given(
    literals(st.integers(1, 12)),
    st.sampled_from(["maskgit_plus", "topk_margin", "entropy"]),
    st.integers(1, 15),
    st.sampled_from([1.0, 0.9, 0.6]),
    st.sampled_from([0, 0, 1, 4]),
)
def test_dream(row, alg, steps, top_p, top_k):
    dream(row, alg, steps, top_p, top_k)
    check(row, None, f"dream:alg={alg},steps={steps}", top_p=top_p, top_k=top_k)


@settings(max_examples=50)
@given(
    literals(st.integers(1, 12)), st.integers(1, 14), st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.97])
)
def test_fast_dllm_threshold(row, block, threshold):
    fast_dllm(row, block, threshold)
    check(row, block, f"threshold:threshold={threshold}")
