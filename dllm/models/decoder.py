"""The one transformer: a pre-norm decoder; what differs between families are `ModelSpec` switches.

It reads a `ForwardPlan` (which positions to compute) and a `KVCache` (everything else); it knows no
sampler, no tokenizer and no checkpoint format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.cache.kv import KVCache
from dllm.cache.plan import Access, ForwardPlan
from dllm.models.spec import ModelSpec

TABLED = 2**15  # positions whose rotations are kept in a table


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """The rows of one forward, and what every layer shares for them.

    pos [B, Q], valid [B, Q] or None: as in `ForwardPlan`;  cos, sin [B, 1, Q, rope_dim]: see
    `angles`; mask: bool [L or 1, B, 1, Q or 1, K] or None;  kv, access: None without a KV cache.
    """

    spec: ModelSpec
    pos: Tensor
    valid: Tensor | None
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    kv: KVCache | None
    access: Access | None

    @classmethod
    def of(
        cls, spec: ModelSpec, plan: ForwardPlan, kv: KVCache | None, wide: torch.dtype
    ) -> LayerInputs:
        """The rows of `plan`; `wide` is the dtype that RoPE's angles are computed in."""
        access = None if kv is None else kv.open(plan)
        mask = attention_mask(spec, plan, access)
        extent = plan.extent if access is None else access.extent
        cos, sin = angles(spec, plan.pos, wide, extent)
        return cls(spec, plan.pos, plan.valid, cos, sin, mask, kv, access)

    def at(self, pos: Tensor, valid: Tensor | None = None) -> LayerInputs:
        """Other rows of the same forward: positions pos [B, Q], those `valid` [B, Q] written."""
        assert self.kv is not None
        assert self.access is not None
        slots = pos if valid is None else torch.where(valid, pos, self.kv.slots)
        access, mask = replace(self.access, slots=slots), self.mask
        if self.spec.block_length is not None:  # else every query sees the same slots
            mask = attention_mask(self.spec, ForwardPlan(pos, pos, valid, masked=True), access)
        cos, sin = angles(self.spec, pos, self.cos.dtype, self.access.extent)
        return LayerInputs(self.spec, pos, valid, cos, sin, mask, self.kv, access)

    def layer_mask(self, layer: int) -> Tensor | None:
        """Attention mask [B, 1, Q or 1, K] of one layer; None lets every query see every key."""
        mask = self.mask
        if mask is not None:
            mask = mask[layer if mask.shape[0] > 1 else 0]
        if self.kv is not None and self.access is not None:
            self.kv.check_read(layer, self.access, mask)
        return mask

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to: with a KV cache those of the rows are written first."""
        if self.kv is None or self.access is None:
            return k, v
        return self.kv.update(layer, self.access, k, v)


def angles(
    spec: ModelSpec, pos: Tensor, wide: torch.dtype, extent: int | None = None
) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) [B, 1, Q, rope_dim] of RoPE at the positions pos [B, Q].

    extent: no position lies behind it, so that rows of a table will do (None: not known).
    """
    if extent is None or extent > TABLED or torch.compiler.is_compiling():
        return turns(spec.rope_dim, spec.rope_theta, pos, wide)
    size = 1 << max(8, (extent - 1).bit_length())
    cos, sin = table(spec.rope_dim, spec.rope_theta, size, wide, pos.device)
    return cos[pos][:, None], sin[pos][:, None]


