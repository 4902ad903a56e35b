"""A batch whose rows join and leave: each is what it is alone, nothing of a former one is left."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import ConfigError, DecodeConfig
from dllm.decoding.rows import DecodeRequest
from dllm.decoding.speculation import SpeculatingBatch
from dllm.decoding.step import DecodeError
from dllm.engine import Engine
from dllm.output import Commit, Finished
from tests.cache.models import decoder
from tests.decoding.test_guarantees import any_of, rules
from tests.fakes import EOS, PLAIN, FakeModel, FakeText, drifting, hashed, leaning
from tests.guarantees import Told, summary
from tests.specs import CHANGES, GUESSES, STOPS, WHERE

KV = [
    "none",
    "prefix",
    "dual:refresh=3",
    "vicinity:before=2,after=1",
    "delayed:refresh=3",
    "sparse",
]
FIXED = ["freeze", "elastic:window=2,gamma=0.9", "interval:prompt=4,answer=2", "delayed-greedy"]


def methods(speculators: bool, narrows: bool) -> st.SearchStrategy[DecodeConfig]:
    """Everything that is a row's own."""
    return st.builds(
        DecodeConfig,
        max_new_tokens=st.integers(1, 9),
        block_length=st.sampled_from([None, 1, 3, 8]),
        temperature=st.sampled_from([0.0, 0.0, 0.7, 1.3]),
        top_p=st.sampled_from([1.0, 1.0, 0.8]),
        top_k=st.sampled_from([0, 0, 3]),
        seed=st.sampled_from([0, 7, 2**63 - 1]),
        stop=st.sampled_from([(), (), ("b",)]),
        history=st.booleans(),
        sampler=rules.filter(lambda rule: "saber" not in str(rule)),
        planner=st.just("fixed") if narrows else any_of(WHERE),
        transform=st.none() | any_of(CHANGES),
        stop_rule=st.none() if narrows else st.none() | any_of(STOPS),
        speculator=st.none() | any_of(GUESSES) if speculators else st.none(),
    )


@dataclass
class Traffic:
    """Requests that arrive at a batch of a few places, some of which are cancelled."""

    batch: SpeculatingBatch
    requests: list[DecodeRequest]
    pick: random.Random
    told: Told = field(default_factory=Told)
    number: dict[int, int] = field(default_factory=dict)  # of a row: of its request
    cancelled: set[int] = field(default_factory=set)

    def run(self, cancels: bool = True, check: Any = lambda batch: None) -> dict[int, Finished]:
        waiting = list(range(len(self.requests)))
        while waiting or self.batch.active:
            free = self.batch.places - len(self.batch.active)
            count = min(free, len(waiting), self.pick.randrange(3))
            if not self.batch.active:
                count = max(count, min(1, len(waiting)))
            joined = [waiting.pop(0) for _ in range(count)]
            rows = self.batch.join([self.requests[i] for i in joined]) if joined else []
            self.number |= dict(zip(rows, joined, strict=True))
            if cancels and self.batch.active and self.pick.random() < 0.1:
                row = self.pick.choice(list(self.batch.active))
                self.batch.cancel(row)
                self.cancelled.add(row)
            if self.batch.active:
                self.batch.step()
                check(self.batch)
            for event in self.batch.events:
                self.told.show(event, 0.0)
        return {e.row: e for e in self.told.events if isinstance(e, Finished)}


def bare(commits: list[Commit]) -> list[Any]:
    return [(c.nfe, c.positions, c.token_ids, c.remasked, c.settled) for c in commits]


def compare(model: Any, traffic: Traffic, done: dict[int, Finished]) -> None:
    """Every row is what its request is alone; one that was cancelled is the beginning of it."""
    assert sorted(done) == sorted(traffic.number)
    for row, event in done.items():
        request = traffic.requests[traffic.number[row]]
        told = Told()
        stream = Engine(model, FakeText()).stream_steps(
            [request.prompt],
            request.config,
            row_ids=[row if request.row_id is None else request.row_id],
            prefilled=[request.prefilled],
        )
        for each in stream:
            told.show(each, 0.0)
        alone = told.events[-1].output
        own, whole = bare(traffic.told.commits(row)), bare(told.commits(0))
        if row in traffic.cancelled and event.output.finish_reason == "interrupted":
            assert own == whole[: len(own)]
            continue
        assert own == whole
        names = ("text", "token_ids", "finish_reason", "nfe", "canvases", "slots", "answer_tokens")
        assert [getattr(event.output, n) for n in names] == [getattr(alone, n) for n in names]


