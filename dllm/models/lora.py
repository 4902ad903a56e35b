"""LoRA by peft: low-rank changes of linear layers beside frozen weights (arXiv 2106.09685).

Works on any tree of modules, transformers' models too. Knows no file: see adapter.py. peft is an
extra (`dllm-engine[peft]`), imported where an adapter is attached or read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from dllm.checks import LARGEST, ConfigError, check_number, check_whole
from dllm.errors import DllmError

IN_A_LAYER = re.compile(r"(^|\.)\d+\.")  # "layers.0.attn.q" and "model.layers.0.mlp.up_proj"
NAME = "default"  # peft's for an adapter that is alone


@dataclass(frozen=True, slots=True)
class Lora:
    """W becomes W + alpha / rank * B @ A, A of `rank` rows (arXiv 2106.09685, section 4.1).

    targets: module names or their ends ("q", "attn.q", "layers.0.attn.q"); () stands for all linear
    layers of attention and MLP.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 1)
        check_number("alpha", self.alpha, -inf, LARGEST)
        if self.alpha <= 0:
            raise ConfigError(f"alpha={self.alpha!r}: expected a number above 0")
        named = isinstance(self.targets, tuple)
        if not named or not all(isinstance(name, str) and name for name in self.targets):
            raise ConfigError(f"targets={self.targets!r}: expected a tuple of module names")


def peft() -> Any:
    """The library; DllmError where it is not installed."""
    try:
        import peft as library
    except ImportError as error:
        raise DllmError(
            f"adapters need peft, which cannot be imported ({error}): "
            "pip install 'dllm-engine[peft]'"
        ) from error
    return library


def attach(model: nn.Module, lora: Lora, seed: int) -> None:
    """Give the chosen `nn.Linear`s of `model` a change of zero, and freeze all other parameters.

    No weight is copied; `seed` draws every A. The matrices are at least fp32, whatever the base is.
    DllmError for a target that names no linear layer, for one that shares its weight (a tied head),
    or if an adapter is attached.
    """
    if is_adapted(model):
        raise DllmError("an adapter is attached to this model already: merge it first")
    names = _chosen(model, lora.targets)
    _refuse_shared(model, names)
    config = peft().LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU, wherever the base is
        torch.manual_seed(seed)
        peft().inject_adapter_in_model(config, model, NAME)
    for matrix in matrices(model).values():  # small steps would round away, in a dtype of 16 bits
        matrix.data = matrix.data.to(torch.promote_types(matrix.dtype, torch.float32))


def is_adapted(model: nn.Module) -> bool:
    """Whether an adapter is attached."""
    return hasattr(model, "peft_config")


def lora_config(model: nn.Module) -> Any:
    """peft's `LoraConfig` of the attached adapter; DllmError where there is none."""
    if not is_adapted(model):
        raise DllmError(f"no adapter is attached to this {type(model).__name__}: see attach")
    return model.peft_config[NAME]  # type: ignore[index]


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The attached matrices by module, "lora_A" or "lora_B" and "weight": names that peft saves."""
    parameters = model.named_parameters()
    return {name.replace(f".{NAME}.", "."): p for name, p in parameters if ".lora_" in name}


def merge(model: nn.Module) -> None:
    """Add the changes to the weights, in place, and leave a plain model, trainable as a whole.

    Summed in the matrices' dtype and rounded once. DllmError without an adapter.
    """
    lora_config(model)
    with torch.no_grad():
        for name, layer in list(model.named_modules()):
            if hasattr(layer, "lora_A"):
                layer.merge()
                model.set_submodule(name, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)


def _chosen(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that `targets` mean, in the model's order; see `attach`."""
    # a subclass computes something else with its weight, or lets others read it
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    matches = {t: {n for n in linear if n == t or n.endswith(f".{t}")} for t in targets}
    if not targets:
        matches = {"()": {name for name in linear if IN_A_LAYER.search(name)}}
    for target, found in matches.items():
        if not found:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear)) or "none"
            raise DllmError(f"target {target!r} names no linear layer; this model's: {known}")
    return [name for name in linear if any(name in found for found in matches.values())]


def _refuse_shared(model: nn.Module, names: Sequence[str]) -> None:
    owners: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    for name in names:
        one, *others = owners[model.get_parameter(f"{name}.weight")]
        if others:
            raise DllmError(
                f"target {name!r}: {one} and {others[0]} are one tensor; expected layers with a "
                "weight of their own"
            )
