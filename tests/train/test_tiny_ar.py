import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dllm.train.tiny_ar
from dllm.train.data import TrainingPair, lay_out
from dllm.train.mixtures import curriculum
from dllm.train.trainer import TrainConfig, Trainer
from tests.train.test_mdlm import MIX
from tests.train.words import TOKENIZER

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def small():
    return dllm.train.tiny_ar.model(TOKENIZER.get_vocab_size(), 0, 0, SIZES)


def trainer(steps, out, batch_size=4):
    config = TrainConfig(batch_size=batch_size, lr=0.01, warmup=2, decay=1, save_every=2)
    stages = curriculum([(steps, MIX)], TOKENIZER, 0, config, dllm.train.tiny_ar.loss)
    return Trainer(small(), stages, config, out)


def test_the_loss_is_of_the_answers_and_the_end_behind_each():
    """None behind an answer that was cut off."""
    model = small()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    rows = [
        TrainingPair([5, 6], [7, 8]),
        TrainingPair([9, 5, 6, 7], [8]),
        TrainingPair([5], [6, 7], (), False),
    ]
    batch = lay_out(rows, (0, 0))
    ids = batch.ids
    with torch.no_grad():
        logp = model(ids).logits.log_softmax(-1)
    counted = [(0, 2), (0, 3), (0, 4), (1, 4), (1, 5), (2, 1), (2, 2)]
    expected = -sum(float(logp[row, at - 1, ids[row, at]]) for row, at in counted) / len(counted)
    generator = torch.Generator()
    whole = dllm.train.tiny_ar.loss(model, batch, generator, slice(None))
    assert whole.item() == pytest.approx(expected, rel=0.02)  # products are in bf16
    parts = [dllm.train.tiny_ar.loss(model, batch, generator, slice(i, None, 2)) for i in range(2)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=0.02)


def test_it_learns(tmp_path):
    run = trainer(1000, tmp_path, batch_size=16)
    losses = [run.train_step() for _ in range(15)]
    assert losses[0] == pytest.approx(math.log(TOKENIZER.get_vocab_size()), rel=0.1)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    """The head is tied to the embedding: it is stored once and stays tied."""
    for stop in (2, 4):
        broken = trainer(4, tmp_path / "broken")
        while broken.step < stop:
            broken.train_step()
        broken.save()
    whole = trainer(4, tmp_path / "whole")
    while whole.step < 4:
        whole.train_step()
    assert broken.model.lm_head.weight is broken.model.model.embed_tokens.weight
    for (name, a), b in zip(whole.model.named_parameters(), broken.model.parameters()):
        assert torch.equal(a, b), name


def test_what_is_exported_is_an_ordinary_checkpoint(tmp_path):
    run = trainer(1, tmp_path / "run")
    dllm.train.tiny_ar.export(run.model, TOKENIZER, tmp_path / "checkpoint")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        error = (loaded(ids).logits - run.model.eval()(ids).logits).abs().max()
    assert error < 1e-2  # fp16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    assert tokenizer.eos_token_id == loaded.generation_config.eos_token_id == 0
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Copy"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|> Copy<|assistant|>"
