"""Adapters as peft's directories: saved, and put together with the base that they belong to.

adapter_config.json and adapter_model.safetensors are peft's, by the names of our modules. What peft
has no place for is in the metadata of the matrices: the base's fingerprint, and the config.json of
a base that is read as another model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dllm.errors import DllmError, LoadError
from dllm.files import to_json, write_json
from dllm.models.adapter_files import MATRICES, Adapter, base_folder, read_adapter, whole
from dllm.models.checkpoint_reader import listed, read_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.families import FAMILIES, read_spec
from dllm.models.fingerprint import fingerprint_stored, sample, stored_samples
from dllm.models.hub import BUNDLED, resolve
from dllm.models.lora import Lora, attach, lora_config, matrices
from dllm.models.stored import ADAPTER, CONFIG, OLD_ADAPTER, STORED, read_json
from dllm.tensors import opened, write_tensors

PREFIX = "base_model.model."  # peft's
KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_[AB])(?:\.weight)?")


def save_adapter(
    model: Decoder,
    path: str | os.PathLike[str],
    base: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapter attached to `model` as a directory that `load_model` and peft read.

    base, config: where `model` was loaded from, as given to `resolve` and `load_model`. LoadError
    if they describe another network, or if the first values of a weight outside the adapter are not
    the base's. Each file appears whole or not at all.
    """
    folder, source = Path(path), whole(resolve(base), "base")
    for other in (CONFIG, OLD_ADAPTER):
        if (folder / other).exists():
            raise LoadError(f"{folder}: has a {other}; expected a directory of the adapter's own")
    spec = read_spec(read_json(source / CONFIG) if config is None else config, f"base {base!s}")
    if spec != model.spec:
        raise LoadError(f"base {base!s} is {spec}, but the model is {model.spec}: give its config")
    lora = lora_config(model)
    about = {"format": "pt", "rank": str(lora.r), "alpha": str(lora.lora_alpha)}
    about["fingerprint"] = _check_base(model, source)
    if config is not None:
        about["config"] = to_json(config)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{n}": p.detach().cpu().contiguous() for n, p in matrices(model).items()}
    write_tensors(folder / MATRICES, tensors, about)
    said = {**lora.to_dict(), "base_model_name_or_path": _name(base, folder)}
    said = {key: sorted(v) if isinstance(v, set) else v for key, v in said.items()}
    write_json(folder / ADAPTER, said, indent=2)


def load_adapter(
    path: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    config: Mapping[str, Any] | None = None,
) -> Decoder:
    """The base of the adapter directory `path` with the adapter attached (`load_model` merges it).

    The arguments are `load_model`'s; config takes the place of the adapter's. Raises LoadError
    naming the file for whatever does not fit.
    """
    folder = Path(path)
    adapter = read_adapter(folder)
    source = base_folder(folder, adapter.base)
    found = fingerprint_stored(stored_samples(source))
    if adapter.fingerprint not in (None, found):
        raise LoadError(
            f"{folder}: made for the base {adapter.base!r} of fingerprint "
            f"{str(adapter.fingerprint)[:12]}, but {source} has {found[:12]}: other weights"
        )
    model = read_checkpoint(source, dtype, device, adapter.config if config is None else config)
    places = _places(model, adapter)  # checked before anything of the adapter's size is made
    modules = tuple(dict.fromkeys(name.rpartition(".lora_")[0] for name in places))
    try:
        attach(model, Lora(adapter.lora.rank, adapter.lora.alpha, modules), seed=0)
    except DllmError as error:
        raise LoadError(f"{folder}: {error}") from error
    with torch.no_grad(), opened(adapter.file, error=LoadError) as stored:
        for name, matrix in matrices(model).items():
            matrix.copy_(stored.get_tensor(places[name]))
    return model


def _places(model: Decoder, adapter: Adapter) -> dict[str, str]:
    """The tensor in the adapter's file for each matrix; LoadError unless all fit.

    Modules may have our names or the base's, whole (as peft writes them) or in our old files' form.
    """
    family, file = FAMILIES[model.spec.family], adapter.file
    shapes = {n: m.weight.shape for n, m in model.named_modules() if type(m) is nn.Linear}
    theirs = {n: family.tensor_name(f"{n}.weight").removesuffix(".weight") for n in shapes}
    ours = {name: n for n, other in theirs.items() for name in (n, other)}
    targets = adapter.lora.targets
    said = {n for name, n in ours.items() for t in targets if f".{name}".endswith(f".{t}")}
    with opened(file, error=LoadError) as stored:
        slices = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118
        held = {key: (each.get_shape(), each.get_dtype()) for key, each in slices.items()}
    places, extra = dict[tuple[str, str], str](), []
    for key in held:
        match = KEY.fullmatch(key)
        place = (ours.get(match[1], ""), match[2]) if match else ("", "")
        if not place[0] or place in places or (targets and place[0] not in said):
            extra.append(key)
        else:
            places[place] = key
    modules = said if targets else {module for module, _ in places}
    wanted = [(n, which) for n in shapes if n in modules for which in ("lora_A", "lora_B")]
    missing = [f"{n}.{which}" for n, which in wanted if (n, which) not in places]
    if missing or extra or not wanted:
        told = filter(None, [listed("missing", missing), listed("unexpected", extra)])
        raise LoadError(f"{file}: tensors do not fit: {'; '.join(told) or 'there are none'}")
    for (module, which), key in places.items():
        out, width = shapes[module]
        shape, kind = held[key]
        expected = [adapter.lora.rank, width] if which == "lora_A" else [out, adapter.lora.rank]
        if shape != expected or kind not in STORED:
            raise LoadError(
                f"{file}: tensor {key!r} has shape {shape} of {kind}, expected {expected} of "
                f"{', '.join(STORED)}"
            )
    return {f"{module}.{which}.weight": places[module, which] for module, which in wanted}


def _check_base(model: Decoder, source: Path) -> str:
    """Fingerprint of the checkpoint `source`; LoadError unless the weights of `model` are its."""
    stored, family = stored_samples(source), FAMILIES[model.spec.family]
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        key, values = (
            family.tensor_name(name.replace(".base_layer.", ".")),
            sample(parameter).values,
        )
        if key not in stored or not torch.equal(stored[key].values.to(values.dtype), values):
            raise LoadError(f"{source}: is not the model's base, {key!r} is another tensor there")
    return fingerprint_stored(stored)


def _name(base: str | os.PathLike[str], folder: Path) -> str:
    """`base` as it is found from `folder`: what is relative to here becomes relative to there."""
    name = os.fspath(base)
    path = os.path.expanduser(name)
    if name in BUNDLED or not os.path.isdir(path):
        return name
    if os.path.isabs(path):
        return path
    # of the real places: a step up from a link leads elsewhere
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
