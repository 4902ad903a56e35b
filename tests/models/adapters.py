"""Adapter directories for tests: made, changed, and the one error that loading one gives."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dllm.cache.plan import ForwardPlan
from dllm.errors import LoadError
from dllm.models.adapter import save_adapter
from dllm.models.loading import load_model
from dllm.models.lora import Lora, attach, attached
from tests.models.checkpoints import VOCAB, make

PLAN = ForwardPlan.full(6)
IDS = torch.arange(6)[None] * 11 % VOCAB
LORA = Lora(2, 3.0)


def logits(model):
    with torch.no_grad():
        return model(IDS, PLAN)


def adapted(base, lora=LORA, dtype="float32", config=None):
    """The checkpoint in `base` with a random adapter."""
    model = load_model(base, dtype=dtype, device="cpu", config=config)
    attach(model, lora, seed=0)
    generator = torch.Generator().manual_seed(9)
    for layer in attached(model).values():
        layer.lora_B.data.normal_(std=0.3, generator=generator)
    return model


def save(folder, family="llada", lora=LORA):
    """An adapter in folder/adapter on a checkpoint in folder/base."""
    make(folder / "base", family)
    model = adapted(folder / "base", lora)
    save_adapter(model, folder / "adapter", folder / "base")
    return model


def error(folder, load=load_model, **options):
    with pytest.raises(LoadError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder, **changes):
    """Change keys of adapter.json; None takes a key away."""
    content = json.loads((folder / "adapter.json").read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "adapter.json").write_text(json.dumps(content))


def replace(folder, tensors, **changes):
    """Other tensors (and metadata) in adapter.safetensors, with the digest to go with them."""
    file = folder / "adapter.safetensors"
    with safe_open(file, framework="pt") as old:
        metadata = {**old.metadata(), **changes}
    save_file(tensors, file, metadata)
    rewrite(folder, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
