"""What is guessed: the canvases that would follow if the predictions stayed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.state import Fields, StateField
from dllm.engine import Engine
from dllm.samplers.candidates import Candidates
from dllm.samplers.dream import Dream
from dllm.samplers.fastdllm import Factor, ThresholdRule
from dllm.samplers.quota import Quota
from dllm.samplers.rule import CommitRuleBase, Selection, commits
from dllm.samplers.speculation import FreeDave, SelfSpeculation
from tests.fakes import EOS, FakeModel, hashed, leaning, scripted
from tests.samplers.views import fresh, hand_made, random_view, ranked, rows_of, views

RULES = st.sampled_from(
    [
        Quota(),
        Quota(steps=3),
        Quota(remasking="random"),
        ThresholdRule(0.8),
        Factor(1.0),
        Dream("entropy", steps=4),
    ]
)


def sets_of(view: Candidates, drafts: list[torch.Tensor]) -> list[list[list[int]]]:
    """Positions of every set, row by row."""
    return [[view.pos[b, d[b]].tolist() for b in range(len(d))] for d in drafts]


@given(views(), RULES, st.integers(1, 6), st.sampled_from([FreeDave, SelfSpeculation]))
def test_sets_grow_until_nothing_is_left(view, rule, length, speculator):
    done = commits(view, rule.select(view))
    drafts = speculator(length).drafts(rule, view, done)
    # a number that does not depend on values on the device
    assert len(drafts) == min(length, view.pos.shape[1])
    before = done
    for now in drafts:
        assert not (before & ~now).any()
        assert not (now & ~view.valid).any()
        stuck = (now == before).all(1)
        assert (now | ~view.valid)[stuck].all(), "only a row that has nothing left may stay"
        before = now


@given(views(), RULES, st.integers(1, 6))
def test_freedave_follows_the_rule_on_predictions_that_stay(view, rule, length):
    """The literal loop: step after step on what is left, nothing else changed."""
    done = commits(view, rule.select(view))
    drafts = FreeDave(length).drafts(rule, view, done)
    for number, draft in enumerate(drafts, start=1):
        left = view.valid & ~done
        later = replace(
            view, valid=left, step=view.step + number, window_step=view.window_step + number
        )
        done = done | commits(later, rule.select(later))
        assert torch.equal(draft, done)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_for_a_fixed_number_k_the_guesses_are_the_next_k_best(seed, rows, k, length):
    view = random_view(np.random.default_rng(seed), rows, 9)
    size = view.valid.sum(1)
    one = torch.zeros_like(size)
    view = replace(
        view,
        prompt=view.start,
        length=view.end,
        window_masked=size - size % k + torch.where(size % k > 0, k, 0),
        window_step=one,
    )
    rule = Fixed(k)
    drafts = FreeDave(length).drafts(rule, view, commits(view, rule.select(view)))
    for b, row in enumerate(rows_of(view)):
        order = [c.pos for c in ranked(row)]
        for number, found in enumerate(sets_of(view, drafts), start=2):
            assert found[b] == sorted(order[: number * k])


@dataclass(frozen=True)
class Fixed(CommitRuleBase):
    """The k best candidates of every step."""

    k: int = 1

    def select(self, view: Candidates) -> Selection:
        return Selection(view.valid & (view.rank() < self.k))


@given(views(), st.integers(1, 6))
def test_ssd_guesses_one_token_at_a_time_in_order_of_confidence(view, length):
    done = commits(view, ThresholdRule(0.9).select(view))
    drafts = SelfSpeculation(length).drafts(ThresholdRule(0.9), view, done)
    for b, row in enumerate(rows_of(view)):
        first = [c.pos for c in row if done[b, c.column]]
        order = [c.pos for c in ranked([c for c in row if not done[b, c.column]])]
        for number, found in enumerate(sets_of(view, drafts), start=1):
            assert found[b] == sorted(first + order[:number])


def test_both_guess_alike_for_one_token_a_step():
    view = random_view(np.random.default_rng(1), 4, 9)
    done = commits(view, Fixed(1).select(view))
    for a, b in zip(
        FreeDave(20).drafts(Fixed(1), view, done), SelfSpeculation(20).drafts(Fixed(1), view, done)
    ):
        assert torch.equal(a, b)


@dataclass(frozen=True)
class Waiting(CommitRuleBase):
    """Counts its calls in the state; from the third on it takes everything."""

    fields: ClassVar[Fields] = {"count": StateField(0)}

    def select(self, view: Candidates) -> Selection:
        count = view.state["count"] + 1
        view.state["count"] = count
        return Selection(view.valid & (count >= 3)[:, None])


def test_the_rule_keeps_its_state_through_the_guesses_and_not_after():
    view = hand_made([0.9, 0.8, 0.7, 0.6, 0.5], state=fresh(Waiting(), 1))
    done = commits(view, Waiting().select(view))
    drafts = FreeDave(4).drafts(Waiting(), view, done)
    assert sets_of(view, drafts) == [[[0, 1]], *[[[0, 1, 2, 3, 4]]] * 3]
    assert view.state["count"].tolist() == [1]


@dataclass(frozen=True)
class Looking(CommitRuleBase):
    """Remembers what it was shown."""

    seen: list[Candidates]

    def select(self, view: Candidates) -> Selection:
        self.seen.append(view)
        return Selection(torch.zeros_like(view.valid))


def test_a_guess_shows_the_rule_a_later_step_with_distributions_that_stayed():
    half: dict[str, Any] = {"fillable": torch.tensor([8]), "kl": torch.full((1, 4), torch.inf)}
    view = hand_made([0.9, 0.8, 0.7, 0.6], length=torch.tensor([8]), **half)
    rule = Looking([])
    FreeDave(2).drafts(rule, view, commits(view, Selection(torch.zeros_like(view.valid))))
    one, two = rule.seen
    assert (one.step.tolist(), two.step.tolist()) == ([1], [2])
    assert (one.window_step.tolist(), two.window_step.tolist()) == ([1], [2])
    assert (one.filled.tolist(), two.filled.tolist()) == ([0.625], [0.75])
    assert one.kl is not None
    assert one.kl.tolist() == [[0.0] * 4]
    assert (one.valid.sum(), two.valid.sum()) == (3, 2)


@settings(max_examples=30)
@given(views(rows=4), RULES, st.sampled_from([FreeDave, SelfSpeculation]))
def test_a_row_is_guessed_as_if_it_were_alone(view, rule, speculator):
    done = commits(view, rule.select(view))
    together = sets_of(view, speculator(4).drafts(rule, view, done))
    for b in range(len(view.pos)):
        row = torch.arange(len(view.pos)) == b
        masked = replace(view, valid=view.valid & row[:, None])
        mine = sets_of(view, speculator(4).drafts(rule, masked, done & row[:, None]))
        assert [found[b] for found in together] == [found[b] for found in mine]


def test_nothing_is_guessed_where_nothing_is_left():
    view = hand_made([0.9, 0.8])
    for speculator in (FreeDave(), SelfSpeculation()):
        for draft in speculator.drafts(ThresholdRule(0.5), view, view.valid):
            assert torch.equal(draft, view.valid)


DECODERS = [
    "quota",
    "quota:steps=5",
    "quota:steps=4",
    "quota:remasking=random",
    "threshold:threshold=0.5",
    "factor",
    "localleap:threshold=0.7,radius=2,relaxed=0.5",
    "klass:threshold=0.4,kl_threshold=0.5",
    "dream:steps=6,alg=entropy",
]


def history(outputs):
    return [[(c.positions, c.token_ids) for c in output.history] for output in outputs]


@settings(max_examples=15)
@given(
    st.sampled_from(DECODERS),
    st.sampled_from(["freedave", "ssd"]),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from([0.5, 2.0, 4.0]),
    st.lists(st.lists(st.sampled_from([3, 4, 6]), max_size=4), min_size=1, max_size=3),
    st.sampled_from(
        [
            {},
            {"block_length": 4},
            {"block_length": 4, "temperature": 0.7},
            {"planner": "slowfast"},
            {"planner": "multi:add=0.5", "block_length": 4},
            {"transform": "credit"},
        ]
    ),
)
def test_the_result_is_that_of_the_rule_alone(
    sampler, name, length, seed, spread, prompts, options
):
    """Step by step the same commits, in at most as many forwards, each of them counted."""
    out = leaning(EOS, -2.0, hashed(seed, spread))
    config = DecodeConfig(10, sampler=sampler, history=True).replace(**options)
    alone, model = Engine(FakeModel(out)).generate(prompts, config), FakeModel(out)
    guessed = Engine(model).generate(prompts, config, speculator=f"{name}:length={length}")
    assert history(guessed) == history(alone)
    assert model.calls == max(output.nfe for output in guessed)
    for a, b in zip(alone, guessed, strict=True):
        assert (b.token_ids, b.finish_reason) == (a.token_ids, a.finish_reason)
        assert b.nfe <= a.nfe


@pytest.mark.parametrize("name", ["freedave", "ssd"])
@pytest.mark.parametrize(("length", "nfe"), [(1, 5), (2, 4), (4, 3), (7, 2), (20, 2)])
def test_predictions_that_stay_are_all_guessed(name, length, nfe):
    """8 tokens, one a step: the first forward has no guesses, the others 1 + length canvases."""
    model = FakeModel(scripted(dict.fromkeys(range(8), 3), {i: 1.0 + i for i in range(8)}))
    config = DecodeConfig(8, sampler="quota", speculator=f"{name}:length={length}")
    (output,) = Engine(model).generate([[]], config)
    assert output.token_ids == [3] * 8
    assert output.nfe == model.calls == nfe


def test_guesses_help_where_predictions_change_little():
    def out(ids: np.ndarray) -> np.ndarray:
        return leaning(EOS, -30, hashed(1, 3.0))(np.zeros_like(ids)) + 0.1 * hashed(2)(ids)

    for sampler in ("quota", "quota:steps=6", "threshold", "dream:steps=6"):
        config = DecodeConfig(12, None, sampler=sampler)
        (alone,) = Engine(FakeModel(out)).generate([[3]], config)
        (guessed,) = Engine(FakeModel(out)).generate([[3]], config, speculator="freedave")
        assert guessed.nfe < alone.nfe


@pytest.mark.parametrize("speculator", [FreeDave, SelfSpeculation])
def test_bad_options_are_named(speculator):
    with pytest.raises(ValueError, match="length=0"):
        speculator(length=0)
