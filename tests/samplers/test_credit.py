"""CreditDecoding: the slots against the dense table of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.state import DeviceState
from dllm.engine import Engine
from dllm.samplers.credit import Credit
from dllm.samplers.protocols import State
from tests.fakes import FakeModel, hashed, scripted
from tests.samplers.views import fresh

MASK, VOCAB = 5, 9


def applied(
    rule: Credit, z: torch.Tensor, pos: list[list[int]], valid: list[list[bool]], state: State
) -> torch.Tensor:
    return rule.apply(z.clone(), torch.tensor(pos), torch.tensor(valid), state)


class Dense:
    """The text, for one row: a credit for every position and token, in float64."""

    def __init__(self, rule: Credit, size: int) -> None:
        self.rule, self.credit = rule, np.zeros((size, VOCAB))

    def apply(self, position: int, z: np.ndarray) -> np.ndarray:
        p = np.exp(z - z.max())
        p /= p.sum()
        self.credit[position] *= self.rule.beta
        self.credit[position, z.argmax()] += p.max() ** self.rule.gamma
        return z + self.rule.alpha * np.log(1 + self.credit[position])


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 8),
    st.builds(
        Credit,
        alpha=st.sampled_from([0.0, 0.7, 2.0]),
        beta=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
        gamma=st.sampled_from([0.0, 0.2, 1.0]),
    ),
)
def test_logits_are_those_of_the_dense_table(seed, rows, size, steps, rule):
    """Ragged batches; positions pause and come back; padding repeats positions and holds NaN."""
    rng = np.random.default_rng(seed)
    state = fresh(rule, rows, size)
    dense = [Dense(rule, size) for _ in range(rows)]
    for _ in range(steps):
        width = size + int(rng.integers(0, 3))
        z = rng.normal(0, 2, (rows, width, VOCAB))
        z[..., MASK] = -np.inf
        z[rng.random((rows, width)) < 0.2] = 0.0  # ties: the lowest token earns
        pos = rng.integers(0, size + 1, (rows, width))  # padding stands anywhere, also at T
        valid = np.zeros((rows, width), bool)
        for b in range(rows):
            some = np.sort(rng.choice(size, int(rng.integers(1, size + 1)), replace=False))
            at = np.sort(rng.choice(width, len(some), replace=False))
            pos[b, at], valid[b, at] = some, True
        z[~valid] = np.where(rng.random(((~valid).sum(), VOCAB)) < 0.5, np.nan, 50.0)
        kept = torch.from_numpy(z.copy())
        given_z = torch.from_numpy(z)
        out = rule.apply(given_z.clone(), torch.from_numpy(pos), torch.from_numpy(valid), state)
        assert torch.equal(given_z.nan_to_num(9), kept.nan_to_num(9)), "the logits stay as given"
        for b, k in zip(*valid.nonzero()):
            want = dense[b].apply(pos[b, k], z[b, k])
            np.testing.assert_allclose(out[b, k].numpy(), want, atol=1e-5)


def run(rule: Credit, *tops: int) -> torch.Tensor:
    """The last logits minus the raw ones of one position whose best token is each of `tops`."""
    state = fresh(rule, 1, 1)
    for top in tops:
        z = torch.zeros(1, 1, VOCAB, dtype=torch.float64)
        z[..., top] = 4.0
        out = applied(rule, z, [[0]], [[True]], state) - z
    return out[0, 0]


def test_a_token_earns_before_its_credit_is_added():
    gain = run(Credit(alpha=1.0, gamma=0.0), 3)
    assert gain.tolist() == pytest.approx([0, 0, 0, np.log(2), 0, 0, 0, 0, 0])


def test_credits_shrink_before_they_grow():
    gain = run(Credit(alpha=1.0, beta=0.5, gamma=0.0), 3, 3, 4)
    assert float(gain[3]) == pytest.approx(np.log(1 + (0.5 + 1) * 0.5))
    assert float(gain[4]) == pytest.approx(np.log(2))


def test_a_new_token_takes_the_slot_with_the_least_credit():
    rule = Credit(alpha=1.0, beta=1.0, gamma=0.0, slots=2)
    gain = run(rule, 3, 3, 4, 6)
    assert (gain > 0).nonzero()[:, 0].tolist() == [3, 6]
    gain = run(rule, 3, 4, 4, 6)
    assert (gain > 0).nonzero()[:, 0].tolist() == [4, 6]
    assert float(gain[6]) == pytest.approx(np.log(2)), "and none of its credit"


def test_a_forbidden_token_stays_forbidden():
    z = torch.full((1, 1, VOCAB), -torch.inf)
    z[..., 3] = 1.0
    out = applied(Credit(), z, [[0]], [[True]], fresh(Credit(), 1, 1))
    assert torch.isneginf(out).sum() == VOCAB - 1


def test_half_precision_does_not_swallow_the_credit():
    z = torch.zeros(1, 1, VOCAB, dtype=torch.bfloat16)
    z[..., 3] = 30.0
    out = applied(Credit(), z, [[0]], [[True]], fresh(Credit(), 1, 1))
    assert float(out[0, 0, 3]) == pytest.approx(30 + 0.7 * np.log(2), abs=1e-5)


def test_padding_leaves_no_trace():
    state, z = fresh(Credit(), 1, 3), torch.zeros(1, 3, VOCAB)
    z[0, 0, 3] = z[0, 1, 4] = z[0, 2, 4] = 5.0
    applied(Credit(), z, [[1, 1, 0]], [[True, False, False]], state)
    assert state["token"][0, :3, 0].tolist() == [-1, 3, -1]
    assert state["credit"][0, :3].sum(-1).nonzero().flatten().tolist() == [1]


def test_committed_positions_neither_earn_nor_gain():
    """The engine says which these are: they are not valid."""
    state, z = fresh(Credit(), 1, 2), torch.zeros(1, 2, VOCAB)
    z[..., 3] = 5.0
    out = applied(Credit(), z, [[0, 1]], [[False, True]], state)
    assert torch.equal(out[0, 0], z[0, 0])
    assert float(out[0, 1, 3]) > 5
    assert state["credit"][0, :2].sum(-1).nonzero().flatten().tolist() == [1]


def test_state_is_replaced_and_survives_a_batch_that_gets_smaller():
    rule, both = Credit(), [[True, True]] * 2
    memory = DeviceState.fresh(rule.fields, 2, 5, torch.device("cpu"))
    pos, z = [[1, 2], [3, 4]], torch.zeros(2, 2, VOCAB)
    z[..., 3] = 3.0
    applied(rule, z, pos, both, memory.values)
    kept = dict(memory.values)
    before = {name: table.clone() for name, table in kept.items()}
    applied(rule, z, pos, both, dict(memory.values))
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    memory.take(np.array([0]), 3)
    out = applied(rule, z[:1], pos[:1], both[:1], memory.values)
    grown = 1.8 * float(z[0, 0].softmax(-1).max()) ** 0.2
    assert float(out[0, 0, 3]) == pytest.approx(3 + 0.7 * np.log(1 + grown), abs=1e-5)


def test_a_steady_token_passes_the_threshold_in_fewer_forwards():
    model = FakeModel(scripted(dict.fromkeys(range(8), 3), 4.5))  # p = 0.88
    nfe = {
        transform: Engine(FakeModel(model.out)).generate(
            [[]], transform=transform, max_new_tokens=8
        )
        for transform in (None, "credit")
    }
    assert (nfe[None][0].nfe, nfe["credit"][0].nfe) == (8, 1)


def test_without_weight_it_changes_nothing_and_rows_do_not_mix():
    model, prompts = FakeModel(hashed(3)), [[3, 4], [], [6]]
    config = DecodeConfig(12, 4, history=True)
    plain = Engine(model).generate(prompts, config)
    off = Engine(model).generate(prompts, config, transform="credit:alpha=0")
    assert [o.token_ids for o in plain] == [o.token_ids for o in off]
    on = Engine(model).generate(prompts, config, transform="credit:alpha=3")
    for prompt, output in zip(prompts, on, strict=True):
        (alone,) = Engine(model).generate([prompt], config, transform="credit:alpha=3")
        assert output.token_ids == alone.token_ids


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": -1.0}, r"alpha=-1\.0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"beta": 1.1}, r"beta=1\.1"),
        ({"gamma": -0.1}, r"gamma=-0\.1"),
        ({"slots": 0}, "slots=0"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        Credit(**options)
