import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.train.certainty import Certainty
from dllm.train.data import TrainingPair, lay_out
from dllm.train.mdlm import TAIL_WEIGHT

MASK = 1
# answers of 5 and 3 tokens behind prompts of 2 and 1, in blocks of 4; the end token comes last
ROWS = [
    TrainingPair([9, 9], [3, 4, 5, 6, 7], [1, 2, 1, 2, 3, 3]),
    TrainingPair([9], [3, 4, 5], [2, 1, 1, 2]),
]


def states(seed, rows=ROWS, **knobs):
    batch = lay_out(rows, (0, 0))
    return batch, *Certainty(block_length=4, **knobs).states(
        batch, MASK, torch.Generator().manual_seed(seed)
    )


@given(st.integers(0, 10**6))
def test_a_state_is_one_that_decoding_passed_through(seed):
    _, noisy, weights = states(seed)
    for row, (prompt, answer, order, _) in enumerate(ROWS):
        canvas = [*prompt, *answer, *[0] * (len(noisy[row]) - len(prompt) - len(answer))]
        forwards = [*[0] * len(prompt), *order]
        forwards += [order[-1]] * (len(canvas) - len(forwards))
        after = [
            [MASK if at > step else token for token, at in zip(canvas, forwards, strict=True)]
            for step in range(max(order))
        ]
        assert noisy[row].tolist() in after
    assert torch.allclose(weights.sum(1), torch.ones(2))
    assert (weights[noisy != MASK] == 0).all()


def test_every_step_is_drawn_alike():
    rows = [TrainingPair([9], [3, 4, 5], [1, 2, 3, 4])] * 4000
    _, noisy, _ = states(0, rows)
    masks = torch.bincount((noisy[:, 1:4] == MASK).sum(1), minlength=4)
    assert (masks - 1000).abs().max() < 4 * 1000**0.5


def test_only_the_block_at_work_counts_and_padding_little():
    seen = set()
    for seed in range(40):
        _, noisy, weights = states(seed)
        first = int((noisy[0] == MASK).int().argmax()) - 2
        block = range(2 + first // 4 * 4, min(2 + first // 4 * 4 + 4, 9))
        inside = [p for p in block if noisy[0, p] == MASK]
        assert (weights[0] > 0).nonzero()[:, 0].tolist() == inside
        seen.add(first // 4)
        if first // 4 == 1:  # the last token, its end, and one position of padding
            assert weights[0, 8] / weights[0, 7] == pytest.approx(TAIL_WEIGHT)
    assert seen == {0, 1}


class Table(torch.nn.Module):
    """Logits by position, whatever the text."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.spec = type("Spec", (), {"mask_id": MASK, "shift": 0})
        self.device = torch.device("cpu")
        self.head = torch.nn.Identity()

    def hidden(self, ids, plan):
        return self.logits[plan.pos]


def test_the_loss_is_consistency_plus_the_entropy_of_what_is_right():
    """Two masks: one predicted right (p = .8), one wrong; entropies at temperature 0.5."""
    rows = [TrainingPair([9], [3, 4], [1, 1, 1])]
    logits = torch.full((5, 10), -1e4)
    logits[1, [3, 5]] = torch.tensor([0.8, 0.2]).log()
    logits[2, [4, 5]] = torch.tensor([0.3, 0.7]).log()
    logits[3:, 0] = 0.0
    batch = lay_out(rows, (0, 0))
    generator = torch.Generator().manual_seed(0)
    recipe = Certainty(block_length=4, weight=3.0)
    value = recipe.loss(Table(logits), batch, generator, slice(None)).item()
    q = 0.8**2 / (0.8**2 + 0.2**2)
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    each = 1 / (3 + TAIL_WEIGHT)
    expected = each * (-math.log(0.8) + 3 * entropy - math.log(0.3))
    assert value == pytest.approx(expected, rel=1e-4)


def test_certainty_does_not_push_what_is_wrong():
    rows = [TrainingPair([9], [3], [1, 1])]
    logits = torch.zeros(4, 10)
    logits[1, 5], logits[1, 3] = 2.0, 1.0
    logits[2:, 0] = 30.0

    def gradient(weight):
        table = Table(logits.clone())
        recipe = Certainty(weight=weight)
        batch = lay_out(rows, (0, 0))
        recipe.loss(table, batch, torch.Generator().manual_seed(0), slice(None)).backward()
        return table.logits.grad[1]

    assert torch.allclose(gradient(5.0), gradient(0.0))
    logits[1, 3] = 3.0  # right now: the entropy's gradient comes on top
    assert gradient(5.0)[3] < gradient(0.0)[3] < 0


def test_options_are_checked():
    for knobs, word in (
        ({"temperature": 0.0}, "temperature"),
        ({"weight": -1.0}, "weight"),
        ({"block_length": 0}, "block_length"),
        ({"tail_share": 2.0}, "tail_share"),
    ):
        with pytest.raises(ValueError, match=word):
            Certainty(**knobs)
