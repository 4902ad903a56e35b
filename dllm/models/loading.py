"""From a name or a directory to a `Decoder` with its weights, and back: safetensors only.

No pickle is ever opened and no code of a checkpoint is ever run. Weights are streamed one tensor at
a time, after names and shapes of all shards have been compared with what config.json asks for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dllm.errors import LoadError
from dllm.models.decoder import Decoder
from dllm.models.families import find_family, read_spec
from dllm.models.lora import LoraLinear, merge

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter.json"  # in the directory of an adapter, which has no CONFIG
NOT_WHOLE = "is an adapter; expected a whole checkpoint (write_checkpoint: of the merged model)"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
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


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; LoadError if there is no such file or it holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file.name == CONFIG and (file.parent / ADAPTER).is_file():
            raise LoadError(f"{file.parent} {NOT_WHOLE}") from None
        raise LoadError(f"{file}: no such file; a checkpoint directory has one") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise LoadError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


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
    becomes float32 on the CPU, where it is slow. device "auto" is cuda if there is one, else cpu.
    Raises LoadError naming the file for whatever does not fit, before the first weight is read.
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
    with torch.device("meta"):
        decoder = Decoder(spec)
    wanted = {  # a tied head is one parameter, listed once, as the embedding
        family.tensor_name(name): (name, tuple(p.shape)) for name, p in decoder.named_parameters()
    }
    tied = {family.tensor_name("head.weight")} if spec.tie_head else set()
    found = _survey(folder, {name: shape for name, (_, shape) in wanted.items()}, tied)
    place = pick_device(device)
    kind = pick_dtype(dtype, config, found[family.tensor_name("embed.weight")].dtype, place)
    for shard in sorted({tensor.shard for tensor in found.values()}):
        with opened(shard) as file:
            for name in (n for n, tensor in found.items() if tensor.shard == shard):
                # copied: a view of the mapped file would change or crash with the file
                weight = file.get_tensor(name).to(place, kind, copy=True)
                module, _, leaf = wanted[name][0].rpartition(".")
                setattr(decoder.get_submodule(module), leaf, nn.Parameter(weight))
    if spec.tie_head:
        decoder.head.weight = decoder.embed.weight
    return decoder.eval()


class _Stored(NamedTuple):
    shard: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def _survey(
    folder: Path, wanted: Mapping[str, tuple[int, ...]], tied: set[str]
) -> dict[str, _Stored]:
    """Where each wanted tensor is, read from the shards' headers; LoadError unless all fit."""
    found: dict[str, _Stored] = {}
    unexpected = []
    for shard in shard_files(folder):
        with opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
                if name not in wanted:
                    if name not in tied and not name.endswith("inv_freq"):  # recomputed by us
                        unexpected.append(name)
                    continue
                if name in found:
                    raise LoadError(f"{shard}: tensor {name!r} is also in {found[name].shard.name}")
                part = file.get_slice(name)
                shape, stored = tuple(part.get_shape()), part.get_dtype()
                if shape != wanted[name]:
                    raise LoadError(
                        f"{shard}: tensor {name!r} has shape {list(shape)}, but {CONFIG} asks for "
                        f"{list(wanted[name])}"
                    )
                if stored not in STORED:
                    raise LoadError(
                        f"{shard}: tensor {name!r} is stored as {stored}; expected one of "
                        f"{', '.join(STORED)} (quantised checkpoints are not supported)"
                    )
                found[name] = _Stored(shard, shape, STORED[stored])
    missing = [name for name in wanted if name not in found]
    if missing or unexpected:
        lists = [listed("missing", missing), listed("unexpected", unexpected)]
        raise LoadError(f"{folder}: tensors do not fit {CONFIG}: {'; '.join(filter(None, lists))}")
    return found