def requests_of(
    data: st.DataObject, configs: st.SearchStrategy[DecodeConfig], **shared: Any
) -> Any:
    prompt = st.lists(st.sampled_from(PLAIN), min_size=1, max_size=6)
    made = data.draw(
        st.lists(st.tuples(prompt, configs, st.integers(0, 9)), min_size=1, max_size=7)
    )
    return [
        DecodeRequest(prompt, config.replace(**shared), row_id, [(0, [3])] if row_id == 5 else ())
        for prompt, config, row_id in made
        if row_id != 5 or config.max_new_tokens > 1
    ]


@settings(max_examples=60)
@given(st.data(), st.sampled_from([0, 1]), st.integers(0, 2**32), st.sampled_from([0.0, 0.5]))
def test_rows_that_come_and_go_are_what_they_are_alone(data, shift, seed, scale):
    """Rules, planners, options and seeds of all kinds beside each other, no cache."""
    model = FakeModel(leaning(EOS, 1.0, drifting(seed, 0.5)), shift)
    requests = requests_of(data, methods(True, False), cfg_scale=scale)
    shared = DecodeConfig(cfg_scale=scale)
    traffic = Traffic(
        SpeculatingBatch(model, FakeText(), shared, 3, 15), requests, random.Random(seed)
    )
    done = traffic.run(check=mirror_is_the_device)
    compare(model, traffic, done)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([0, 1]), st.integers(0, 5), st.sampled_from(KV + FIXED))
def test_rows_in_a_cache_that_come_and_go_are_what_they_are_alone(data, shift, seed, cache):
    check_cached(data, decoder(shift, None, seed), seed, cache)


@settings(max_examples=10)
@given(st.data(), st.integers(0, 5), st.sampled_from(["none", "block", "block:exact=false"]))
def test_rows_of_a_block_causal_model_are_what_they_are_alone(data, seed, cache):
    check_cached(data, decoder(0, 4, seed), seed, cache)


def check_cached(data, model, seed, cache):
    narrows = cache in ("elastic:window=2,gamma=0.9", "delayed-greedy")
    configs = methods(False, narrows)
    requests = requests_of(data, configs, cache=cache)
    shared = DecodeConfig(cache=cache)
    traffic = Traffic(
        SpeculatingBatch(model, FakeText(), shared, 3, 15), requests, random.Random(seed)
    )
    kvs = traffic.batch.forward.kvs
    where = [(kv.k.data_ptr(), kv.v.data_ptr()) for kv in kvs]
    done = traffic.run(check=mirror_is_the_device)
    assert [(kv.k.data_ptr(), kv.v.data_ptr()) for kv in kvs] == where, "keys and values stay"
    compare(model, traffic, done)


def mirror_is_the_device(batch: SpeculatingBatch) -> None:
    canvas = batch.standing.canvas
    shown = batch.ids[: len(canvas.row), : canvas.ids.shape[1]].numpy()
    inside = canvas.inside
    assert (np.where(inside, shown, 0) == np.where(inside, canvas.ids, 0)).all()


@pytest.mark.parametrize("cache", [*KV, *FIXED])
def test_what_a_place_held_before_never_matters(cache):
    """Not even if it is no number."""
    config = DecodeConfig(8, 4, sampler="quota", cache=cache)
    first, second = DecodeRequest([3, 4, 6, 7], config, 0), DecodeRequest([8, 9], config, 1)
    outputs = []
    for spoil in (False, True):
        batch = SpeculatingBatch(decoder(), None, config, 1, 12)
        batch.join([first])
        while batch.active:
            batch.step()
        if spoil:
            batch.ids.fill_(11)
            for kv in batch.forward.kvs:
                for t in (kv.k, kv.v, *kv.extra.values()):
                    t.fill_(torch.nan if t.is_floating_point() else 1)
        batch.join([second])
        while batch.active:
            batch.step()
        outputs.append([e.output for e in batch.events if isinstance(e, Finished)][-1])
    assert summary(outputs[0]) == summary(outputs[1])
    assert outputs[1].token_ids


