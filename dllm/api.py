"""`dllm.load`: from a name to an engine."""

from __future__ import annotations

import os

import torch

from dllm.engine import Engine
from dllm.models.hub import resolve
from dllm.models.loading import load_model
from dllm.presets import TUNED, read_preset
from dllm.text.tokenizer import has_tokenizer, load_text


def load(
    id_or_dir: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
) -> Engine:
    """An engine from "tiny" (bundled), a directory, or a hub id.

    dtype: "auto" takes the checkpoint's (bfloat16 for float16 on a CPU), or "float32", "bfloat16",
    "float16". device: "auto" takes CUDA where there is one. No remote code is run. A checkpoint
    without a tokenizer takes prompts of token ids only.
    Raises LoadError naming the file, tensor or key at fault.
    """
    path = resolve(id_or_dir, revision)
    model = load_model(path, dtype=dtype, device=device)
    tuned = read_preset(path / TUNED) if (path / TUNED).exists() else None
    text = load_text(path, model.spec) if has_tokenizer(path) else None
    return Engine(model, text, tuned)
