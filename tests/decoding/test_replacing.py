"""Tokens that a rule replaces after they were committed, and windows it keeps open for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.state import Fields, StateField
from dllm.engine import DecodeError, Engine
from dllm.output import Commit, Finished
from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import CommitRuleBase, Selection, top
from dllm.text.following import Follower
from tests.cache.models import decoder
from tests.fakes import EOS, EOT, MASK, FakeModel, FakeText, hashed
from tests.guarantees import Told


@dataclass(frozen=True)
class SecondLook(CommitRuleBase):
    """Commits one token a step; a full window stays open for `looks` more steps, in each of which
    every token that is not the best any more is replaced by it.
    """

    looks: int = 2
    spare: int = 99
    fields: ClassVar[Fields] = {"looked": StateField(0)}

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"best", "decoded"})

    @property
    def remasks(self) -> bool:
        return True

    @property
    def spare_steps(self) -> int:
        return self.spare

    def select(self, view: Candidates) -> Selection:
        back, best = view.decoded, view.best
        assert back is not None
        assert back.token is not None
        assert best is not None
        left = view.valid.sum(1)
        looked = view.state["looked"].masked_fill(view.window_step == 0, 0)
        full = left == 0
        view.state["looked"] = looked + full
        edited = torch.where(full[:, None] & (best != back.token), best, -1)
        more = torch.where(full, looked + 1 < self.looks, (left == 1) & (self.looks > 0))
        return Selection(top(view, torch.ones_like(left)), replace=edited, open=more)


def literal(out, prompt, size, block, looks, fixed=()):
    """Answer, and what was replaced by step, from the text above."""
    ids = [*prompt, *[MASK] * size]
    for at, token in fixed:
        ids[len(prompt) + at] = token
    stands = {len(prompt) + at for at, _ in fixed}
    replaced = []

    def proposals():
        logits = out(np.array(ids)).copy()
        logits[:, MASK] = -np.inf
        return logits

    for start in range(len(prompt), len(ids), block):
        window = [p for p in range(start, min(start + block, len(ids))) if p not in stands]
        while left := [p for p in window if ids[p] == MASK]:
            logits = proposals()
            shifted = logits - logits.max(1, keepdims=True)
            sure = 1 / np.exp(shifted).sum(1)
            best = max(left, key=lambda p: (np.float32(sure[p]), -p))
            ids[best] = int(logits[best].argmax())
            if (len(left) > 1 or not looks) and has_ended(ids[len(prompt) :]):
                return ids[len(prompt) :], replaced
        for _ in range(looks if window else 0):
            logits = proposals()
            new = {p: int(logits[p].argmax()) for p in window}
            changed = [p for p in window if new[p] != ids[p]]
            replaced.append(changed)
            for p in changed:
                ids[p] = new[p]
        if has_ended(ids[len(prompt) :]):
            break
    return ids[len(prompt) :], replaced


def has_ended(answer):
    ends = [i for i, token in enumerate(answer) if token in (EOS, EOT)]
    return bool(ends) and MASK not in answer[: ends[0]]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from([3, 4, 6]), max_size=4), min_size=1, max_size=3),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 2**32),
)
def test_tokens_are_replaced_as_the_literal_loop_does(batch, size, block, looks, seed):
    out, told = hashed(seed), Told()
    config = DecodeConfig(size, block, sampler=SecondLook(looks), history=True)
    for event in Engine(FakeModel(out), FakeText()).stream_steps(batch, config):
        told.show(event, 0.0)
    done = {e.row: e.output for e in told.events if isinstance(e, Finished)}
    follower = Follower((EOS, EOT))
    for event in told.events:
        follower.apply(event)
    for row, prompt in enumerate(batch):
        answer, replaced = literal(out, prompt, size, block, looks)
        assert follower.rows[row].tokens == [None if t == MASK else t for t in answer]
        commits = [e for e in told.events if isinstance(e, Commit) and e.row == row]
        edits = [c.replaced for c in commits if c.replaced]
        assert edits == [each for each in replaced if each]
        assert done[row].history == commits
        assert done[row].nfe == sum(t != MASK for t in answer) + len(replaced)
        settled = 0
        for commit in commits:  # what is settled is never touched
            assert min([*commit.positions, *commit.replaced]) >= settled
            settled = max(settled, commit.settled)
        (alone,) = Engine(FakeModel(out), FakeText()).generate([prompt], config, row_ids=[row])
        assert [(c.replaced, c.replaced_ids, c.positions) for c in alone.history] == [
            (c.replaced, c.replaced_ids, c.positions) for c in commits
        ]


def test_prefilled_tokens_are_never_replaced():
    config = DecodeConfig(6, 3, sampler=SecondLook(2))
    fixed = [(1, 9), (4, 8)]
    stands = [[(at, [token]) for at, token in fixed]]
    told = Told()
    for event in Engine(FakeModel(hashed(3))).stream_steps([[3]], config, prefilled=stands):
        told.show(event, 0.0)
    commits = [e for e in told.events if isinstance(e, Commit) and e.nfe]
    assert {2, 5}.isdisjoint(p for c in commits for p in [*c.positions, *c.replaced])
    answer, _ = literal(hashed(3), [3], 6, 3, 2, fixed)
    follower = Follower((EOS, EOT))
    for event in told.events:
        follower.apply(event)
    assert follower.rows[0].tokens == [None if t == MASK else t for t in answer]


def test_a_rule_that_never_closes_its_window_ends_at_its_bound():
    config = DecodeConfig(3, 3, sampler=SecondLook(looks=50, spare=4), history=True)
    with pytest.raises(DecodeError, match="its spare_steps are 4"):
        Engine(FakeModel(hashed(3))).generate([[3]], config)


def test_a_cache_follows_replaced_tokens():
    """One that is refreshed at every step gives the tokens of none; one that freezes is refused."""
    options = {"max_new_tokens": 8, "block_length": 4, "sampler": SecondLook(2), "history": True}
    prompts = [[3, 4, 6], [7]]
    plain = Engine(decoder(), FakeText()).generate(prompts, **options)
    assert any(commit.replaced for output in plain for commit in output.history)
    for cache in ("dual:refresh=1", "prefix:refresh=1", "delayed:refresh=1", "freeze:refresh=1"):
        cached = Engine(decoder(), FakeText()).generate(prompts, cache=cache, **options)
        for a, b in zip(plain, cached, strict=True):
            assert [(c.positions, c.token_ids, c.replaced_ids) for c in a.history] == [
                (c.positions, c.token_ids, c.replaced_ids) for c in b.history
            ]


def test_a_planner_that_changes_windows_behind_the_forward_is_refused():
    with pytest.raises(ConfigError, match=r"keeps windows open, but planner 'slowfast'"):
        Engine(FakeModel(), FakeText()).generate([[3]], sampler=SecondLook(), planner="slowfast")
