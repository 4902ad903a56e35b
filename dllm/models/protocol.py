"""The interface of a model that the engine decodes with: `Decoder` and `HFModel` both fit."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan


class TokenIds(Protocol):
    """The facts about a vocabulary that decoding needs; `ModelSpec` and `HFSpec` have them."""

    @property
    def family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    @property
    def shift(self) -> Literal[0, 1]: ...
    @property
    def block_length(self) -> int | None: ...


class Model(Protocol):
    """`(ids [B, T], plan, kv) -> logits [B, R, vocab_size]` of the rows in `plan.head`."""

    @property
    def spec(self) -> TokenIds: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor: ...
    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache: ...
