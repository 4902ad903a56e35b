"""The model in a directory, whether that holds a checkpoint or an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dllm.models.adapter import load_adapter
from dllm.models.checkpoint_reader import read_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.lora import merge
from dllm.models.stored import is_adapter


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
    if not is_adapter(folder):
        return read_checkpoint(folder, dtype, device, config)
    decoder = load_adapter(folder, dtype, device, config)
    merge(decoder)
    return decoder
