"""diffusers' schedulers as rules: what `step` is given, what is taken from its answer.

`Released` and `Coming` have the signatures and the conventions of BlockRefinementScheduler in
diffusers 0.39 and on its main branch: steps counted from 0 by the caller, or kept by the scheduler
and found from a timestep between 1 and 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dllm.samplers.candidates import Candidates
from dllm.samplers.rule import commits
from dllm.samplers.scheduler import Scheduler
from tests.samplers.views import VOCAB, alone, hand_made, keys, views

MASK = 7


def shares(total: int, steps: int) -> list[int]:
    return [total // steps + (n < total % steps) for n in range(steps)]


def refined(logits: Tensor, sample: Tensor, quota: int, threshold: float, mask: int) -> Tensor:
    """Commit-by-confidence: all candidates above the threshold, or the quota's best if fewer."""
    out = sample.clone()
    top = logits.softmax(-1).max(-1)
    for b in range(len(sample)):
        masked = (sample[b] == mask).nonzero()[:, 0].tolist()
        masked.sort(key=lambda i, b=b: (-float(top.values[b, i]), i))
        sure = [i for i in masked if top.values[b, i] > threshold]
        for i in sure if len(sure) >= quota else masked[:quota]:
            out[b, i] = top.indices[b, i]
    return out


@dataclass
class Seen:
    """What a scheduler was called with, over all copies of it."""

    calls: list[dict]


class Released:
    def __init__(self, block_length: int = 32, num_inference_steps: int = 32):
        self.block_length, self.num_inference_steps = block_length, num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1)
        self.schedule = None  # as in diffusers: nothing is committed before set_timesteps
        self.seen = Seen([])

    def set_timesteps(self, num_inference_steps, device=None, block_length=None):
        self.num_inference_steps = num_inference_steps
        self.schedule = shares(block_length or self.block_length, num_inference_steps)

    def step(
        self,
        model_output,
        timestep,
        sample,
        *,
        mask_token_id,
        temperature=0.0,
        top_p=None,
        top_k=None,
        sampling_method="auto",
        threshold=None,
        editing_threshold=None,
        minimal_topk=None,
        prompt_mask=None,
        generator=None,
        return_dict=True,
    ):
        self.seen.calls.append(
            {"logits": model_output, "timestep": timestep, "sample": sample, "rng": generator}
        )
        quota = 0
        if self.schedule is not None:
            quota = self.schedule[min(int(timestep), len(self.schedule) - 1)]
        prev = refined(model_output, sample, quota, 0.95, mask_token_id)
        return SimpleNamespace(prev_sample=prev) if return_dict else (prev,)


class Coming:
    def __init__(self, num_inference_steps: int = 32, mask_token_id: int | None = None):
        self.config = SimpleNamespace(mask_token_id=mask_token_id)
        self.set_timesteps(num_inference_steps)

    def set_timesteps(self, num_inference_steps, device=None):
        self.num_inference_steps, self._step_index = num_inference_steps, None
        self.timesteps = 1 - torch.arange(num_inference_steps) / num_inference_steps

    def step(self, model_output, timestep, sample, *, generator=None, return_dict=True, **kwargs):
        if self.config.mask_token_id is not None:
            assert not kwargs, "deprecated where the config knows"
        mask = kwargs.get("mask_token_id", self.config.mask_token_id)
        if self._step_index is None:
            (self._step_index,) = (self.timesteps == timestep).nonzero()[:, 0].tolist()
        quota = shares(sample.shape[1], self.num_inference_steps)[self._step_index]
        self._step_index += 1
        return SimpleNamespace(prev_sample=refined(model_output, sample, quota, 0.95, mask))


class Uniform:
    """EntropyBoundScheduler's signature: the uniform process, without a mask."""

    def step(
        self,
        model_output,
        timestep,
        sample,
        *,
        entropy_bound=None,
        generator=None,
        return_dict=True,
    ):
        raise AssertionError