def test_a_row_that_fails_ends_alone_and_its_place_is_clean():
    model = FakeModel(hashed(3), poison=(1, 0, float("nan")))
    config = DecodeConfig(6, 2, sampler="quota")
    batch = SpeculatingBatch(model, None, config, 2, 8)
    batch.join([DecodeRequest([3], config), DecodeRequest([4], config)])
    while batch.active:
        batch.step()
    batch.join([DecodeRequest([6], config, 9)])
    while batch.active:
        batch.step()
    done = {e.row: e.output for e in batch.events if isinstance(e, Finished)}
    assert [done[row].finish_reason == "error" for row in range(3)] == [True, False, False]
    for row, prompt, row_id in ((1, [4], 1), (2, [6], 9)):
        (alone,) = Engine(FakeModel(hashed(3))).generate([prompt], config, row_ids=[row_id])
        assert done[row].token_ids == alone.token_ids


def test_what_a_batch_cannot_hold_is_refused_and_the_batch_goes_on():
    config = DecodeConfig(4, sampler="quota")
    batch = SpeculatingBatch(FakeModel(), None, config, 2, 8)
    for requests, error, what in [
        (
            [DecodeRequest([3], config)] * 3,
            DecodeError,
            "3 rows more than 0: this batch has 2 places",
        ),
        ([DecodeRequest([3] * 5, config)], DecodeError, "9 positions: this batch has 8 a row"),
        (
            [DecodeRequest([3], config.replace(cache="dual"))],
            ConfigError,
            "cache='dual': expected 'none'",
        ),
        (
            [DecodeRequest([3], config.replace(cfg_scale=0.5))],
            ConfigError,
            "cfg_scale=0.5: expected 0.0",
        ),
        (
            [DecodeRequest([3], config.replace(buckets=True))],
            ConfigError,
            "buckets=True: expected False",
        ),
        ([DecodeRequest([3], config, prefilled=[(3, [4, 6])])], ConfigError, "prefilled at 3"),
    ]:
        with pytest.raises(error, match=what):
            batch.join([DecodeRequest([4], config), *requests][-len(requests) :])
        assert not batch.active
    batch.join([DecodeRequest([3], config)])
    batch.cancel(99)  # nobody
    while batch.active:
        batch.step()
    assert [type(event) for event in batch.events][-1] is Finished


def test_a_step_that_was_cut_ends_the_batch():
    config = DecodeConfig(4, sampler="quota")
    model = FakeModel(interrupt_at=1)
    batch = SpeculatingBatch(model, None, config, 1, 8)
    batch.join([DecodeRequest([3], config)])
    batch.step()
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    with pytest.raises(DecodeError, match="was interrupted: its rows cannot go on"):
        batch.step()
    batch.interrupt()
    *_, last = batch.events
    assert (last.output.finish_reason, last.output.nfe) == ("interrupted", 1)
    model.interrupt_at = None
    batch.join([DecodeRequest([4], config, 7)])  # a new row finds nothing of the old one
    while batch.active:
        batch.step()
    *_, last = batch.events
    (alone,) = Engine(FakeModel()).generate([[4]], config, row_ids=[7])
    assert last.output.token_ids == alone.token_ids


def test_a_batch_that_runs_for_long_does_not_grow():
    """Nothing is kept of rows that have left, whatever their options."""
    batch = SpeculatingBatch(FakeModel(), None, DecodeConfig(2), 2, 6)
    for seed in range(40):
        batch.join([DecodeRequest([3], DecodeConfig(2, seed=seed, sampler="klass"))])
        while batch.active:
            batch.step()
        list(batch.events)
    assert not batch.components
    assert batch.memory.methods is None
    assert len(batch.standing.told) == 0


def test_windows_beside_those_that_a_planner_narrows_keep_their_own_counts():
    """Quotas go by the masked positions that a window began with."""
    narrow = DecodeConfig(9, 3, sampler="quota:steps=3", planner="slowfast", history=True)
    several = narrow.replace(planner="multi:add=0.4,full=0.8")
    batch = SpeculatingBatch(FakeModel(hashed(5)), None, narrow, 2, 12)
    batch.join([DecodeRequest([3, 3], several), DecodeRequest([6, 7, 3], narrow)])
    while batch.active:
        batch.step()
    done = {e.row: e.output for e in batch.events if isinstance(e, Finished)}
    for row, (prompt, config) in enumerate([([3, 3], several), ([6, 7, 3], narrow)]):
        (alone,) = Engine(FakeModel(hashed(5))).generate([prompt], config, row_ids=[row])
        assert bare(done[row].history) == bare(alone.history)
