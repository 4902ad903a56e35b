import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks import is_held_out
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.data import Batch, Mixture, make_batch
from dllm.train.mdlm import BLOCKWISE, FRONTIER, TAIL_WEIGHT, corrupt, loss
from dllm.train.tokenizer import ASSISTANT, EOS, MASK, USER
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


def trainer(stages, config, out):
    model = Decoder(spec())
    init_weights(model, 0)
    return Trainer(model, loss, TOKENIZER, model.spec.eos_id, stages, config, out)


def batch(index=0, seed=0):
    return make_batch(TOKENIZER, MIX, seed=seed, index=index, batch_size=6, eos_id=0)


@given(st.integers(0, 10**6))
def test_only_answers_are_masked_and_every_row_is(seed):
    generator = torch.Generator().manual_seed(seed)
    b = batch(seed % 7)
    noisy, weights = corrupt(b, 1, generator)
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
    b = Batch(torch.full((n, 10), 5), torch.full((n,), 4), torch.full((n,), 8))
    noisy, _ = corrupt(b, 1, torch.Generator().manual_seed(0))
    masked = noisy == 1
    counts = torch.bincount(masked.sum(1), minlength=length + 1)
    assert counts[0] == 0
    expected = (1 - BLOCKWISE) * n / length
    for count in counts[1:]:
        assert count > expected - 4 * expected**0.5


def test_frontier_rows_count_two_masks_behind_known_tokens():
    n = 6000
    b = Batch(torch.full((n, 40), 5), torch.full((n,), 4), torch.full((n,), 38))
    noisy, weights = corrupt(b, 1, torch.Generator().manual_seed(0))
    masked = noisy == 1
    frontier = (masked & (weights == 0)).any(1)
    # A cut at the last or last but one token leaves nothing uncounted: 34 of 36 cuts show.
    assert frontier.float().mean() == pytest.approx(FRONTIER * 34 / 36, abs=4 * (0.25 / n) ** 0.5)
    first = masked.int().argmax(1)
    for row in frontier.nonzero()[:50, 0]:
        at = int(first[row])
        assert masked[row, at:].all()
        assert (weights[row] > 0).nonzero()[:, 0].tolist() == [at, at + 1]


def test_batches_are_a_function_of_seed_and_index():
    assert torch.equal(batch(3).ids, batch(3).ids)
    assert not any(torch.equal(batch(3).ids, batch(i).ids) for i in (0, 1, 2, 4))
    assert not torch.equal(batch(3).ids, batch(3, seed=1).ids)


def test_batches_hold_templated_prompts_that_are_not_held_out():
    for index in range(8):
        b = batch(index)
        for ids, start, end in zip(b.ids.tolist(), b.start, b.end, strict=True):
            prompt = TOKENIZER.decode(ids[1 : start - 1], skip_special_tokens=False)
            assert ids[0] == TOKENIZER.token_to_id(USER)
            assert ids[start - 1] == TOKENIZER.token_to_id(ASSISTANT)
            assert not is_held_out(prompt)
            assert set(ids[end:]) == {0}


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    def run(folder, steps):
        config = TrainConfig(batch_size=4, warmup=2, decay=3, save_every=2)
        made = trainer([Stage(6, MIX)], config, folder)
        while made.step < steps:
            made.train_step()
        made.save()
        return made

    run(tmp_path / "broken", 3)
    broken, whole = run(tmp_path / "broken", 6), run(tmp_path / "whole", 6)
    for name, p in whole.model.state_dict().items():
        assert torch.equal(p, broken.model.state_dict()[name]), name


def test_the_loss_is_that_of_the_masked_tokens_and_falls(tmp_path):
    config = TrainConfig(batch_size=16, warmup=5, decay=1, save_every=1000)
    run = trainer([Stage(1000, MIX)], config, tmp_path)
    losses = [run.train_step() for _ in range(40)]
    assert losses[0] == pytest.approx(math.log(TOKENIZER.get_vocab_size()), rel=0.15)
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_stages_follow_each_other_and_rates_rise_and_fall(tmp_path):
    other = Mixture({"sort": 1.0})
    config = TrainConfig(warmup=4, decay=5)
    run = trainer([Stage(3, MIX), Stage(7, other)], config, tmp_path)
    assert [run.mixture(s) is MIX for s in range(5)] == [True] * 3 + [False] * 2
    assert [run.lr_factor(s) for s in (0, 3, 5, 9)] == [0.25, 1.0, 1.0, 0.2]


def test_the_log_is_jsonl(tmp_path):
    seen = []
    config = TrainConfig(batch_size=2, save_every=100)
    trainer([Stage(4, MIX)], config, tmp_path).run(2, seen.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [n["step"] for n in seen] == [2, 4]