def taken(rule: Scheduler, view: Candidates) -> list[dict[int, int]]:
    """Position -> token of what each row commits."""
    selection = rule.select(view)
    assert not (selection.commit & ~view.valid).any()
    assert torch.equal(selection.token[~selection.commit], view.token[~selection.commit])
    return [
        dict(zip(pos[m].tolist(), token[m].tolist()))
        for pos, m, token in zip(view.pos, selection.commit, selection.token)
    ]


def literal(view: Candidates, b: int, steps: int) -> dict[int, int]:
    """The scheduler's own loop at this row's window and step: one block, masks where masked."""
    start, end = int(view.start[b]), int(view.end[b])
    sample, logits = torch.zeros(1, end - start).long(), torch.zeros(1, end - start, VOCAB)
    for k in view.valid[b].nonzero()[:, 0].tolist():
        i = int(view.pos[b, k]) - start
        sample[0, i], logits[0, i] = MASK, view.logits[b, k]
    quota = shares(end - start, steps)[min(int(view.window_step[b]), steps - 1)]
    out = refined(logits, sample, quota, 0.95, MASK)
    return {start + i: int(out[0, i]) for i in range(end - start) if out[0, i] != sample[0, i]}


def maskless(view: Candidates) -> Candidates:
    """The engine bans the mask token before a rule sees the logits."""
    logits = view.logits.clone()
    logits[..., MASK] = -torch.inf
    return replace(view, logits=logits)


@settings(max_examples=40)
@given(views(), st.integers(1, 8))
def test_a_batch_decides_as_the_schedulers_own_loop_row_by_row(view, steps):
    view = maskless(view)
    expected = [literal(view, b, steps) for b in range(len(view.row))]
    # the released one takes its quota from its own block length, the coming one from the sample
    for scheduler in (Coming(steps), Coming(steps, MASK)):
        rule = Scheduler(scheduler, MASK)
        assert taken(rule, view) == expected
        assert [taken(rule, alone(view, b))[0] for b in range(len(view.row))] == expected
    width = int(view.end[0] - view.start[0])
    assert taken(Scheduler(Released(width, steps), MASK), view)[0] == expected[0]


def simple(conf: list[float], **fields: Tensor) -> Candidates:
    """One row whose candidates propose 3 with these probabilities, the rest on 4."""
    distribution = torch.zeros(1, len(conf), VOCAB)
    distribution[0, :, 3], distribution[0, :, 4] = torch.tensor(conf), 1 - torch.tensor(conf)
    return hand_made(conf, logits=distribution.log(), **fields)


def test_the_scheduler_sees_its_window_with_masks_at_the_masked_positions():
    view = simple([0.6, 0.7], window_step=torch.tensor([2]))
    view = replace(view, pos=torch.tensor([[5, 7]]), start=torch.tensor([4]), end=torch.tensor([9]))
    scheduler = Released()
    Scheduler(scheduler, MASK).select(view)
    (call,) = scheduler.seen.calls
    assert call["sample"].tolist() == [[0, MASK, 0, MASK, 0]]
    assert torch.equal(call["logits"][0, [1, 3]], view.logits[0])
    assert (call["logits"][0, [0, 2, 4]] == 0).all()
    assert call["timestep"] == 2


def test_another_id_stands_in_where_the_mask_is_0():
    scheduler = Released()
    Scheduler(scheduler, 0).select(simple([0.6], end=torch.tensor([3])))
    assert scheduler.seen.calls[0]["sample"].tolist() == [[0, 1, 1]]


def test_the_quota_follows_the_step_of_the_window():
    conf = [0.6, 0.7, 0.8, 0.9, 0.65]
    for scheduler in (Released(5, 2), Coming(2)):  # 3 tokens, then 2
        rule = Scheduler(scheduler, MASK)
        for step, count in [(0, 3), (1, 2), (9, 2), (0, 3)]:
            (got,) = taken(rule, simple(conf, window_step=torch.tensor([step])))
            assert len(got) == count


