"""The state of a training run on disk: weights, optimizer moments and step in one safetensors file.

One rename switches all of a step: a run that is killed has one whole state, the old or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm.errors import DllmError
from dllm.files import FileError, parse_json
from dllm.tensors import opened, write_tensors

FILE = "state.safetensors"
FORMAT = "dllm-training-1"
# what an optimizer keeps for each parameter
MOMENTS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.Muon: {"momentum_buffer"},
}


def save_state(
    folder: Path,
    weights: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    state: Mapping[str, Any],
) -> None:
    """Write what is trained and the moments; `state` is JSON and has the "step"."""
    tensors = {f"model.{name}": weight.detach().contiguous() for name, weight in weights.items()}
    for i, opt in enumerate(optimizers):
        for j, moments in opt.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": t.contiguous() for key, t in moments.items()}
    metadata = {"format": FORMAT, "state": json.dumps(dict(state))}
    write_tensors(folder / FILE, tensors, metadata)


def load_state(
    folder: Path, weights: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> int:
    """Fill weights and optimizers with what `save_state` wrote; the step.

    DllmError, with nothing filled, for a file that is broken or of another model.
    """
    path = folder / FILE
    try:
        with opened(path) as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileError as error:
        raise broken(path, str(error)) from error
    if metadata.get("format") != FORMAT:
        raise broken(path, f"expected a file of {FORMAT}")
    state = parse_json(metadata.get("state", ""), str(path))
    step = state.get("step") if isinstance(state, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise broken(path, f"its step is {step!r}")
    moments = moments_of(path, tensors, optimizers)
    stored = {key.removeprefix("model."): t for key, t in tensors.items() if key[:6] == "model."}
    for name in sorted({*stored, *weights}):
        if name not in stored or name not in weights:
            raise broken(path, f"{name!r} is in one of file and model only")
        same_kind(path, name, stored[name], weights[name])
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])
    for opt, each in zip(optimizers, moments, strict=True):
        opt.load_state_dict({**opt.state_dict(), "state": each})
    return step


def moments_of(
    path: Path, tensors: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> list[dict[int, dict[str, Tensor]]]:
    """The moments of every optimizer by the number of the parameter, each fit for it."""
    found: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    owners = [[p for group in opt.param_groups for p in group["params"]] for opt in optimizers]
    known = {f"{i}.{j}": (i, j) for i, of in enumerate(owners) for j in range(len(of))}
    for key, tensor in tensors.items():
        if key.startswith("model."):
            continue
        place, _, name = key.removeprefix("optimizer.").rpartition(".")
        if not key.startswith("optimizer.") or place not in known:
            raise broken(path, f"{key!r} belongs to no parameter")
        i, j = known[place]
        if tensor.ndim:
            same_kind(path, key, tensor, owners[i][j])
        found[i].setdefault(j, {})[name] = tensor
    for opt, each in zip(optimizers, found, strict=True):
        for moments in each.values():
            if moments.keys() != MOMENTS[type(opt)]:
                raise broken(path, f"{type(opt).__name__} cannot go on with {sorted(moments)}")
    return found


def same_kind(path: Path, name: str, tensor: Tensor, like: Tensor) -> None:
    if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
        raise broken(
            path,
            f"{name!r} is {tensor.dtype} {list(tensor.shape)}, expected {like.dtype} "
            f"{list(like.shape)}",
        )


def broken(path: Path, reason: str) -> DllmError:
    return DllmError(f"{path}: not the state of this run ({reason}): delete it to start anew")
