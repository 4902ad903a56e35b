"""Guarantees of the decode loop, as properties over samplers, blocks, temperatures and shifts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.config import DecodeConfig
from dllm.decoding.canvas import Canvas
from dllm.engine import Engine
from dllm.output import Commit, Finished, Output
from dllm.samplers.candidates import Candidates
from dllm.samplers.fastdllm import ThresholdRule
from dllm.samplers.rule import CommitRuleBase, Selection
from tests.fakes import (
    EOS,
    EOT,
    MASK,
    PLAIN,
    VOCAB,
    FakeModel,
    Out,
    constant,
    hashed,
    leaning,
    scripted,
)

QUOTA = [
    f"quota:steps={steps},remasking={how},{switch}"
    for how in ("low_confidence", "random")
    for steps in ("none", "1", "3", "7")
    for switch in ("", "confidence_eos_eot_inf=true", "logits_eos_inf=true")
]
DREAM = [
    f"dream:alg={alg},steps={steps},{temp}"
    for alg in ("origin", "maskgit_plus", "topk_margin", "entropy")
    for steps in ("none", "1", "4", "11")
    for temp in ("", "alg_temp=0.5")
]
THRESHOLD = [f"threshold:threshold={tau}" for tau in (0, 0.3, 0.6, 0.9, 1)]

samplers = st.one_of(*map(st.sampled_from, (QUOTA, DREAM, THRESHOLD)))
tokens = st.integers(0, VOCAB - 1)  # mask and end tokens included
prompts = st.lists(st.lists(tokens, max_size=6), min_size=1, max_size=4)
configs = st.builds(
    DecodeConfig,
    max_new_tokens=st.integers(1, 10),
    block_length=st.none() | st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.0, 0.4, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 3]),
    cfg_scale=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 2**63 - 1),
    sampler=samplers,
    history=st.just(True),
)
shifts = st.sampled_from([0, 1])
seeds = st.integers(0, 2**32)
few = settings(max_examples=30)


def run(
    model: FakeModel,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    row_ids: Sequence[int] | None = None,
) -> list[Output]:
    events = list(Engine(model).stream_steps(prompts, config, row_ids=row_ids))
    done = {event.row: event.output for event in events if isinstance(event, Finished)}
    assert sorted(done) == list(range(len(prompts)))
    for row, output in done.items() if config.history else ():
        assert output.history == [e for e in events if isinstance(e, Commit) and e.row == row]
    return [done[row] for row in range(len(prompts))]


def replay(prompt: Sequence[int], output: Output, size: int) -> Iterator[tuple[list, Commit]]:
    """The row before each commit (masked ones are None), with that commit; then a last time
    without.
    """
    row: list[int | None] = [*prompt, *[None] * size]
    for commit in output.history or ():
        yield list(row), commit
        for pos, token in zip(commit.positions, commit.token_ids, strict=True):
            assert row[pos] is None, "committed twice, or inside the prompt"
            row[pos] = token
    yield row, Commit(0, 0, [], [], [])


class Probe(CommitRuleBase):
    """A threshold that notes what the view says of each row's progress."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[int, ...]]] = {}

    def select(self, view: Candidates) -> Selection:
        names = ("step", "window_step", "window_masked", "start", "end", "prompt", "length")
        for row, *counters in zip(view.row.tolist(), *(getattr(view, n).tolist() for n in names)):
            self.seen.setdefault(row, []).append(tuple(counters))
        return ThresholdRule(0.7).select(view)


@few
@given(st.integers(2, 10), st.integers(1, 5), seeds)
def test_rules_are_told_how_far_each_row_has_come(size, block, seed):
    """Rows that go at their own pace and leave at different times, counted again from history."""
    batch = [[token] * (token % 3) for token in PLAIN]
    probe = Probe()
    config = DecodeConfig(size, block, sampler=probe, history=True)
    outputs = run(FakeModel(leaning(EOS, 1.0, hashed(seed))), batch, config)
    for i, (prompt, output) in enumerate(zip(batch, outputs)):
        expected: list[tuple[int, ...]] = []
        for step, (row, _) in enumerate(list(replay(prompt, output, size))[:-1]):
            start = len(prompt) + (row.index(None) - len(prompt)) // block * block
            end = min(start + block, len(prompt) + size)
            spent, masked = 0, row[start:end].count(None)
            if expected and expected[-1][3] == start:
                spent, masked = expected[-1][1] + 1, expected[-1][2]
            expected.append((step, spent, masked, start, end, len(prompt), len(prompt) + size))
        assert probe.seen[i] == expected