def test_the_schedulers_token_is_committed_not_the_proposed_one():
    view = simple([0.4])
    assert view.token.tolist() == [[3]]
    assert taken(Scheduler(Released(), MASK), view) == [{0: 4}]


def test_the_given_scheduler_is_left_as_it_was():
    scheduler = Coming(4)
    for _ in range(6):
        Scheduler(scheduler, MASK).select(simple([0.6, 0.7]))
    assert scheduler._step_index is None


def test_a_tuple_is_taken_too():
    class Plain:
        def step(self, model_output, timestep, sample, mask_token_id):
            return (refined(model_output, sample, 1, 0.95, mask_token_id),)

    assert taken(Scheduler(Plain(), MASK), simple([0.6, 0.7])) == [{1: 3}]


def test_a_scheduler_that_commits_nothing_leaves_the_floor_to_the_engine():
    class Waits:
        def step(self, model_output, timestep, sample, mask_token_id):
            return (sample,)

    view = simple([0.6, 0.7])
    selection = Scheduler(Waits(), MASK).select(view)
    assert not selection.commit.any()
    assert commits(view, selection).tolist() == [[False, True]]
    assert selection.token.tolist() == [[3, 3]]


class Draws:
    """Fills every masked position with a random number."""

    def step(self, model_output, timestep, sample, mask_token_id, generator=None):
        return (torch.randint(8, 2**40, sample.shape, generator=generator),)


@settings(max_examples=40)
@given(views())
def test_draws_depend_on_seed_row_and_step_only(view):
    rule = Scheduler(Draws(), MASK)
    torch.manual_seed(0)
    first = taken(rule, view)
    assert first == taken(rule, view)
    assert first == [taken(rule, alone(view, b))[0] for b in range(len(view.row))]
    view = replace(view, key=keys(3, view.row))
    first = taken(rule, view)
    next_seed, next_row = keys(4, view.row), keys(3, view.row + 1)
    others = [{"key": next_seed}, {"step": view.step + 1}, {"key": next_row}]
    for other in (replace(view, **change) for change in others):
        assert all(a != b for a, b in zip(first, taken(rule, other)))


def test_a_name_is_loaded_and_made_without_arguments():
    for path in (f"{__name__}.Released", f"{__name__}:Released"):
        rule = Scheduler(path, MASK)
        assert taken(rule, simple([0.6, 0.7])) == [{1: 3}]
    for path in ("Released", f"{__name__}.Nothing", "no.such.module.Class"):
        with pytest.raises(ValueError, match=f"scheduler='{path}'"):
            Scheduler(path)


def test_the_mask_comes_from_the_vocabulary():
    vocabulary = SimpleNamespace(size=VOCAB, mask_id=MASK, stop_ids=())
    rule = Scheduler(Released())
    with pytest.raises(ValueError, match="mask_token_id=None"):
        rule.select(simple([0.6]))
    assert rule.bind(vocabulary).mask_token_id == MASK
    assert Scheduler(Released(), 5).bind(vocabulary).mask_token_id == 5
    with pytest.raises(ValueError, match="its mask_token_id is 3, expected 7"):
        Scheduler(Coming(4, 3)).bind(vocabulary)


def test_what_is_no_masked_scheduler_is_refused():
    with pytest.raises(ValueError, match="Uniform: expected one that knows a mask token"):
        Scheduler(Uniform())
    with pytest.raises(ValueError, match="expected an object with a method step"):
        Scheduler(3)


def test_a_sample_of_another_shape_is_refused():
    class Shrinks:
        def step(self, model_output, timestep, sample, mask_token_id):
            return (sample[0],)

    with pytest.raises(
        ValueError, match=r"Shrinks: gave a sample of shape \[2\], expected \[1, 2\]"
    ):
        Scheduler(Shrinks(), MASK).select(simple([0.6, 0.7]))
