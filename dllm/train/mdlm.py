"""Masked-diffusion training (LLaDA, arXiv 2502.09992, sections 2.2 and 2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dllm.cache.plan import ForwardPlan
from dllm.checks import check_probability
from dllm.models.decoder import Decoder
from dllm.train import tiny
from dllm.train.data import Batch
from dllm.train.job import DIFFUSION, GENERATE, Job, TrainingRun
from dllm.train.rollouts import Report
from dllm.train.trainer import TrainConfig

TAIL_WEIGHT = 0.1  # padding is easy and long: at full weight it would be most of the loss


@dataclass(frozen=True)
class Mdlm:
    """Mask answer tokens and predict them. Without --model: the bundled model, from nothing.

    blockwise, frontier: shares of rows masked in two other ways, see `corrupt`.
    """

    paper: ClassVar[str] = "LLaDA, arXiv 2502.09992"
    config: ClassVar[TrainConfig] = TrainConfig(lr=2e-4, muon_lr=None, warmup=50)
    steps: ClassVar[int] = 2000
    blockwise: float = 0.0
    frontier: float = 0.0

    def __post_init__(self) -> None:
        check_probability("blockwise", self.blockwise)
        check_probability("frontier", self.frontier)

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """Fine-tuning of `job.model` on answers; the bundled model's curriculum without one."""
        if job.model is None:
            return tiny.run(job, Mdlm(blockwise=0.2, frontier=0.45).loss)
        student = job.student(DIFFUSION)
        return job.fit(self, student, job.answers(student.text, report, whole=True), GENERATE)

    def corrupt(
        self, batch: Batch, mask_id: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mask part of every answer; return the noisy ids [B, T] and the loss weights [B, T].

        Of an answer with its first two EOS (L tokens) l ~ U{1..L} random ones are masked, each with
        weight 1/l: LLaDA's bound up to a constant. In `blockwise` of the rows everything behind a
        random cut is masked too, as it is for a sampler that works in blocks. `frontier` rows are
        all known before the cut, all masked behind it, and only the first two masks count: what has
        to be worked out (a sum, say) and cannot be copied from further on. The padding behind the
        answer is all masked in most rows, as at the start of a generation.
        """
        ids, rows = batch.ids, batch.ids.shape[0]
        pos = torch.arange(ids.shape[1])[None]
        core = (pos >= batch.start[:, None]) & (pos < batch.end[:, None] + 2)
        tail = pos >= batch.end[:, None] + 2
        length = core.sum(1)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        count = 1 + (uniform(rows) * length).long()
        rank = uniform(*ids.shape).masked_fill(~core, 2.0).argsort(1).argsort(1)
        masked = core & (rank < count[:, None])
        cut = (batch.start + (uniform(rows) * length).long())[:, None]
        kind = uniform(rows)[:, None]
        behind, frontier = core & (pos >= cut), kind < self.frontier
        blockwise = kind < self.frontier + self.blockwise
        masked = torch.where(frontier, behind, masked | (behind & blockwise))
        counted = masked & (~frontier | (pos < cut + 2))
        ratio = torch.where(uniform(rows) < 0.7, 1.0, count / length)
        masked_tail = tail & (uniform(*ids.shape) < ratio[:, None])

        weights = counted / counted.sum(1, keepdim=True)
        weights += TAIL_WEIGHT * masked_tail / masked_tail.sum(1, keepdim=True).clamp(min=1)
        return ids.masked_fill(masked | masked_tail, mask_id), weights

    def loss(self, model: Decoder, batch: Batch, generator: torch.Generator, part: slice) -> Tensor:
        """Weighted cross-entropy (nats a row) of the masked tokens, the head run on those alone.

        `part` are the rows of this process; their sum is divided by the size of the whole batch, so
        that the processes' losses add up to that of one.
        """
        noisy, weights = self.corrupt(batch, model.spec.mask_id, generator)
        ids, noisy, weights = batch.ids[part], noisy[part], weights[part]
        chosen = weights > 0
        logits = predict(model, noisy, chosen)
        return weighted(logits, ids[chosen], weights[chosen]) / batch.ids.shape[0]


def weighted(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted cross-entropies of `tokens` [n] under `logits` [n, V]."""
    nll = F.cross_entropy(logits, tokens.to(logits.device), reduction="none")
    return (nll * weights.to(logits.device)).sum()


def predict(model: Decoder, ids: Tensor, chosen: Tensor, valid: Tensor | None = None) -> Tensor:
    """Logits [n, V] in fp32 of the tokens at the `chosen` positions [B, T] (never the first).

    valid [B, T]: positions that there are; None: all. Tensors may be on another device.
    """
    rows, length = ids.shape
    device = model.device
    plan = ForwardPlan.full(length, rows, device)
    if valid is not None:
        plan = replace(plan, valid=valid.to(device))
    source = chosen.roll(-model.spec.shift, 1).to(device)
    with mixed(device):
        logits: Tensor = model.head(model.hidden(ids.to(device), plan)[source])
    return logits.float()


@contextmanager
def mixed(device: torch.device) -> Iterator[None]:
    """Matrix products in bf16 where the device has them; plain attention on a CPU.

    A CPU without such instructions emulates them, much slower than fp32. The flash kernel's
    backward takes longer there than the whole forward; plain matmuls do not.
    """
    if device.type != "cpu":
        with torch.autocast(device.type, torch.bfloat16):
            yield
        return
    known = torch.cpu.get_capabilities()
    fast = any(known.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    with torch.autocast("cpu", torch.bfloat16, enabled=fast), sdpa_kernel(SDPBackend.MATH):
        yield
