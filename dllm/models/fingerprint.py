"""Fingerprints: digests that tell checkpoints and models apart without reading them whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dllm.errors import LoadError
from dllm.models.stored import shard_files
from dllm.tensors import opened

SOME = 64  # values of each tensor


class TensorSample(NamedTuple):
    """The shape of a tensor and its first values, as they are stored."""

    shape: tuple[int, ...]
    values: Tensor


def fingerprint(model: Any, *more: object) -> str:
    """Hex digest of a model's spec, its dtype and some of each weight, and of `more`.

    A target or a drafter of `dllm.verify` is told apart by the model in it.
    """
    module = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    told: Any = model if hasattr(model, "spec") else module
    found = hashlib.sha256(repr((*more, getattr(told, "spec", None), told.dtype)).encode())
    if isinstance(module, torch.nn.Module):
        for weight in module.parameters():
            found.update(_bytes(sample(weight).values))
    return found.hexdigest()


def sample(tensor: Tensor) -> TensorSample:
    return TensorSample(tuple(tensor.shape), tensor.detach().flatten()[:SOME].cpu())


def stored_samples(folder: Path) -> dict[str, TensorSample]:
    """A sample of every tensor in the checkpoint directory `folder`, by name; LoadError if bad."""
    found = {}
    for shard in shard_files(folder):
        with opened(shard, error=LoadError) as file:
            for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
                shape, values = sample(file.get_tensor(name))  # a view: the rest is not read
                found[name] = TensorSample(shape, values.clone())
    return found


def fingerprint_stored(samples: dict[str, TensorSample]) -> str:
    """Hex digest of a checkpoint's `stored_samples`: names, shapes, dtypes and values.

    It is the same whatever dtype the checkpoint is loaded in and however it is cut into shards.
    """
    found = hashlib.sha256()
    for name, (shape, values) in sorted(samples.items()):
        found.update(repr((name, shape, values.dtype)).encode())
        found.update(_bytes(values))
    return found.hexdigest()


def _bytes(values: Tensor) -> bytes:
    return values.view(torch.uint8).numpy().tobytes()