@few
@given(prompts, configs.filter(lambda c: not c.temperature), seeds)
def test_shift_reads_the_row_before(batch, config, seed):
    """With shift 1 a model that puts everything out one row early decodes the same."""
    base = hashed(seed)

    def early(ids):
        logits = base(ids)
        return logits[[*range(1, len(ids)), 0]]

    batch = [[3, *prompt] for prompt in batch]  # a first position has no row before it
    straight, shifted = (run(FakeModel(*m), batch, config) for m in ((base, 0), (early, 1)))
    assert [o.history for o in straight] == [o.history for o in shifted]


SCORED = [s for s in QUOTA + DREAM + THRESHOLD if not any(w in s for w in ("random", "origin"))]
SCORED = [s for s in SCORED if "alg_temp" not in s]


@few
@given(st.sampled_from(SCORED), st.integers(1, 9), st.integers(1, 12), st.integers(0, 4), shifts)
def test_ties_go_left_to_right(sampler, size, block, prompt, shift):
    config = DecodeConfig(size, block, sampler=sampler, history=True)
    (output,) = run(FakeModel(constant(), shift), [[MASK] * prompt], config)
    order = [pos for commit in output.history or () for pos in commit.positions]
    assert order == list(range(prompt, prompt + len(order)))


SATURATED = [
    "quota",
    "quota:confidence_eos_eot_inf=true",
    "dream:alg=maskgit_plus",
    "dream:alg=topk_margin",
    "dream:alg=entropy",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", SATURATED)
@given(order=st.permutations(range(7)))
@settings(max_examples=15)
def test_saturated_confidences_go_by_how_far_they_are_from_one(sampler, dtype, order):
    """All of them are 1.0 in float32; the surest still goes first."""
    heights = {pos: 30.0 + 5 * rank for pos, rank in enumerate(order)}
    model = FakeModel(scripted(dict.fromkeys(range(7), 7), heights), dtype=dtype)
    (output,) = run(model, [[]], DecodeConfig(7, sampler=sampler, history=True))
    assert output.history
    assert [c.confidences for c in output.history] == [[1.0]] * 7
    assert [c.positions[0] for c in output.history] == sorted(range(7), key=lambda p: -heights[p])


@few
@given(configs, st.lists(tokens, max_size=3))
def test_all_eos_ends_with_an_empty_answer(config, prompt):
    (output,) = run(FakeModel(leaning(EOS, 60.0)), [prompt], config)
    if "logits_eos_inf" in config.sampler:
        assert all(EOS not in c.token_ids for c in output.history)  # end of turn is allowed
    else:
        assert (output.token_ids, output.text, output.finish_reason) == ([], "", "eos")
        assert output.answer_tokens == 1


def test_an_end_token_behind_a_masked_position_does_not_end_the_row():
    """The tail is surest and holds EOS (full-length decoding floods it); the front follows."""
    tokens = {0: 7, 1: 8, 2: 9, 3: EOS, 4: EOS}
    heights = {0: 3.0, 1: 4.0, 2: 5.0, 3: 6.0, 4: 9.0}
    (output,) = run(
        FakeModel(scripted(tokens, heights)), [[]], DecodeConfig(5, sampler="quota", history=True)
    )
    assert [c.positions for c in output.history or ()] == [[4], [3], [2], [1], [0]]
    assert (output.token_ids, output.nfe, output.slots, output.answer_tokens) == (
        [7, 8, 9],
        5,
        5,
        4,
    )


def test_padding_behind_the_end_counts_as_slots_only():
    out = scripted({0: 7, 1: EOS, 2: EOS, 3: EOS})
    (output,) = run(FakeModel(out), [[]], DecodeConfig(4, sampler="threshold"))
    assert (output.nfe, output.tokens_per_forward, output.committed_per_forward) == (1, 2.0, 4.0)
    assert output.history is None


def test_confidence_switch_commits_end_tokens_last_and_left_to_right():
    tokens = dict(enumerate([EOS, 7, EOT, 8]))
    heights = {0: 9.0, 1: 3.0, 2: 20.0, 3: 4.0}
    model = FakeModel(scripted(tokens, heights))
    sampler = "quota:confidence_eos_eot_inf=true"
    (output,) = run(model, [[]], DecodeConfig(4, sampler=sampler, history=True))
    assert [c.positions for c in output.history or ()] == [[3], [1], [0]]


@pytest.mark.parametrize("sampler", ["quota", "quota:remasking=random", *THRESHOLD[3:]])
def test_one_token_for_an_empty_prompt(sampler):
    for shift in (0, 1):
        model = FakeModel(hashed(5), shift)
        (output,) = run(model, [[]], DecodeConfig(1, sampler=sampler))
        assert (model.calls, output.slots) == (1, 1)


@pytest.mark.parametrize(
    ("size", "block", "steps", "commits"),
    [
        (10, 4, 5, [2, 2, 2, 2, 2]),  # shares 2, 2, 1 by length: the short last block gets one
        (10, 4, 10, [1] * 10),
        (10, 4, 40, [1] * 10),  # more steps than tokens: no forward on a full block
        (10, 4, 1, [4, 4, 2]),  # fewer steps than blocks: one for each
        (7, None, 3, [3, 2, 2]),
        (5, 64, 2, [3, 2]),
    ],
)
def test_quotas_where_nothing_divides(size, block, steps, commits):
    model = FakeModel(scripted({}))
    config = DecodeConfig(size, block, sampler=f"quota:steps={steps}", history=True)
    (output,) = run(model, [[3]], config)
    assert [len(c.positions) for c in output.history or ()] == commits
    assert model.calls == len(commits)


@settings(max_examples=10)
@given(prompts, seeds)
def test_nothing_is_random_but_the_noise(batch, seed):
    config = DecodeConfig(8, temperature=1.0, sampler="dream:alg_temp=1", history=True)
    state = torch.get_rng_state()
    first, second = (run(FakeModel(hashed(seed)), batch, config) for _ in range(2))
    assert [o.history for o in first] == [o.history for o in second]
    assert torch.equal(torch.get_rng_state(), state)


def forbids(out: Out, tokens: Sequence[int]) -> Out:
    def forbidding(ids):
        logits = out(ids).copy()
        logits[:, tokens] = -float("inf")
        return logits

    return forbidding


@few
@given(configs, st.lists(st.sampled_from(PLAIN), min_size=1, max_size=8), seeds)
def test_minus_infinity_forbids_a_token(config, tokens, seed):
    (output,) = run(FakeModel(forbids(hashed(seed), tokens)), [[4]], config)
    assert not any(token in tokens for c in output.history or () for token in c.token_ids)


@few
@given(prompts, configs.filter(lambda c: not c.cfg_scale), seeds)
def test_nobody_looks_at_logits_of_known_positions(batch, config, seed):
    """Rows with fewer masked positions than others are padded with whatever; it may be NaN."""

    def only_masked(ids):
        logits = hashed(seed)(ids)
        logits[ids != MASK] = float("nan")
        return logits

    full, sparse = (run(FakeModel(out), batch, config) for out in (hashed(seed), only_masked))
    assert [o.history for o in full] == [o.history for o in sparse]


def test_a_rule_that_chooses_nothing_still_progresses():
    class Lazy(CommitRuleBase):
        def select(self, view):
            return Selection(torch.zeros_like(view.valid))

    (output,) = run(FakeModel(constant()), [[]], DecodeConfig(4, sampler=Lazy()))
    assert (output.nfe, output.slots) == (4, 4)


def test_masked_is_what_the_canvas_says():
    canvas = Canvas.from_prompts([[MASK, 3], [4]], 2, MASK)
    assert canvas.masked.tolist() == [[False, False, True, True], [False, True, True, False]]
