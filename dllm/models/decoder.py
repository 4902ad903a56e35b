"""The one transformer: a pre-norm decoder; what differs between families are `ModelSpec` switches.

It reads a `Plan` (which positions to compute) and a `KVStore` (everything else); it knows no
sampler, no tokenizer and no checkpoint format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dllm.cache.plan import Plan
from dllm.cache.store import KVStore
from dllm.models.spec import ModelSpec


@dataclass(slots=True)
class Context:
    """What every layer of one forward shares.

    cos, sin: [B, 1, Q, rope_dim / 2];  mask: bool [L or 1, B, 1, Q or 1, K] or None;
    slots: [B, Q] where queries are written, None without a store.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    store: KVStore | None
    slots: Tensor | None

    def layer_mask(self, layer: int) -> Tensor | None:
        """Attention mask [B, 1, Q or 1, K] of one layer; None lets every query see every key."""
        if self.mask is None:
            return None
        return self.mask[layer if self.mask.shape[0] > 1 else 0]


class RMSNorm(nn.Module):
    """Root-mean-square norm: variance in fp32, back to the model's dtype, then the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: Tensor, ctx: Context, fp32: bool) -> Tensor:
    """Apply RoPE (half-split layout) to the leading dimensions of x [B, H, Q, D].

    LLaDA rotates in fp32 and casts back; the Qwen kinds rotate in the model's dtype. Both are
    the same in fp32 and differ in bf16.
    """
    dtype = x.dtype
    cos, sin = ctx.cos, ctx.sin
    if fp32 and dtype != torch.float64:
        x = x.float()
    else:
        cos, sin = cos.to(dtype), sin.to(dtype)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(dtype)


class Attention(nn.Module):
    """Grouped-query attention over the queries themselves or, with a store, over all live slots."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.spec = spec
        self.layer = layer
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q = nn.Linear(spec.hidden_size, q_size, bias=spec.qkv_bias)
        self.k = nn.Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias)
        self.v = nn.Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias)
        self.o = nn.Linear(q_size, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        q, k, v = (
            rearrange(proj(x), "b q (h d) -> b h q d", d=self.spec.head_dim)
            for proj in (self.q, self.k, self.v)
        )
        q = rotate(self.q_norm(q), ctx, self.spec.rope_fp32)
        k = rotate(self.k_norm(k), ctx, self.spec.rope_fp32)
        if ctx.store is not None and ctx.slots is not None:
            k, v = ctx.store.update(self.layer, ctx.slots, k, v)  # write first, then read
        grouped = self.spec.num_heads != self.spec.num_kv_heads
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=ctx.layer_mask(self.layer), enable_gqa=grouped
        )
        return cast(Tensor, self.o(rearrange(out, "b h q d -> b q (h d)")))


class Block(nn.Module):
    """Attention and gated MLP, each behind a norm and added to the residual stream."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.attn = Attention(spec, layer)
        self.mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.gate = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.up = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.down = nn.Linear(spec.mlp_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = x + self.attn(self.attn_norm(x), ctx)
        h = self.mlp_norm(x)
        return cast(Tensor, x + self.down(F.silu(self.gate(h)) * self.up(h)))


class Decoder(nn.Module):
    """`(ids, plan, store) -> logits` of the requested rows only; see `Plan` for the shapes."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec, i) for i in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tie_head:
            self.head.weight = self.embed.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def new_store(self, batch: int, length: int) -> KVStore:
        """An empty store for `batch` rows of `length` positions, in the model's dtype."""
        s = self.spec
        return KVStore(
            s.num_layers,
            batch,
            s.num_kv_heads,
            length,
            s.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(self, ids: Tensor, plan: Plan, store: KVStore | None = None) -> Tensor:
        """Logits [B, R, V] of the rows `plan.head` asks for; ids [B, T] is the whole canvas."""
        x = self.hidden(ids, plan, store)
        index = plan.head[..., None].expand(-1, -1, x.shape[-1])
        return cast(Tensor, self.head(x.gather(1, index)))

    def hidden(self, ids: Tensor, plan: Plan, store: KVStore | None = None) -> Tensor:
        """Final normed hidden states [B, Q, hidden_size] of the queried positions."""
        x = self.embed(ids.gather(1, plan.pos))
        ctx = self._context(plan, store)
        for layer in self.layers:
            x = layer(x, ctx)
        return cast(Tensor, self.norm(x))

    def _context(self, plan: Plan, store: KVStore | None) -> Context:
        s = self.spec
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        exponent = torch.arange(0, s.rope_dim, 2, device=plan.pos.device, dtype=wide) / s.rope_dim
        # the reciprocal first, as all reference codes do: far positions then round alike
        angle = plan.pos[:, None, :, None].to(wide) * (1.0 / s.rope_theta**exponent)
        slots = None
        if store is not None:
            write = plan.valid if plan.write is None else plan.write
            if plan.write is not None and plan.valid is not None:
                write = plan.write & plan.valid
            slots = store.slots(plan.pos, write)
            store.mark_live(slots)
        return Context(angle.cos(), angle.sin(), self._mask(plan, store), store, slots)

    def _mask(self, plan: Plan, store: KVStore | None) -> Tensor | None:
        """[L or 1, B, 1, Q or 1, K] bool, or None where nothing has to be hidden."""
        if store is None:
            key_pos, readable = plan.pos, plan.valid
        else:
            key_pos = torch.arange(store.length, device=plan.pos.device)[None]
            readable = store.live
        mask = None if readable is None else readable[None, :, None, None, :]
        if plan.read is not None:
            read = plan.read if plan.read.ndim == 3 else plan.read[None]
            if store is None:  # keys are the queries, not the slots
                read = read.gather(2, key_pos.expand(len(read), -1, -1))
            read = read[:, :, None, None, :]
            mask = read if mask is None else mask & read
        if (b := self.spec.block_length) is not None:
            causal = (key_pos // b)[:, None, :] <= (plan.pos // b)[:, :, None]
            causal = causal[None, :, None]
            mask = causal if mask is None else mask & causal
        return mask
