"""The files of a checkpoint directory: its JSON, its safetensors shards and what their headers say.

Nothing but a regular file is opened, what is read is bounded, and no pickle is ever opened. A file
that is not what it should be is a LoadError that names it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dllm import files
from dllm.errors import LoadError
from dllm.files import FileError
from dllm.tensors import check_file, opened

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # in the directory of an adapter, which has no CONFIG
OLD_ADAPTER = "adapter.json"  # the same, as we wrote it before peft
NOT_WHOLE = "is an adapter; expected a whole checkpoint (write_checkpoint: of the merged model)"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Stored(NamedTuple):
    """A tensor in a shard: where its bytes begin and end in the file, and what they are."""

    shard: Path
    begin: int
    end: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def kind(self) -> torch.dtype:
        """Its dtype; LoadError where it is none of the plain ones."""
        if self.dtype not in STORED:
            raise LoadError(f"{self.shard}: has a tensor stored as {self.dtype}")
        return STORED[self.dtype]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; LoadError if there is no such file or it holds anything else."""
    if not file.exists():
        if file.name == CONFIG and is_adapter(file.parent):
            raise LoadError(f"{file.parent} {NOT_WHOLE}")
        raise LoadError(f"{file}: no such file; a checkpoint directory has one")
    check_file(file, error=LoadError)
    try:
        content = files.read_json(file)
    except FileError as error:
        raise LoadError(str(error)) from error
    if not isinstance(content, dict):
        raise LoadError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter instead of a checkpoint."""
    return (folder / ADAPTER).is_file() or (folder / OLD_ADAPTER).is_file()


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; LoadError where there are none, or only pickles."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise LoadError(f"{folder / INDEX}: expected a non-empty object 'weight_map'")
        for name in names.values():
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


def survey(shard: Path) -> dict[str, Stored]:
    """The tensors of a shard, by name, from its header; LoadError where that is not right."""
    # the library has checked the header: no gap, no overlap, nothing outside the file
    with opened(shard, error=LoadError), shard.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(size), object_pairs_hook=partial(_unique, shard))
    about.pop("__metadata__", None)
    return {
        name: Stored(
            shard,
            8 + size + tensor["data_offsets"][0],
            8 + size + tensor["data_offsets"][1],
            tuple(tensor["shape"]),
            tensor["dtype"],
        )
        for name, tensor in about.items()
    }


def _unique(shard: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise LoadError(f"{shard}: corrupt shard (its header has a name twice)")
    return found
