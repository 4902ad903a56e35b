"""Small random models in float64, on which a cache's every rounding shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.engine import Engine
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.output import Output
from tests.fakes import EOS, MASK, PLAIN, VOCAB, FakeText

__all__ = ["EOS", "MASK", "PLAIN", "VOCAB", "Watched", "decoder", "run", "steps"]


@cache
def decoder(shift: int = 0, block: int | None = None, seed: int = 0) -> Decoder:
    """Three layers, two heads; random weights whose predictions depend on the whole canvas."""
    spec = ModelSpec(
        family="llada",
        vocab_size=VOCAB,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=24,
        norm_eps=1e-5,
        rope_theta=1e4,
        mask_id=MASK,
        eos_id=EOS,
        pad_id=EOS,
        shift=shift,
        block_length=block,
    )
    model = Decoder(spec)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:  # large enough that a token changes what is predicted far away
            torch.nn.init.normal_(p, std=2.0 * p.shape[1] ** -0.5, generator=generator)
    return model.double()


class Watched:
    """A decoder that notes its calls: the plans, and the store of each."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.spec = model, model.spec
        self.device, self.dtype = model.device, model.dtype
        self.plans: list[ForwardPlan] = []
        self.kvs: list[KVCache] = []
        self.logits: list[Tensor] = []

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        kv = self.model.new_kv(batch, length, limit)
        self.kvs.append(kv)
        return kv

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        logits: Tensor = self.model(ids, plan, kv)
        self.plans.append(plan)
        self.logits.append(logits)
        return logits

    @property
    def queries(self) -> list[set[int]]:
        """The positions that each forward computed, for a batch of one row."""
        return [
            set(plan.pos[0].tolist() if plan.valid is None else plan.pos[0, plan.valid[0]].tolist())
            for plan in self.plans
        ]


def run(model: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[Output]:
    """The Outputs of prompts of token ids, histories included."""
    return Engine(model, FakeText()).generate([list(p) for p in prompts], history=True, **options)


def steps(output: Output) -> list[tuple[list[int], list[int]]]:
    """What each step committed: positions and tokens."""
    return [(c.positions, c.token_ids) for c in output.history or ()]
