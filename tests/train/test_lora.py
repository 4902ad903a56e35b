"""Runs that train an adapter alone: what they change, what they store, and how they go on."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dllm.train.tiny_ar
from dllm.models.decoder import Decoder
from dllm.models.lora import Lora, attach, matrices, merge
from dllm.train.mixtures import curriculum
from dllm.train.state import FILE
from dllm.train.trainer import TrainConfig, Trainer, make_optimizers, trained
from tests.train.test_mdlm import MIX, OBJECTIVE, spec
from tests.train.test_tiny_ar import small
from tests.train.words import TOKENIZER

CONFIG = TrainConfig(batch_size=8, muon_lr=0.05, warmup=2, decay=1, save_every=100)


def decoder():
    model = Decoder(spec())
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.1, generator=generator)
    return model


def llama():
    model = small()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.1, generator=generator)
    return model


KINDS = {"decoder": (decoder, OBJECTIVE.loss), "llama": (llama, dllm.train.tiny_ar.loss)}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def trainer(kind, steps, out, targets=()):
    make, objective = KINDS[kind]
    model = make()
    attach(model, Lora(4, 8.0, targets), seed=0)
    stages = curriculum([(steps, MIX)], TOKENIZER, 0, CONFIG, objective)
    return Trainer(model, stages, CONFIG, out)


def frozen(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def test_it_learns_and_changes_nothing_else(kind, tmp_path):
    run = trainer(kind, 1000, tmp_path)
    before = frozen(run.model)
    losses = [run.train_step() for _ in range(20)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for name, p in frozen(run.model).items():
        assert torch.equal(p, before[name]), name
    for name, matrix in matrices(run.model).items():
        assert matrix.abs().sum() > 0, name
    merge(run.model)
    changed = dict(KINDS[kind][0]().named_parameters())
    for name, p in run.model.named_parameters():
        in_a_layer = "layers." in name and p.ndim == 2
        assert torch.equal(p, changed[name]) is not in_a_layer, name


def test_a_resumed_run_equals_an_unbroken_one(kind, tmp_path):
    for stop in (3, 6):
        broken = trainer(kind, 6, tmp_path / "broken")
        assert broken.step == stop - 3
        while broken.step < stop:
            broken.train_step()
        broken.save()
    whole = trainer(kind, 6, tmp_path / "whole")
    while whole.step < 6:
        whole.train_step()
    for (name, a), b in zip(whole.model.named_parameters(), broken.model.parameters()):
        assert torch.equal(a, b), name
    assert all(matrix.any() for matrix in matrices(broken.model).values())


def test_only_the_adapter_is_stored(kind, tmp_path):
    run = trainer(kind, 1, tmp_path)
    run.run()
    tensors = load_file(tmp_path / FILE)
    stored = {key[6:]: t for key, t in tensors.items() if key.startswith("model.")}
    assert stored.keys() == {n for n, _ in run.model.named_parameters() if "lora_" in n}
    assert stored.keys() == trained(run.model).keys()
    moments = {key: t for key, t in tensors.items() if key.startswith("optimizer.")}
    assert sum(t.numel() for t in moments.values()) == sum(t.numel() for t in stored.values())


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        ((), [torch.optim.Muon]),
        (("head",), [torch.optim.AdamW]),
        (("head", "q"), [torch.optim.Muon, torch.optim.AdamW]),
    ],
)
def test_each_matrix_has_its_optimizer(targets, kinds):
    model = decoder()
    attach(model, Lora(4, 8.0, targets), seed=0)
    made = make_optimizers(model, CONFIG)
    assert [type(optimizer) for optimizer in made] == kinds
    for optimizer in made:
        (group,) = optimizer.param_groups
        in_layers = {id(p) for n, p in trained(model).items() if "layers." in n}
        muon = isinstance(optimizer, torch.optim.Muon)
        assert all((id(p) in in_layers) == muon for p in group["params"])
    known = {id(p) for o in made for g in o.param_groups for p in g["params"]}
    assert known == {id(p) for p in trained(model).values()}


def test_an_adapter_of_the_head_alone_is_trained(tmp_path):
    run = trainer("decoder", 2, tmp_path, ("head",))
    run.run()
    assert list(matrices(run.model)) == ["head.lora_A.weight", "head.lora_B.weight"]
    assert matrices(run.model)["head.lora_B.weight"].any()
