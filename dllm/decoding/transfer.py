"""The two copies of a step: what the host decided goes down in one, the result comes up in one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dllm.decoding.canvas import Array


def send(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """The arrays (int64 or bool) as tensors on the device, in one copy."""
    flat = [_words(array) for array in arrays.values()]
    buffer = torch.from_numpy(np.concatenate(flat))
    if device.type == "cuda":
        buffer = buffer.pin_memory()
    pieces = torch.split(buffer.to(device, non_blocking=True), [len(words) for words in flat])
    return {
        name: _shaped(piece, array)
        for (name, array), piece in zip(arrays.items(), pieces, strict=True)
    }


def receive(tensor: Tensor) -> Array:
    """A tensor as an array on the host; the one place where a step waits for the device."""
    array: Array = tensor.cpu().numpy()
    return array


def _words(array: Array) -> Array:
    """The array as 64-bit words, bools eight to each."""
    if array.dtype != np.bool_:
        return array.reshape(-1).view(np.int64)
    words = np.zeros(-(-array.size // 8), dtype=np.int64)
    words.view(np.bool_)[: array.size] = array.reshape(-1)
    return words


def _shaped(piece: Tensor, like: Array) -> Tensor:
    if like.dtype == np.bool_:
        return piece.view(torch.bool)[: math.prod(like.shape)].view(like.shape)
    return piece.view(like.shape)
