"""Adapter directories for tests: made, changed, and the one error that loading one gives."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dllm.cache.plan import ForwardPlan
from dllm.errors import LoadError
from dllm.models.adapter import save_adapter
from dllm.models.adapter_files import MATRICES, OLD_MATRICES
from dllm.models.families import FAMILIES
from dllm.models.fingerprint import fingerprint_stored, stored_samples
from dllm.models.loading import load_model
from dllm.models.lora import Lora, attach, matrices
from dllm.models.stored import ADAPTER, OLD_ADAPTER
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
    for name, matrix in matrices(model).items():
        if ".lora_B." in name:
            matrix.data.normal_(std=0.3, generator=generator)
    return model


def save(folder, family="llada", lora=LORA):
    """An adapter in folder/adapter on a checkpoint in folder/base."""
    make(folder / "base", family)
    model = adapted(folder / "base", lora)
    save_adapter(model, folder / "adapter", folder / "base")
    return model


def save_old(folder, lora=LORA):
    """The same as it was written before peft: two files of our own, by the checkpoint's names."""
    make(folder / "base", "llada")
    model, family = adapted(folder / "base", lora), FAMILIES["llada"]
    (folder / "adapter").mkdir()
    tensors = {
        family.tensor_name(name.removesuffix(".weight")): p.detach().contiguous()
        for name, p in matrices(model).items()
    }
    about = {"format": "dllm-lora-1", "rank": str(lora.rank), "alpha": str(lora.alpha)}
    save_file(tensors, folder / "adapter" / OLD_MATRICES, about)
    said = {"format": "dllm-lora-1", "base": "../base", "sha256": "not read any more"}
    said |= {"fingerprint": fingerprint_stored(stored_samples(folder / "base"))}
    said |= {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
    (folder / "adapter" / OLD_ADAPTER).write_text(json.dumps(said))
    return model


def error(folder, load=load_model, **options):
    with pytest.raises(LoadError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder, name=ADAPTER, **changes):
    """Change keys of adapter_config.json; ... takes a key away."""
    content = json.loads((folder / name).read_text()) | changes
    content = {key: value for key, value in content.items() if value is not ...}
    (folder / name).write_text(json.dumps(content))


def replace(folder, tensors, **changes):
    """Other tensors, and metadata, in adapter_model.safetensors."""
    with safe_open(folder / MATRICES, framework="pt") as old:
        metadata = {**old.metadata(), **changes}
    save_file(tensors, folder / MATRICES, metadata)
