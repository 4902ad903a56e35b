import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.models.decoder import Decoder
from dllm.train.data import TrainingPair, lay_out
from dllm.train.drafter import DrafterAlignment, Masks, Objective, random_cut
from dllm.train.mdlm import TAIL_WEIGHT
from dllm.train.trainer import init_weights
from dllm.verify.draft.drafter import ModelDrafter
from tests.train.test_mdlm import spec

ROWS = [
    TrainingPair([9] * 3, [5, 6, 7, 8]),
    TrainingPair([9], [5, 6], (), False),
    TrainingPair([9] * 2, [5]),
]
BATCH = lay_out(ROWS, (0, 0))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 10**6))
def test_cuts_lie_where_the_next_token_is_known(seed):
    cut = random_cut(BATCH, generator(seed))
    assert (cut >= BATCH.start).all()
    assert (cut <= torch.tensor([7, 2, 3])).all()  # the end token is known of whole answers


def test_all_cuts_are_drawn():
    cuts = {tuple(random_cut(BATCH, generator(seed)).tolist()) for seed in range(400)}
    assert {c[0] for c in cuts} == {3, 4, 5, 6, 7}
    assert {c[1] for c in cuts} == {1, 2}
    assert {c[2] for c in cuts} == {2, 3}


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]))
def test_stage_one_masks_a_run_behind_the_cut(seed, reach, full):
    masks = DrafterAlignment(reach=reach, full=full).continuation(BATCH, generator(seed))
    pos = torch.arange(masks.ids.shape[1])
    for row in range(3):
        region = (pos >= masks.end[row] - reach) & (pos < masks.end[row])
        assert not (masks.masked[row] & ~region).any()
        assert masks.masked[row].any()
        if full == 1.0:
            assert torch.equal(masks.masked[row], region)
    assert (masks.weights[~masks.masked] == 0).all()
    assert (masks.weights[1, 3:] == 0).all()  # the answer was cut off there
    total = masks.weights.sum(1)
    assert (torch.isclose(total, torch.ones(3)) | (total == 0)).all()


@given(st.integers(0, 10**6))
def test_stage_two_weighs_what_is_nearest_to_the_cut_most(seed):
    masks = DrafterAlignment(boundary=4, decay=1.5).suffix(BATCH, generator(seed))
    for row in range(3):
        at = masks.masked[row].nonzero()[:, 0]
        assert at.tolist() == list(range(int(at[0]), int(masks.end[row])))
        expected = torch.tensor([1.5 ** (len(at) - 1 - i) for i in range(len(at))])
        behind = at > BATCH.end[row]
        expected = torch.where(behind, expected * TAIL_WEIGHT, expected)
        if row == 1:
            expected[at >= 3] = 0
        assert torch.allclose(masks.weights[row, at], expected / expected.sum())


def test_stage_two_draws_every_length():
    lengths = {
        int(DrafterAlignment(boundary=3).suffix(BATCH, generator(seed)).masked[0].sum())
        for seed in range(100)
    }
    assert lengths == {1, 2, 3}


@pytest.mark.parametrize("separator", [None, 11])
def test_the_loss_is_that_of_the_draft_that_a_drafter_makes(separator):
    """One row, all masks: the columns of `ModelDrafter` behind the same context say the same."""
    model = Decoder(spec()).double()
    init_weights(model, 0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=generator(p.numel()))
    row = TrainingPair([9, 12, 14], [5, 6, 7, 8])
    batch = lay_out([row], (0, 0))
    masks = Masks.behind(batch, torch.tensor([5]), torch.tensor([3]))  # 7, 8 and the end
    objective = Objective(lambda *_: masks, separator)
    value = objective(model, batch, generator(0), slice(None)).item()

    drafter = ModelDrafter(model, width=model.spec.vocab_size, separator=separator)
    session = drafter.open([20])
    session.begin(0, [9, 12, 14, 5, 6])
    columns = session.columns({0: 3})[0].log_softmax(-1).detach()
    expected = -sum(float(columns[i, token]) for i, token in enumerate((7, 8, 0))) / 3
    assert value == pytest.approx(expected, rel=0.02)  # the products of training are in bf16


def test_what_is_behind_the_masks_is_not_seen():
    model = Decoder(spec())
    init_weights(model, 0)
    torch.nn.init.normal_(model.layers[0].attn.o.weight, std=0.2, generator=generator(1))
    short, long = lay_out([ROWS[0]], (0, 0)), lay_out([ROWS[0]], (0, 0), tail=6)

    def loss(batch):
        masks = Masks.behind(batch, torch.tensor([4]), torch.tensor([2]))
        return Objective(lambda *_: masks)(model, batch, generator(0), slice(None)).item()

    assert loss(short) == pytest.approx(loss(long), rel=1e-3)


def test_shares_of_the_batch_add_up():
    model = Decoder(spec())
    init_weights(model, 0)
    objective = Objective(DrafterAlignment(reach=5).continuation)
    whole = objective(model, BATCH, generator(3), slice(None)).item()
    parts = [objective(model, BATCH, generator(3), slice(i, None, 2)).item() for i in range(2)]
    assert math.isclose(sum(parts), whole, rel_tol=0.01)


def test_options_are_checked():
    for knobs, word in (
        ({"reach": 0}, "reach"),
        ({"decay": 0.9}, "decay"),
        ({"full": 1.5}, "full"),
        ({"refine": -0.1}, "refine"),
        ({"opening": 1.5}, "opening"),
        ({"boundary": 0}, "boundary"),
    ):
        with pytest.raises(ValueError, match=word):
            DrafterAlignment(**knobs)


def test_an_opening_is_cut_where_the_answer_begins():
    cuts = torch.stack([random_cut(BATCH, generator(seed), 0.5) for seed in range(400)])
    plain = torch.stack([random_cut(BATCH, generator(seed)) for seed in range(400)])
    opens = cuts == BATCH.start
    assert ((cuts == plain) | opens).all()  # else a random place, as without
    assert 0.45 < opens[:, 0].float().mean() < 0.85
    assert (
        torch.stack([random_cut(BATCH, generator(s), 1.0) for s in range(9)]) == BATCH.start
    ).all()


@pytest.mark.parametrize("stage", ["continuation", "suffix"])
def test_both_stages_take_the_share_of_openings(stage):
    recipe = DrafterAlignment(opening=1.0, full=1.0)
    for seed in range(20):
        masks = getattr(recipe, stage)(BATCH, generator(seed))
        assert (masks.masked.long().argmax(1) == BATCH.start).all()