def listed(what: str, names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what}: {', '.join(names[:most])}{more}" if names else ""


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; LoadError where there are none, or only pickles."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise LoadError(f"{folder / INDEX}: expected a non-empty object 'weight_map'")
        for name in set(names.values()):
            if not isinstance(name, str) or Path(name).name != name:  # must not leave the folder
                raise LoadError(f"{folder / INDEX}: {name!r} is not a file name")
        return [folder / name for name in sorted(set(names.values()))]
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise LoadError(
            f"{folder}: only pickled weights ({', '.join(pickles[:3])}), which can run code and "
            "are never opened; convert them to safetensors"
        )
    raise LoadError(f"{folder}: no weights; expected {SINGLE}, or {INDEX} with its shards")


@contextmanager
def opened(shard: Path) -> Iterator[Any]:
    """The open safetensors file; a missing, truncated or corrupt one is a LoadError naming it."""
    try:
        with safe_open(shard, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{shard}: missing, truncated or corrupt shard ({error})") from error


def pick_device(device: str | torch.device) -> torch.device:
    """The device meant by a user's `device`; "auto" is cuda if there is one, else cpu."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise LoadError(
            f"device {device!r} is unknown; expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
        ) from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise LoadError(f"device {device!r}: this machine has {torch.cuda.device_count()} of them")
    return chosen


def pick_dtype(
    dtype: str | torch.dtype, config: Mapping[str, Any], stored: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype meant by a user's `dtype`; `stored` is what the checkpoint's tensors have."""

    def known(value: object, where: str) -> torch.dtype:
        chosen = DTYPES.get(value) if isinstance(value, str) else value
        if isinstance(chosen, torch.dtype) and chosen in DTYPES.values():
            return chosen
        raise LoadError(f"{where} {value!r} is unknown; expected auto, {', '.join(DTYPES)}")

    if dtype != "auto":
        return known(dtype, "dtype")
    named = config.get("dtype") or config.get("torch_dtype")
    own = known(str(named).removeprefix("torch."), f"{CONFIG}: dtype") if named else stored
    return torch.float32 if own == torch.float16 and device.type == "cpu" else own


def write_checkpoint(
    decoder: Decoder, path: str | os.PathLike[str], config: Mapping[str, Any], shards: int = 1
) -> None:
    """Write `decoder` as a checkpoint directory of its family, which `load_model` reads back.

    `config` is the content of config.json; it must describe this decoder (LoadError otherwise) and
    gets its dtype. Every file appears whole or not at all, config.json last, so that an
    interrupted write over an older checkpoint of the same shape never leaves a broken file.
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
        family.tensor_name(name): p.detach().cpu().contiguous()
        for name, p in decoder.named_parameters()
    }
    parts = _split(tensors, shards)
    names = (
        [SINGLE]
        if shards == 1
        else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    )
    for name, part in zip(names, parts, strict=True):
        replace_file(folder / name, partial(save_file, part, metadata={"format": "pt"}))
    if shards > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {tensor: name for name, part in zip(names, parts) for tensor in part}
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    for old in folder.iterdir():  # of an earlier write with another number of shards
        stale = old.name in (SINGLE, INDEX) or SHARD.fullmatch(old.name)
        if stale and old.name not in names and not (old.name == INDEX and shards > 1):
            old.unlink()
    write_json(folder / CONFIG, {**config, "dtype": str(decoder.dtype).removeprefix("torch.")})


def _split(tensors: dict[str, torch.Tensor], shards: int) -> list[dict[str, torch.Tensor]]:
    """Consecutive tensors in `shards` non-empty groups of nearly equal count."""
    if not 1 <= shards <= len(tensors):
        raise LoadError(f"shards={shards}, expected 1 to {len(tensors)} (the number of tensors)")
    names, bounds = list(tensors), [len(tensors) * i // shards for i in range(shards + 1)]
    return [{n: tensors[n] for n in names[a:b]} for a, b in pairwise(bounds)]


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace_file(file, lambda temp: temp.write_text(text, encoding="utf-8"))


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `file`, then move it into place in one step."""
    temp = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(temp)
        temp.chmod(0o644)  # safetensors writes for the owner only
        os.replace(temp, file)
    finally:
        temp.unlink(missing_ok=True)
