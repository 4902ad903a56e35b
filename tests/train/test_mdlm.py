import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.data import Mixture, TrainingPair, lay_out, mixed
from dllm.train.mdlm import TAIL_WEIGHT, Mdlm
from dllm.train.tokenizer import EOS, MASK
from dllm.train.trainer import Stage, TrainConfig, Trainer, init_weights
from tests.train.words import TOKENIZER

MIX = Mixture({"copy": 1.0, "calculation": 1.0}, {"copy": (3, 4)}, tail=9, tail_share=0.5)


def spec():
    vocab = TOKENIZER.get_vocab()
    return ModelSpec(
        family="llada",
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=len(vocab),
        mlp_size=48,
        norm_eps=1e-5,
        rope_theta=1e4,
        mask_id=vocab[MASK],
        eos_id=vocab[EOS],
        pad_id=vocab[EOS],
    )


OBJECTIVE = Mdlm(blockwise=0.2, frontier=0.45)


def trainer(steps, config, out):
    model = Decoder(spec())
    init_weights(model, 0)
    batches = mixed(TOKENIZER, MIX, model.spec.eos_id, config.batch_size, config.seed)
    return Trainer(model, [Stage(steps, batches, OBJECTIVE.loss)], config, out)


def batch(index=0, seed=0):
    return mixed(TOKENIZER, MIX, 0, 6, seed)(index)


def same_rows(count, start, end, length):
    """Rows of the token 5, their answers from `start` to `end`."""
    return lay_out(
        [TrainingPair([5] * start, [5] * (end - start))] * count, (5, 5), length - end - 2
    )


@given(st.integers(0, 10**6))
def test_only_answers_are_masked_and_every_row_is(seed):
    generator = torch.Generator().manual_seed(seed)
    b = batch(seed % 7)
    noisy, weights = OBJECTIVE.corrupt(b, 1, generator)
    changed = noisy != b.ids
    pos = torch.arange(b.ids.shape[1])
    assert not (changed & (pos < b.start[:, None])).any()
    assert (changed | (weights == 0)).all()
    core = pos < b.end[:, None] + 2
    assert (changed & core).any(1).all()
    # The answer's masks weigh 1 together, the padding's TAIL_WEIGHT at most.
    assert torch.allclose((weights * core).sum(1), torch.ones(6))
    assert ((weights * ~core).sum(1) <= TAIL_WEIGHT + 1e-6).all()


def test_the_number_of_masks_is_uniform():
    """In all but the block-wise rows l is uniform on 1..L: no count below that by 4 sigma."""
    n, length = 6000, 6
    b = same_rows(n, 4, 8, 10)
    noisy, _ = OBJECTIVE.corrupt(b, 1, torch.Generator().manual_seed(0))
    masked = noisy == 1
    counts = torch.bincount(masked.sum(1), minlength=length + 1)
    assert counts[0] == 0
    expected = (1 - OBJECTIVE.blockwise) * n / length
    for count in counts[1:]:
        assert count > expected - 4 * expected**0.5


def test_frontier_rows_count_two_masks_behind_known_tokens():
    n = 6000
    b = same_rows(n, 4, 38, 40)
    noisy, weights = OBJECTIVE.corrupt(b, 1, torch.Generator().manual_seed(0))
    masked = noisy == 1
    frontier = (masked & (weights == 0)).any(1)
    # A cut at the last or last but one token leaves nothing uncounted: 34 of 36 cuts show.
    assert frontier.float().mean() == pytest.approx(
        OBJECTIVE.frontier * 34 / 36, abs=4 * (0.25 / n) ** 0.5
    )
    first = masked.int().argmax(1)
    for row in frontier.nonzero()[:50, 0]:
        at = int(first[row])
        assert masked[row, at:].all()
        assert (weights[row] > 0).nonzero()[:, 0].tolist() == [at, at + 1]


def test_the_loss_is_that_of_the_masked_tokens_and_falls(tmp_path):
    rates = {"lr": 0.01, "muon_lr": 0.02, "warmup": 5, "decay": 1}
    config = TrainConfig(batch_size=16, save_every=1000, **rates)
    run = trainer(1000, config, tmp_path)
    losses = [run.train_step() for _ in range(15)]
    assert losses[0] == pytest.approx(math.log(TOKENIZER.get_vocab_size()), rel=0.15)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
