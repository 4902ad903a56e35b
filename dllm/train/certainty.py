"""dParallel: a dLLM learns to be sure of its own answers sooner (arXiv 2509.26488, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_number, check_positive, check_probability, check_whole
from dllm.config import DecodeConfig
from dllm.models.decoder import Decoder
from dllm.train.data import Batch
from dllm.train.job import DIFFUSION, GENERATE, Job, TrainingRun
from dllm.train.mdlm import TAIL_WEIGHT, predict
from dllm.train.rollouts import Report
from dllm.train.trainer import TrainConfig


@dataclass(frozen=True)
class Certainty:
    """Learn the model's own answers from every state that decoding passes through, surely.

    The model first answers the questions itself, by `sampler` in blocks of `block_length`. Of each
    answer a step is drawn: what was committed by then is known, the rest is masked, and the masks
    of the current block are learned. Consistency: cross-entropy with the answer. Certainty: the
    entropy at `temperature` of the masks that are predicted right is lowered, `weight` times.

    tail, tail_share: end-of-text padding behind the longest row, at most, and how often.
    """

    paper: ClassVar[str] = "dParallel, arXiv 2509.26488"
    config: ClassVar[TrainConfig] = TrainConfig(
        batch_size=32, lr=2e-4, muon_lr=None, warmup=50, save_every=100
    )
    steps: ClassVar[int] = 1000
    weight: float = 2.0
    temperature: float = 0.5
    block_length: int = 32
    sampler: str = "threshold:threshold=0.9"
    tail: int = 0
    tail_share: float = 0.0

    def __post_init__(self) -> None:
        check_number("weight", self.weight, 0)
        check_whole("block_length", self.block_length, 1)
        check_whole("tail", self.tail, 0)
        check_probability("tail_share", self.tail_share)
        check_positive("temperature", self.temperature)

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """The student answers the questions; then it is trained on that."""
        student = job.student(DIFFUSION)
        decoding = DecodeConfig(sampler=self.sampler, block_length=self.block_length)
        pairs = job.trajectories(student, decoding, report)
        tail = {"tail": self.tail, "tail_share": self.tail_share}
        return job.fit(self, student, pairs, GENERATE, **tail)

    def states(
        self, batch: Batch, mask_id: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Noisy ids [B, T]: each row as it stood after a random forward; loss weights [B, T].

        The masks of the block at work weigh 1 together, the padding among them little.
        """
        last = batch.order.amax(1)
        after = (torch.rand(len(last), generator=generator) * last).long()[:, None]
        pos = torch.arange(batch.ids.shape[1])[None] - batch.start[:, None]
        masked = (pos >= 0) & (batch.order > after)
        block = pos // self.block_length
        current = block.where(masked, len(batch.ids[0])).amin(1, keepdim=True)
        weights = torch.where(pos > (batch.end - batch.start)[:, None], TAIL_WEIGHT, 1.0)
        weights = weights * (masked & (block == current))
        return batch.ids.masked_fill(masked, mask_id), weights / weights.sum(1, keepdim=True)

    def loss(self, model: Decoder, batch: Batch, generator: torch.Generator, part: slice) -> Tensor:
        """Consistency and certainty of the rows `part` (nats a row); see `trainer.Loss`."""
        noisy, weights = self.states(batch, model.spec.mask_id, generator)
        ids, noisy, weights = batch.ids[part], noisy[part], weights[part]
        chosen = weights > 0
        logits = predict(model, noisy, chosen)
        tokens, each = ids[chosen].to(logits.device), weights[chosen].to(logits.device)
        consistency = -logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        sharp = (logits / self.temperature).log_softmax(-1)
        right = logits.detach().argmax(-1) == tokens
        certainty = -(sharp.exp() * sharp).sum(-1) * right
        return (each * (consistency + self.weight * certainty)).sum() / len(batch.ids)
