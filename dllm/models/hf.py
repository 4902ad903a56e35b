"""A model you already have, run uncached: a transformers masked LM, or a remote-code dLLM object.

Knows the calling convention `model(input_ids, attention_mask) -> .logits` and nothing of what is
inside. The engine sees the same interface as with `Decoder` (see protocol.py), without a KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dllm.cache.kv import KVCache
from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError


@dataclass(frozen=True, slots=True)
class HFSpec:
    """The facts about a wrapped model that decoding needs; its architecture stays its own business.

    The ids and `shift` mean what they mean in `ModelSpec`. `block_length` is only stated, the
    wrapped model has to mask by itself.
    """

    vocab_size: int
    mask_id: int
    eos_id: int
    pad_id: int
    eot_id: int | None = None
    shift: Literal[0, 1] = 0
    block_length: int | None = None
    family: str = "hf"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return tuple(dict.fromkeys(t for t in (self.eos_id, self.eot_id) if t is not None))


class HFModel:
    """`(ids, plan) -> logits` of the requested rows, by running `model` on the whole canvas.

    model: callable as `model(input_ids=[B, T], attention_mask=[B, T])` returning an object with
    `.logits` [B, T, V]. The mask (1 = real) is passed only for ragged batches. A model that ignores
    it (LLaDA's files before 2025-10-21) or wants another form (Dream: 4-D bool) is only right for
    rows of equal length, unless you wrap it in a function that translates.

    An argument left None is read from `model.config` (`mask_token_id`, `eos_token_id`, ...);
    DllmError names the argument to give where that has no value. A BERT-like config has no mask id:
    pass `mask_id=tokenizer.mask_token_id`, and its separator as `eos_id`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        vocab_size: int | None = None,
        mask_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        eot_id: int | None = None,
        shift: Literal[0, 1] = 0,
    ) -> None:
        if shift not in (0, 1):
            raise DllmError(f"shift={shift!r}, expected 0 (row p predicts p) or 1 (row p - 1 does)")
        config = getattr(model, "config", None)
        vocab = _value("vocab_size", vocab_size, config, "vocab_size", None)
        self.spec = HFSpec(
            vocab_size=vocab,
            mask_id=_value("mask_id", mask_id, config, "mask_token_id", vocab),
            eos_id=(eos := _value("eos_id", eos_id, config, "eos_token_id", vocab)),
            pad_id=_value("pad_id", pad_id, config, "pad_token_id", vocab, default=eos),
            eot_id=None
            if eot_id is None
            else _value("eot_id", eot_id, None, "eot_token_id", vocab),
            shift=shift,
        )
        self.model = model

    @property
    def device(self) -> torch.device:
        """The model's own; a plain function is taken to be on the CPU."""
        return torch.device(getattr(self.model, "device", "cpu"))

    @property
    def dtype(self) -> torch.dtype:
        dtype = getattr(self.model, "dtype", torch.float32)
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        raise DllmError("a wrapped model keeps no keys and values: use cache='none'")

    def __call__(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        """Logits [B, R, V] of the rows `plan.head`; the plan has to query all of ids [B, T]."""
        if kv is not None or plan.write is not None or plan.read is not None:
            raise DllmError("a wrapped model reads and writes no KV cache: use cache='none'")
        every = torch.arange(ids.shape[1], device=plan.pos.device)
        if plan.pos.shape != ids.shape or not bool((plan.pos == every).all()):
            raise DllmError(
                f"a wrapped model computes all {ids.shape[1]} positions in order, but the plan "
                f"queries {plan.pos.shape[1]} others: use cache='none'"
            )
        mask = {} if plan.valid is None else {"attention_mask": plan.valid.long()}
        logits: Tensor = self.model(input_ids=ids, **mask).logits
        if logits.shape != (*ids.shape, self.spec.vocab_size):
            raise DllmError(
                f"the model returned logits of shape {list(logits.shape)}, expected "
                f"{[*ids.shape, self.spec.vocab_size]} (vocab_size={self.spec.vocab_size})"
            )
        return logits.gather(1, plan.head[..., None].expand(-1, -1, logits.shape[-1]))


def _value(
    name: str,
    value: int | None,
    config: object,
    key: str,
    vocab_size: int | None,
    default: int | None = None,
) -> int:
    """`value`, else `config.key`, else `default`; an id has to be inside the vocabulary."""
    if value is None:
        value = getattr(config, key, None)
    if isinstance(value, (list, tuple)) and value:  # some configs list several ends of text
        value = value[0]
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool):
        raise DllmError(f"{name}={value!r}: the model's config has no {key!r}; pass {name}=...")
    if value < 0 or (vocab_size is not None and value >= vocab_size):
        raise DllmError(f"{name}={value} is outside the vocabulary [0, {vocab_size})")
    return value
