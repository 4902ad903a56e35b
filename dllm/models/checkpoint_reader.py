"""Reader of checkpoint directories: a `Decoder` with their weights, from safetensors only.

No pickle is ever opened and no code of a checkpoint is ever run. Weights are read one tensor at a
time, after names and shapes of all shards have been compared with what config.json asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dllm.errors import LoadError
from dllm.models.decoder import Decoder
from dllm.models.devices import check_memory, pick_device, pick_dtype
from dllm.models.families import Family, find_family, read_spec
from dllm.models.reading import read_weights
from dllm.models.refusals import QUANTISED, why_other
from dllm.models.spec import ModelSpec
from dllm.models.stored import CONFIG, STORED, Stored, read_json, shard_files, survey
from dllm.progress import loading_bar


def read_checkpoint(
    folder: Path,
    dtype: str | torch.dtype,
    device: str | torch.device,
    config: Mapping[str, Any] | None,
) -> Decoder:
    """The checkpoint in `folder`; arguments and errors are those of `load_model`."""
    source = str(folder / CONFIG) if config is None else "config"
    config = read_json(folder / CONFIG) if config is None else config
    spec, family = read_spec(config, source), find_family(config, source)
    place = pick_device(device)
    stored = _survey(folder, spec, family)
    kind = pick_dtype(dtype, config, stored["embed.weight"].kind, place)
    needed = sum(math.prod(tensor.shape) for tensor in stored.values()) * kind.itemsize
    check_memory(needed, kind, place, folder)
    decoder = unfilled(spec)
    total = sum(tensor.end - tensor.begin for tensor in stored.values())
    with loading_bar(folder.name, total) as told:
        for name, weight in read_weights(stored, kind, place, told):
            module, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(module), leaf, nn.Parameter(weight))
    if spec.tie_head:
        decoder.head.weight = decoder.embed.weight
    return decoder.eval()


class _Initialisers(TorchFunctionMode):
    """Those of torch.nn.init do nothing: on meta tensors one of them imports torch._dynamo, a large
    library of which a short run needs nothing.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def unfilled(spec: ModelSpec) -> Decoder:
    """The `Decoder` of `spec` on the meta device: shapes without memory."""
    with torch.device("meta"), _Initialisers():
        return Decoder(spec)


def parameters(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter of the `Decoder` of `spec`, which is not built.

    All layers are alike. A tied head is one parameter, listed once, as the embedding.
    """
    for name, parameter in unfilled(replace(spec, num_layers=1)).named_parameters():
        for i in range(spec.num_layers if name.startswith("layers.0.") else 1):
            yield name.replace("layers.0.", f"layers.{i}.", 1), tuple(parameter.shape)


def _survey(folder: Path, spec: ModelSpec, family: Family) -> dict[str, Stored]:
    """The place of each parameter, by our name, from the shards' headers; LoadError unless all fit.

    Nothing is built before: what config.json asks for may be any size.
    """
    held: dict[str, Stored] = {}
    for shard in shard_files(folder):
        for name, tensor in survey(shard).items():
            if name in held:
                raise LoadError(f"{shard}: tensor {name!r} is also in {held[name].shard.name}")
            held[name] = tensor
    if spec.num_layers > len(held):
        raise LoadError(
            f"{folder}: {CONFIG} asks for {spec.num_layers} layers, but there are only {len(held)} "
            "tensors"
        )
    wanted = {family.tensor_name(name): (name, shape) for name, shape in parameters(spec)}
    tied = {family.tensor_name("head.weight")} if spec.tie_head else set()
    extra = [n for n in held.keys() - wanted.keys() - tied if not n.endswith("inv_freq")]  # ours
    if extra or not wanted.keys() <= held.keys():
        raise LoadError(f"{folder}: {_difference(wanted.keys(), held.keys(), sorted(extra))}")
    for name, (_, shape) in wanted.items():
        tensor = held[name]
        if tensor.shape != shape:
            raise LoadError(
                f"{tensor.shard}: tensor {name!r} has shape {list(tensor.shape)}, but {CONFIG} "
                f"asks for {list(shape)}"
            )
        if tensor.dtype not in STORED:
            raise LoadError(
                f"{tensor.shard}: tensor {name!r} is stored as {tensor.dtype}, not one of "
                f"{', '.join(STORED)}: {QUANTISED}"
            )
    return {ours: held[name] for name, (ours, _) in wanted.items()}


def _difference(wanted: Iterable[str], held: Iterable[str], extra: list[str]) -> str:
    present = set(held)
    missing = [name for name in wanted if name not in present]
    told = "; ".join(filter(None, [listed("missing", missing), listed("unexpected", extra)]))
    reason = why_other(extra)
    return f"tensors do not fit {CONFIG}: {told}{f' ({reason})' if reason else ''}"


def listed(what: str, names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what}: {', '.join(names[:most])}{more}" if names else ""
