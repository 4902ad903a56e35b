"""Writer of checkpoint directories: safetensors shards and the config.json of a family."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dllm.errors import LoadError
from dllm.files import write_json
from dllm.models.decoder import Decoder
from dllm.models.families import find_family, read_spec
from dllm.models.lora import is_adapted
from dllm.models.stored import CONFIG, INDEX, SINGLE
from dllm.tensors import write_tensors

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def write_checkpoint(
    decoder: Decoder,
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    shards: int = 1,
    stored: torch.dtype | None = None,
) -> None:
    """Write `decoder` as a checkpoint directory of its family, which `load_model` reads back.

    `config` is the content of config.json; it must describe this decoder (LoadError otherwise) and
    gets its dtype, which is that of the weights in the files too unless `stored` is given. Every
    file appears whole or not at all, config.json last, so that an interrupted write over an older
    checkpoint of the same shape never leaves a broken file.
    """
    folder = Path(path)
    spec = read_spec(config, "config")
    if spec != decoder.spec:
        raise LoadError(f"config describes {spec}, but the decoder is {decoder.spec}")
    if is_adapted(decoder):
        raise LoadError("an adapter is attached to the decoder: merge it first, or save_adapter")
    folder.mkdir(parents=True, exist_ok=True)
    family = find_family(config, "config")
    tensors = {
        family.tensor_name(name): p.detach().to("cpu", stored or decoder.dtype).contiguous()
        for name, p in decoder.named_parameters()
    }
    parts = _split(tensors, shards)
    names = (
        [SINGLE]
        if shards == 1
        else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    )
    for name, part in zip(names, parts, strict=True):
        write_tensors(folder / name, part, {"format": "pt"})
    if shards > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {tensor: name for name, part in zip(names, parts) for tensor in part}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / INDEX, index, indent=2)
    for old in folder.iterdir():  # of an earlier write with another number of shards
        stale = old.name in (SINGLE, INDEX) or SHARD.fullmatch(old.name)
        if stale and old.name not in names and not (old.name == INDEX and shards > 1):
            old.unlink()
    dtype = str(decoder.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, {**config, "dtype": dtype}, indent=2)


def _split(tensors: dict[str, torch.Tensor], shards: int) -> list[dict[str, torch.Tensor]]:
    """Consecutive tensors in `shards` non-empty groups of nearly equal count."""
    if not 1 <= shards <= len(tensors):
        raise LoadError(f"shards={shards}, expected 1 to {len(tensors)} (the number of tensors)")
    names, bounds = list(tensors), [len(tensors) * i // shards for i in range(shards + 1)]
    return [{n: tensors[n] for n in names[a:b]} for a, b in pairwise(bounds)]
