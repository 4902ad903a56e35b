"""From a name or a directory to a `Decoder` with its weights, and back: safetensors only.

No pickle is ever opened and no code of a checkpoint is ever run. Weights are read one tensor at a
time, after names and shapes of all shards have been compared with what config.json asks for.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dllm.errors import LoadError
from dllm.files import write_json
from dllm.models.decoder import Decoder
from dllm.models.devices import check_memory, pick_device, pick_dtype
from dllm.models.families import Family, find_family, read_spec
from dllm.models.lora import LoraLinear, merge
from dllm.models.progress import bar
from dllm.models.reading import read_weights
from dllm.models.refusals import QUANTISED, why_other
from dllm.models.spec import ModelSpec
from dllm.models.stored import (
    ADAPTER,
    CONFIG,
    INDEX,
    SINGLE,
    STORED,
    Stored,
    read_json,
    save_tensors,
    shard_files,
    survey,
)

BUNDLED = ("tiny", "tiny-sure", "tiny-ar")  # the last is an AR target: see dllm.verify
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "*.model", "*.jinja"]


def resolve(id_or_dir: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Directory of a checkpoint: a bundled model ("tiny"), a directory, or a hub id "owner/name".

    A hub id is downloaded (or found in the local hub cache): configuration, safetensors and
    tokenizer files, never code. Raises LoadError when the name is none of the three or the hub
    cannot serve it.
    """
    name = os.fspath(id_or_dir)
    path = os.path.expanduser(name)
    if name in BUNDLED or os.path.isdir(path):
        if revision is not None:
            raise LoadError(f"revision {revision!r} given, but {name!r} is not a hub id")
        return _bundled(name) if name in BUNDLED else Path(path)
    if os.path.isfile(path):
        raise LoadError(f"{name!r} is a file; expected the directory that holds {CONFIG}")
    if not HUB_ID.fullmatch(name):
        raise LoadError(
            f"no model {name!r}: expected a bundled model ({', '.join(BUNDLED)}), an existing "
            "directory, or a hub id like 'GSAI-ML/LLaDA-8B-Instruct'"
        )
    return _download(name, revision)


def _bundled(name: str) -> Path:
    path = Path(str(resources.files("dllm"))) / "assets" / name
    if not path.is_dir():
        raise LoadError(f"the bundled model {name!r} is missing from this installation ({path})")
    return path


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    reasons = {
        errors.GatedRepoError: "is gated: accept its terms on the hub, then `hf auth login`",
        errors.RevisionNotFoundError: "has no such revision on the hub",
        errors.RepositoryNotFoundError: "is neither a directory here nor a model on the hub",
        errors.LocalEntryNotFoundError: "is neither a directory here nor in the local hub cache, "
        "and the hub cannot be reached (offline?)",
    }
    try:
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]
        )
    except Exception as error:  # the hub's HTTP client raises classes of its own, by version
        other = f"could not be fetched from the hub: {type(error).__name__}: {error}"
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), other)
        at = f" at revision {revision!r}" if revision else ""
        raise LoadError(f"{hub_id!r}{at} {reason}") from error
    return Path(folder)


def load_model(
    path: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    config: Mapping[str, Any] | None = None,
) -> Decoder:
    """`Decoder` with the weights of the checkpoint directory `path`, in eval mode.

    config: read instead of the directory's config.json.

    The directory of an adapter gives its base with the adapter merged.

    dtype "auto" is the checkpoint's own (config.json, else its tensors), except that float16
    becomes bfloat16 on the CPU, where it is slow. device "auto" is cuda if there is one, else cpu.
    A large checkpoint shows a bar on stderr, if that is a terminal.
    Raises LoadError naming the file for whatever does not fit, memory included, before the first
    weight is read.
    """
    folder = Path(path)
    if (folder / ADAPTER).is_file():
        from dllm.models.adapter import load_adapter  # which reads its base by this function

        decoder = load_adapter(folder, dtype, device, config)
        merge(decoder)
        return decoder
    source = str(folder / CONFIG) if config is None else "config"
    config = read_json(folder / CONFIG) if config is None else config
    spec, family = read_spec(config, source), find_family(config, source)
    place = pick_device(device)
    stored = _survey(folder, spec, family)
    kind = pick_dtype(dtype, config, stored["embed.weight"].kind, place)
    needed = sum(math.prod(tensor.shape) for tensor in stored.values()) * kind.itemsize
    check_memory(needed, kind, place, folder)
    with torch.device("meta"):
        decoder = Decoder(spec)
    total = sum(tensor.end - tensor.begin for tensor in stored.values())
    with bar(folder.name, total) as told:
        for name, weight in read_weights(stored, kind, place, told):
            module, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(module), leaf, nn.Parameter(weight))
    if spec.tie_head:
        decoder.head.weight = decoder.embed.weight
    return decoder.eval()


def parameters(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter of the `Decoder` of `spec`, which is not built.

    All layers are alike. A tied head is one parameter, listed once, as the embedding.
    """
    with torch.device("meta"):
        pattern = Decoder(replace(spec, num_layers=1))
    for name, parameter in pattern.named_parameters():
        for i in range(spec.num_layers if name.startswith("layers.0.") else 1):
            yield name.replace("layers.0.", f"layers.{i}.", 1), tuple(parameter.shape)


def _survey(folder: Path, spec: ModelSpec, family: Family) -> dict[str, Stored]:
    """Where each parameter is, by our name, from the shards' headers; LoadError unless all fit.

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
    if any(isinstance(module, LoraLinear) for module in decoder.modules()):
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
        save_tensors(folder / name, part, {"format": "pt"})
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
