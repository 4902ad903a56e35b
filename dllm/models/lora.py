"""LoRA: low-rank changes of linear layers, trained beside frozen weights (arXiv 2106.09685).

Works on any tree of modules, transformers' models too. Knows no file: see adapter.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.options import ConfigError, Number, check_numbers

IN_A_LAYER = re.compile(r"(^|\.)\d+\.")  # "layers.0.attn.q" and "model.layers.0.mlp.up_proj"


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
        check_numbers(self, {"rank": Number(Integral, 1), "alpha": Number(Real, -inf)})
        if self.alpha <= 0:
            raise ConfigError(f"alpha={self.alpha!r}: expected a number above 0")
        named = isinstance(self.targets, tuple)
        if not named or not all(isinstance(name, str) and name for name in self.targets):
            raise ConfigError(f"targets={self.targets!r}: expected a tuple of module names")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Linear):
    """x [..., in] -> base(x) + scale * x A^T B^T [..., out], the base's parameters its own.

    lora_A [rank, in] and lora_B [out, rank] are at least fp32, whatever the base is; they compute
    in the dtype of x, or in autocast's.
    """

    def __init__(self, base: nn.Linear, lora: Lora, generator: torch.Generator) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora, self.enabled, self.training = lora, True, base.training
        # drawn on the CPU in fp32: the same values wherever the base is
        a = torch.randn(lora.rank, base.in_features, dtype=torch.float32, generator=generator)
        a, b = a * base.in_features**-0.5, torch.zeros(base.out_features, lora.rank)
        place, kind = base.weight.device, _wide(base.weight)
        self.lora_A = nn.Parameter(a.to(place, kind))
        self.lora_B = nn.Parameter(b.to(place, kind))

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        if not self.enabled:
            return out
        a, b = self.lora_A.to(input.dtype), self.lora_B.to(input.dtype)
        return out + self.lora.scale * F.linear(F.linear(input, a), b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer on the same weight tensor, which now has the change in it."""
        bias, kind = self.bias is not None, _wide(self.weight)
        plain = nn.Linear(self.in_features, self.out_features, bias, device="meta")
        plain.weight, plain.bias, plain.training = self.weight, self.bias, self.training
        a, b = self.lora_A.to(kind), self.lora_B.to(kind)
        self.weight.copy_(torch.addmm(self.weight.to(kind), b, a, alpha=self.lora.scale))
        return plain


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def attach(model: nn.Module, lora: Lora, seed: int) -> None:
    """Give the chosen `nn.Linear`s of `model` a change of zero, and freeze all other parameters.

    No weight is copied or renamed; `seed` draws every A. DllmError for a target that names no
    linear layer, for one that shares its weight (a tied head), or if an adapter is attached.
    """
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise DllmError("an adapter is attached to this model already: merge it first")
    names = _chosen(model, lora.targets)
    _refuse_shared(model, names)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        model.set_submodule(name, LoraLinear(base, lora, generator))


def shapes(model: nn.Module, lora: Lora) -> dict[str, tuple[int, int]]:
    """Of the matrices that `attach` would give `model`, by parameter name; DllmError as there."""
    found = {}
    for name in _chosen(model, lora.targets):
        weight = model.get_parameter(f"{name}.weight")
        found[f"{name}.lora_A"] = lora.rank, weight.shape[1]
        found[f"{name}.lora_B"] = weight.shape[0], lora.rank
    return found


def attached(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by module name; DllmError where there are none."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}
    if not found:
        raise DllmError(f"no adapter is attached to this {type(model).__name__}: see attach")
    return found


def merge(model: nn.Module) -> None:
    """Add the changes to the weights, in place, and leave a plain model, trainable as a whole.

    Summed in fp32 (fp64 for fp64) and rounded to the weight's dtype. DllmError without an adapter.
    """
    for name, layer in attached(model).items():
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes exactly what its base does. DllmError without an adapter."""
    before = {layer: layer.enabled for layer in attached(model).values()}
    for layer in before:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled


def _chosen(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that `targets` mean, in the model's order."""
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
