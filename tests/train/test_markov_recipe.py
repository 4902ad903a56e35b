"""The recipe `markov`: a finished drafter's columns, its target's laws; only the head learns."""

import shutil

import pytest
import torch

import dllm
import dllm.verify
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.models.markov import MarkovHead, load_markov
from dllm.train.data import TrainingPair, lay_out
from dllm.train.job import Job
from dllm.train.markov import Headed, Markov, markov_loss
from dllm.train.recipes import RECIPES
from dllm.train.trainer import init_weights
from dllm.verify.draft.drafter import ModelDrafter
from tests.echo import write_tiny
from tests.train.test_mdlm import spec
from tests.train.test_tiny_ar import small

ROWS = [
    TrainingPair([9] * 3, [5, 6, 7, 8]),
    TrainingPair([9], [5, 6], (), False),
    TrainingPair([9] * 2, [5]),
]


def noisy(model, std=0.2):
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std, generator=torch.Generator().manual_seed(p.numel()))
    return model


@pytest.fixture
def headed():
    drafter = Decoder(spec())
    init_weights(drafter, 0)
    head = noisy(MarkovHead(drafter.spec.vocab_size, 3), 1.0)
    return Headed(noisy(drafter), head, noisy(small()).eval())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_of_the_columns_that_a_drafter_makes(headed, monkeypatch):
    """One row of context, a cut, three masks: the drafter's own columns, the target's own laws."""
    row = TrainingPair([9, 12, 14], [5, 6, 7, 8])
    batch = lay_out([row], (0, 0))
    monkeypatch.setattr("dllm.train.markov.random_cut", lambda *_: torch.tensor([5]))
    recipe = Markov(rank=3, reach=3, decay=2.0)
    value = recipe.loss(None, headed, batch, generator(), slice(None)).item()
    session = ModelDrafter(headed.drafter, width=8).open([20])
    session.begin(0, [9, 12, 14, 5, 6])
    logits = session.columns({0: 3}).detach()
    tokens = torch.tensor([[7, 8, 0]])
    with torch.no_grad():
        distributions = headed.target(torch.tensor([[9, 12, 14, 5, 6, 7, 8]])).logits.softmax(-1)[
            :, 4:
        ]
        expected = markov_loss(
            headed.head, logits, tokens, torch.tensor([6]), target=distributions, decay=2.0
        ).item()
    assert value == pytest.approx(expected, rel=0.02)  # the products of training are in bf16


def test_nothing_counts_behind_what_is_known(headed, monkeypatch):
    """Neither behind an end token, nor behind the end of an answer that was cut off."""
    seen = {}

    def loss(head, logits, tokens, last, *, valid, **_):
        seen["valid"] = valid
        return head.bias(last).sum()

    monkeypatch.setattr("dllm.train.markov.markov_loss", loss)
    monkeypatch.setattr("dllm.train.markov.random_cut", lambda *_: torch.tensor([5, 2, 3]))
    Markov(reach=4).loss(None, headed, lay_out(ROWS, (0, 0)), generator(), slice(None))
    assert seen["valid"].tolist() == [
        [True, True, True, False],  # 7, 8 and the end
        [True, False, False, False],  # 6
        [True, False, False, False],  # the end
    ]


@pytest.mark.parametrize("separator", [None, 11])
def test_shares_of_the_batch_add_up(headed, separator):
    recipe, batch = Markov(reach=4), lay_out(ROWS, (0, 0))
    whole = recipe.loss(separator, headed, batch, generator(3), slice(None)).item()
    parts = [
        recipe.loss(separator, headed, batch, generator(3), slice(i, None, 2)).item()
        for i in range(2)
    ]
    assert sum(parts) == pytest.approx(whole, rel=0.01)


def test_only_the_head_learns_and_goes_beside_the_drafter(ar, tmp_path):
    folder = write_tiny(tmp_path / "tiny")
    asked = {"data": "generators:copy", "examples": 8, "batch_size": 4, "steps": 3}
    job = Job("markov", tmp_path / "run", model=str(folder), **asked)
    run = RECIPES.build("markov:rank=4,reach=4").prepare(job, lambda *_: None)
    run.trainer.run()
    run.export(tmp_path / "made")
    before, after = dllm.load(folder).model, dllm.load(tmp_path / "made").model
    for a, b in zip(before.parameters(), after.parameters()):
        assert torch.equal(a, b)
    head = load_markov(tmp_path / "made", after.spec.vocab_size)
    assert head.rank == 4
    assert head.right.weight.abs().max() > 0
    again = RECIPES.build("mdlm").prepare(
        Job("mdlm", tmp_path / "next", model=str(tmp_path / "made"), **asked), lambda *_: None
    )
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "made" / "markov.safetensors", tmp_path / "old")
    again.export(tmp_path / "old")  # other weights: the head is not theirs
    assert load_markov(tmp_path / "old", after.spec.vocab_size) is None


def test_the_targets_laws_are_used_where_tokens_are_the_same(ar, tmp_path):
    options = {"distill_from": str(ar), "data": "generators:copy", "examples": 4}
    own = Job("markov", tmp_path / "a", model="tiny", max_new_tokens=4, **options)
    student = own.student("a model")
    assert own.teacher_with(student.text) is None  # the words of the tests are fewer
    text = own.teacher()[1]
    assert own.teacher_with(text) is not None
    assert Job("markov", tmp_path / "b", model="tiny").teacher_with(text) is None


def test_options_are_checked(tmp_path):
    for knobs, word in (
        ({"rank": 0}, "rank"),
        ({"reach": 0}, "reach"),
        ({"decay": 0.0}, "decay"),
        ({"tv_share": 2.0}, "tv_share"),
    ):
        with pytest.raises(ValueError, match=word):
            Markov(**knobs)
    with pytest.raises(DllmError, match="only the head learns"):
        Markov().prepare(Job("markov", tmp_path, model="tiny", lora="rank=2"), lambda *_: None)