@lru_cache(maxsize=8)
def table(
    dim: int, theta: float, size: int, wide: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The `turns` of the positions 0 to size - 1, [size, dim] each."""
    cos, sin = turns(dim, theta, torch.arange(size, device=device)[None], wide)
    return cos[0, 0], sin[0, 0]


def turns(dim: int, theta: float, pos: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) [B, 1, Q, dim] of the positions pos [B, Q], worked out."""
    exponent = torch.arange(0, dim, 2, device=pos.device, dtype=wide) / dim
    # the reciprocal first, as all reference codes do: far positions then round alike
    angle = pos[:, None, :, None].to(wide) * (1.0 / theta**exponent)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def attention_mask(spec: ModelSpec, plan: ForwardPlan, access: Access | None) -> Tensor | None:
    """[L or 1, B, 1, Q or 1, K] bool, or None where nothing has to be hidden."""
    if plan.masked is False:
        return None
    if access is None:  # keys are the queries, not slots
        key_pos, readable = plan.pos, plan.valid
        if plan.read is not None:
            read = plan.read if plan.read.ndim == 3 else plan.read[None]
            read = read.gather(2, key_pos.expand(len(read), -1, -1))
            readable = read if readable is None else readable & read
    else:
        key_pos = torch.arange(access.extent, device=plan.pos.device)[None]
        readable = access.visible
    mask = None
    if readable is not None:
        mask = (readable if readable.ndim == 3 else readable[None])[:, :, None, None, :]
    if (b := spec.block_length) is not None:
        causal = ((key_pos // b)[:, None, :] <= (plan.pos // b)[:, :, None])[None, :, None]
        mask = causal if mask is None else mask & causal
    # one look at a few bits for the whole forward saves every layer a masked softmax
    if mask is None or (plan.masked is None and bool(mask.all())):
        return None
    return mask


class RMSNorm(nn.Module):
    """Root-mean-square norm: variance in fp32, back to the model's dtype, then the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # the fused norm rounds once, the families round before the weight too
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: Tensor, run: LayerInputs, fp32: bool) -> Tensor:
    """Apply RoPE (half-split layout) to the leading dimensions of x [B, H, Q, D].

    LLaDA rotates in fp32 and casts back; the Qwen kinds rotate in the model's dtype. Both are
    the same in fp32 and differ in bf16.
    """
    dtype = x.dtype
    cos, sin = run.cos, run.sin
    if fp32 and dtype != torch.float64:
        x = x.float()
    else:
        cos, sin = cos.to(dtype), sin.to(dtype)
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    swapped = turned.roll(size // 2, -1)  # (a, b) -> (b, a)
    turned = turned * cos + swapped * sin
    return (turned if rest.shape[-1] == 0 else torch.cat((turned, rest), -1)).to(dtype)


class Attention(nn.Module):
    """Grouped-query attention: projections, and their use over whatever keys and values."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q = nn.Linear(spec.hidden_size, q_size, bias=spec.qkv_bias)
        self.k = nn.Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias)
        self.v = nn.Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias)
        self.o = nn.Linear(q_size, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()

    def heads(self, x: Tensor, run: LayerInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q [B, H, Q, D], k and v [B, H_kv, Q, D] of normed rows x [B, Q, d]."""
        q, k, v = (self.split(proj(x)) for proj in (self.q, self.k, self.v))
        q = rotate(self.q_norm(q), run, self.spec.rope_fp32)
        k = rotate(self.k_norm(k), run, self.spec.rope_fp32)
        return q, k, v

    def split(self, x: Tensor) -> Tensor:
        """Projected rows x [B, Q, H * D] by head: [B, H, Q, D]."""
        size = self.spec.head_dim  # the number of heads is written out: a batch may be empty
        return x.view(*x.shape[:2], x.shape[2] // size, size).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        grouped = self.spec.num_heads != self.spec.num_kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return cast(Tensor, self.o(out.transpose(1, 2).flatten(2)))


class DecoderLayer(nn.Module):
    """Attention and gated MLP, each behind a norm and added to the residual stream.

    Its pieces are what a cache's `LayerRunner` may use one by one.
    """

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        self.index = index
        self.attn_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.attn = Attention(spec)
        self.mlp_norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.gate = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.up = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.down = nn.Linear(spec.mlp_size, spec.hidden_size, bias=False)

    def heads(self, x: Tensor, run: LayerInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, Q, D], keys and values [B, H_kv, Q, D] of rows x [B, Q, d]."""
        return self.attn.heads(self.attn_norm(x), run)

    def values(self, x: Tensor) -> Tensor:
        """The values [B, H_kv, Q, D] of `heads` alone."""
        return self.attn.split(self.attn.v(self.attn_norm(x)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The attention branch [B, Q, d]: what it adds to the residual stream."""
        return cast(Tensor, self.attn(q, k, v, mask))

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward branch [B, Q, d]: what it adds to the residual stream."""
        h = self.mlp_norm(x)
        gate, up = F.silu(self.gate(h)), self.up(h)
        return cast(Tensor, self.down(gate * up if torch.is_grad_enabled() else gate.mul_(up)))

    def forward(self, x: Tensor, run: LayerInputs) -> Tensor:
        q, k, v = self.heads(x, run)
        k, v = run.update(self.index, k, v)  # write first, then read
        x = x + self.attend(q, k, v, run.layer_mask(self.index))
        return x + self.feed(x)


class Decoder(nn.Module):
    """`(ids, plan, kv) -> logits` of the requested rows only; shapes as in `ForwardPlan`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec, i) for i in range(spec.num_layers))
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

    def new_kv(self, batch: int, length: int, limit: int | None = None) -> KVCache:
        """An empty KV cache for `batch` rows of `length` positions, in the model's dtype.

        CacheError if it would take more than `limit` bytes in the end.
        """
        s = self.spec
        return KVCache(
            s.num_layers,
            batch,
            s.num_kv_heads,
            length,
            s.head_dim,
            dtype=self.dtype,
            device=self.device,
            limit=limit,
        )

    def forward(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        """Logits [B, R, V] of the rows `plan.head` asks for; ids [B, T] is the whole canvas."""
        x = self.hidden(ids, plan, kv)
        index = plan.head[..., None].expand(-1, -1, x.shape[-1])
        return cast(Tensor, self.head(x.gather(1, index)))

    def hidden(self, ids: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        """Final normed hidden states [B, Q, hidden_size] of the queried positions."""
        return self.body(self.embed(ids.gather(1, plan.pos)), plan, kv)

    def body(self, x: Tensor, plan: ForwardPlan, kv: KVCache | None = None) -> Tensor:
        """`hidden` from the rows x [B, Q, hidden_size] that go into the first layer."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        run = LayerInputs.of(self.spec, plan, kv, wide)
        for layer in self.layers:
            if plan.runner is None:
                x = layer(x, run)
            else:
                x, run = plan.runner.layer(cast(DecoderLayer, layer), x, run)
        return cast(Tensor, self.norm(x))
