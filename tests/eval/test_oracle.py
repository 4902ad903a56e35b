"""The oracle: true conditionals, noise that tells rows apart, the interface of a model."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError
from dllm.eval import oracle as oracle_module
from dllm.eval.oracle import IMPOSSIBLE, Joint, Oracle
from dllm.models.protocol import Model


def brute_force(joint: Joint, answer: list[int], known: list[bool]) -> np.ndarray:
    """[n, v] by walking through the support; known slots count left to right while they can."""
    sequences = [
        (tuple(s), math.exp(m))
        for s, m in zip(joint.support.tolist(), joint.log_mass.tolist(), strict=True)
    ]
    if not any(all(s[i] == answer[i] for i in range(len(s)) if known[i]) for s, _ in sequences):
        known = list(known)
        left = sequences
        for i in range(len(answer)):
            fits = [(s, m) for s, m in left if s[i] == answer[i]]
            known[i] = known[i] and bool(fits)
            left = fits if known[i] else left
    distribution = np.zeros((joint.positions, joint.symbols))
    for s, mass in sequences:
        if all(s[i] == answer[i] for i in range(len(s)) if known[i]):
            distribution[range(len(s)), s] += mass
    return distribution / distribution.sum(1, keepdims=True)


def random_table(rng: np.random.Generator) -> Joint:
    n, v = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    mass = rng.exponential(size=(v,) * n) ** 3
    mass[rng.random(mass.shape) < 0.5] = 0
    mass[tuple(rng.integers(0, v, n))] = 1e-3
    return Joint.table(mass)


def forward(oracle: Oracle, rows: list[list[int]]) -> torch.Tensor:
    """[B, T, V] logits of all positions."""
    ids = torch.tensor(rows)
    return oracle(ids, ForwardPlan.full(ids.shape[1], len(rows)))


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_conditionals_equal_brute_force_under_any_evidence(seed):
    """Also where the known symbols cannot occur together, or are no symbols at all."""
    rng = np.random.default_rng(seed)
    joint = random_table(rng)
    answers = rng.integers(0, joint.symbols + 1, (7, joint.positions))
    known = rng.random((7, joint.positions)) < 0.6
    distribution = joint.conditionals(torch.from_numpy(answers), torch.from_numpy(known)).numpy()
    for b in range(7):
        expected = brute_force(joint, answers[b].tolist(), known[b].tolist())
        np.testing.assert_allclose(distribution[b], expected, atol=1e-12)


def test_working_in_small_parts_changes_nothing(monkeypatch):
    joint = Joint.latin_square(3)
    answers = torch.cat([joint.support, joint.support % 2])
    known = torch.rand(24, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    distribution, inside = joint.conditionals(answers, known), joint.contains(answers)
    monkeypatch.setattr(oracle_module, "CELLS", 5 * 12)
    assert torch.equal(joint.conditionals(answers, known), distribution)
    assert torch.equal(joint.contains(answers), inside)
    assert inside.tolist() == [True] * 12 + [False] * 12


def test_constructors_hold_the_right_answers():
    assert Joint.copy(3).support.tolist() == [[0, 1, 2]]
    assert Joint.replace_random(3).support.tolist() == [[3, 1, 2], [0, 3, 2], [0, 1, 3]]
    assert Joint.insert_random(2).support.tolist() == [[2, 0, 1], [0, 2, 1], [0, 1, 2]]
    assert Joint.remove_random(3).support.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert sorted(Joint.shuffle(3).support.tolist()) == sorted(
        map(list, itertools.permutations(range(3)))
    )
    squares = Joint.latin_square().support
    assert squares.shape == (576, 16)
    assert len(squares.unique(dim=0)) == 576
    grid = squares.view(576, 4, 4)
    assert (grid.sort(1).values == torch.arange(4)[:, None]).all()
    assert (grid.sort(2).values == torch.arange(4)).all()


def test_a_table_keeps_its_probabilities():
    joint = Joint.table(np.array([[0.5, 0.2], [0.3, 0.0]]))
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    distribution = joint.conditionals(torch.zeros(1, 2, dtype=torch.long), nothing)[0]
    assert distribution.tolist() == [pytest.approx([0.7, 0.3]), pytest.approx([0.8, 0.2])]
    assert joint.contains(torch.tensor([[0, 0], [1, 1], [1, 0]])).tolist() == [True, False, True]


def test_masses_may_be_far_apart():
    joint = Joint(torch.tensor([[0, 0], [1, 0], [1, 1]]), torch.tensor([0.0, -2000.0, -2001.0]), 2)
    distribution = joint.conditionals(torch.tensor([[1, 0]]), torch.tensor([[True, False]]))
    assert distribution[0, 1].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])


def test_logits_are_the_conditionals_and_nothing_special_is_predicted():
    oracle = Oracle(Joint.replace_random(3), prompt_length=2)
    spec = oracle.spec
    assert (spec.vocab_size, spec.mask_id, spec.eos_id, spec.pad_id) == (7, 4, 5, 6)
    distribution = forward(oracle, [[0, 0, 4, 1, 4]]).softmax(-1)[0, 2:]
    expected = [[1 / 2, 0, 0, 1 / 2, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0, 0, 1 / 2, 1 / 2, 0, 0, 0]]
    torch.testing.assert_close(distribution, torch.tensor(expected, dtype=torch.float64))
    assert (distribution[0, [1, 2, 4, 5, 6]] == 0).all()  # exactly


def test_behind_the_answer_there_is_only_the_end():
    oracle = Oracle(Joint.copy(2), jitter=0.5)
    distribution = forward(oracle, [[2, 2, 2, 2]]).softmax(-1)[0]
    assert distribution[2:, oracle.spec.eos_id].tolist() == [1, 1]


def test_a_canvas_shorter_than_the_answer_is_part_of_it():
    oracle = Oracle(Joint.shuffle(3))
    distribution = forward(oracle, [[3, 1]]).softmax(-1)
    assert distribution[0, 0].tolist() == pytest.approx([0.5, 0, 0.5, 0, 0, 0])


def test_head_rows_are_indices_into_the_queries():
    oracle = Oracle(Joint.replace_random(4), jitter=0.1, prompt_length=1)
    ids = torch.tensor([[0, 5, 1, 5, 5], [1, 4, 5, 5, 5]])
    every = forward(oracle, ids.tolist())
    pos = torch.tensor([[4, 1, 3], [2, 3, 4]])
    head = torch.tensor([[2, 0], [1, 1]])
    logits = oracle(ids, ForwardPlan(pos=pos, head=head))
    want = pos.gather(1, head)
    for b in range(2):
        assert torch.equal(logits[b], every[b, want[b]])


def test_the_oracle_fits_the_model_interface_and_has_no_store():
    oracle: Model = Oracle(Joint.copy(2))
    assert (oracle.device, oracle.dtype) == (torch.device("cpu"), torch.float64)
    with pytest.raises(DllmError, match="cache='none'"):
        oracle.new_kv(1, 2)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3]))
@settings(max_examples=30, deadline=None)
def test_a_row_is_the_same_alone_and_in_a_batch(seed, jitter):
    rng = np.random.default_rng(seed)
    joint = random_table(rng)
    oracle = Oracle(joint, jitter=jitter, seed=seed, prompt_length=2)
    rows = rng.integers(0, joint.symbols + 1, (5, 2 + joint.positions)).tolist()
    together = forward(oracle, rows)
    assert together.isfinite().all()
    for b, row in enumerate(rows):
        torch.testing.assert_close(forward(oracle, [row])[0], together[b], rtol=0, atol=1e-9)


def test_without_jitter_ties_are_exact_and_prompts_do_not_matter():
    oracle = Oracle(Joint.shuffle(5), prompt_length=2)
    logits = forward(oracle, [[0, 1, 5, 3, 5, 5, 5], [4, 2, 5, 3, 5, 5, 5]])
    assert torch.equal(logits[0], logits[1])
    assert len(logits[0, 2, [0, 1, 2, 4]].unique()) == 1


def test_jitter_is_normal_noise_that_differs_by_row_slot_symbol_evidence_and_seed():
    quiet = Oracle(Joint.shuffle(4), prompt_length=5)
    loud = Oracle(Joint.shuffle(4), jitter=0.25, prompt_length=5)
    rows = [[*prompt, 4, 4, 4, 4] for prompt in loud.prompts(1000)]
    noise = (forward(loud, rows) - forward(quiet, rows))[:, 5:, :4] / 0.25
    values = noise.flatten().sort().values
    assert len(values.unique()) == values.numel() == 16000
    uniform = (torch.arange(16000, dtype=torch.float64) + 0.5) / 16000
    distance = (torch.special.ndtr(values) - uniform).abs().max()
    assert distance < 1.95 / math.sqrt(16000)  # Kolmogorov-Smirnov, 0.1 %
    # independent between slots, between symbols, between rows
    for one, other in ((noise[:, 0], noise[:, 1]), (noise[..., 0], noise[..., 1])):
        assert abs(float((one * other).mean())) < 4 / math.sqrt(4000)
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 4 / math.sqrt(16000)
    assert torch.equal(forward(loud, rows[:3]), forward(loud, rows[:3]))
    other_seed = forward(Oracle(Joint.shuffle(4), jitter=0.25, seed=1, prompt_length=5), rows[:1])
    assert not torch.equal(other_seed, forward(loud, rows[:1]))
    told = [[*rows[0][:5], 4, 4, 4, 0], [*rows[0][:5], 4, 4, 4, 1]]
    known = (forward(loud, told) - forward(quiet, told))[:, 5:8, 2]  # symbol 2 is open in both
    assert len(known.unique()) == 6


def test_jitter_leaves_the_impossible_impossible():
    distribution = forward(Oracle(Joint.copy(3), jitter=1.0), [[3, 3, 3]]).softmax(-1)
    assert distribution.amax(-1).tolist() == [[1, 1, 1]]
    assert IMPOSSIBLE + 100 < -1000


def test_prompts_are_distinct_and_made_of_symbols():
    oracle = Oracle(Joint.shuffle(3), prompt_length=4)
    prompts = oracle.prompts(81)
    assert len(set(map(tuple, prompts))) == 81
    assert {token for prompt in prompts for token in prompt} == {0, 1, 2}
    with pytest.raises(ValueError, match="82 prompts of 3 symbols"):
        oracle.prompts(82)


def test_a_thousand_rows_take_a_fraction_of_a_second():
    oracle = Oracle(Joint.shuffle(6), jitter=1e-3, prompt_length=5)
    rows = [[*prompt, 0, *[6] * 5] for prompt in oracle.prompts(1000)]
    forward(oracle, rows)
    began = time.process_time()
    forward(oracle, rows)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Oracle(Joint.copy(2), jitter=-0.1), "jitter=-0.1"),
        (lambda: Oracle(Joint.copy(2), jitter=math.nan), "jitter=nan"),
        (lambda: Oracle(Joint.copy(2), prompt_length=-1), "prompt_length=-1"),
        (lambda: Joint.table(np.zeros((2, 2))), "one of them above 0"),
        (lambda: Joint.table(np.array([[1.0, math.nan], [0, 0]])), "finite"),
        (lambda: Joint.table(np.ones((2, 3))), r"shape \[2, 3\]"),
        (lambda: Joint(torch.tensor([[0, 3]]), torch.zeros(1), 3), "symbols=3"),
        (lambda: Joint(torch.tensor([[0, 1]]), torch.zeros(2), 2), r"\[1, 2\]"),
        (lambda: Joint(torch.tensor([[0, 1]]), torch.tensor([-math.inf]), 2), "log_mass"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
