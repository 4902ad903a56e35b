"""Weights read from shards: every byte once, in the order of the files, into its place.

A mapped file is read by page faults, a little at a time and several times slower than the disk.
Reading straight into the weights needs no second copy of them either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from itertools import groupby

import torch
from torch import Tensor

from dllm.errors import LoadError
from dllm.models.stored import Stored

CHUNK = 2**24  # bytes read at a time
AHEAD = 2**28  # bytes that the system is asked to have read before they are needed
Told = Callable[[int], object]  # gets the number of bytes just read


def read_weights(
    stored: Mapping[str, Stored], dtype: torch.dtype, device: torch.device, told: Told
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `stored`, by name, in `dtype` and on `device`, in the order of the files.

    LoadError if a file ends early or memory does.
    """
    staging = torch.empty(CHUNK, dtype=torch.uint8, pin_memory=device.type == "cuda")
    ordered = sorted(stored.items(), key=lambda item: (item[1].shard, item[1].begin))
    for shard, group in groupby(ordered, key=lambda item: item[1].shard):
        with shard.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            for name, tensor in group:
                try:
                    weight = torch.empty(tensor.shape, dtype=dtype, device=device)
                    _fill(weight, file, tensor, staging, told)
                except (RuntimeError, MemoryError) as error:  # torch's allocators
                    reason = str(error).partition("\n")[0]
                    raise LoadError(f"{shard}: no memory for {name!r} ({reason})") from error
                except OSError as error:
                    raise LoadError(f"{shard}: {error.strerror or error}") from error
                yield name, weight


def _fill(weight: Tensor, file: FileIO, tensor: Stored, staging: Tensor, told: Told) -> None:
    file.seek(tensor.begin)
    flat = weight.view(-1)
    straight = weight.device.type == "cpu" and weight.dtype == tensor.kind
    size = tensor.kind.itemsize
    for begin in range(0, tensor.end - tensor.begin, CHUNK):
        n = min(CHUNK, tensor.end - tensor.begin - begin)
        part = flat[begin // size : (begin + n) // size]
        raw = part.view(torch.uint8) if straight else staging[:n]
        _read(file, raw.numpy().data, tensor)
        if not straight:
            part.copy_(raw.view(tensor.kind))
        told(n)


def _read(file: FileIO, space: memoryview, tensor: Stored) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), file.tell() + AHEAD, CHUNK, os.POSIX_FADV_WILLNEED)
    done = 0
    while done < len(space):
        n = file.readinto(space[done:])
        if not n:
            raise LoadError(f"{tensor.shard}: was cut short while it was read")
        done += n
