"""The switches of the one transformer: everything in which two checkpoints of this field differ.

Numbers and names only: no file is read here (families.py), no layer built (decoder.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Frozen description of one masked-diffusion checkpoint.

    `block_length` is the attention rule: None attends everywhere (full), b makes query q see key k
    iff k // b <= q // b, counted from position 0 (block-causal). `shift` is 1 when logits row p - 1
    predicts token p (Dream, Fast-dLLM v2) and 0 when row p does (LLaDA, SDAR).
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    norm_eps: float
    rope_theta: float
    mask_id: int
    eos_id: int
    pad_id: int
    eot_id: int | None = None
    rope_fraction: float = 1.0
    rope_fp32: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_head: bool = False
    block_length: int | None = None
    shift: Literal[0, 1] = 0
    max_positions: int = 4096

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.rope_dim % 2:
            raise ValueError(f"RoPE rotates pairs, but head_dim * rope_fraction = {self.rope_dim}")
        for name in ("mask_id", "eos_id", "pad_id", "eot_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} is outside the vocabulary [0, {self.vocab_size})")

    @property
    def rope_dim(self) -> int:
        """Number of leading dimensions of a head that RoPE rotates."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: end of sequence and, where there is one, end of turn."""
        return tuple(dict.fromkeys(t for t in (self.eos_id, self.eot_id) if t is not None))
