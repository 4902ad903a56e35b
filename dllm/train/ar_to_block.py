"""Fast-dLLM v2: an autoregressive model learns to decode blocks in parallel (arXiv 2509.26328)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.checks import check_number, check_probability, check_whole
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.train.block import groups, nll
from dllm.train.data import Batch
from dllm.train.job import Job, TrainingRun
from dllm.train.mdlm import TAIL_WEIGHT, mixed
from dllm.train.rollouts import Report
from dllm.train.student import Blocks, Student
from dllm.train.trainer import TrainConfig

USE = "dllm generate --model {{}} --cache block --block-length {} PROMPT"


@dataclass(frozen=True)
class ArToBlock:
    """Make a Llama, Qwen2 or Qwen3 checkpoint a block-diffusion model, trained on answers.

    block_length: tokens that see each other, counted from the start of the prompt. mask_token: text
    or id of a token that no text holds; the tokenizer's own if none.

    Every token of an answer is learned once, in one of two views of its block: in view 0 it is
    masked with a probability t ~ U(0, 1) of the block, else in view 1. frontier: share of the
    blocks in which view 0 masks what is behind a random cut instead, and view 1 what is before it.
    What follows the end of text in its block is end of text too and counts tail_weight a token; in
    a share tail_hidden of the rows both views mask all of it, as at the start of a generation.
    """

    paper: ClassVar[str] = "Fast-dLLM v2, arXiv 2509.26328"
    config: ClassVar[TrainConfig] = TrainConfig(
        batch_size=64, lr=2e-4, muon_lr=None, warmup=50, save_every=100
    )
    steps: ClassVar[int] = 2000
    block_length: int = 32
    mask_token: int | str | None = None
    frontier: float = 0.0
    tail_weight: float = TAIL_WEIGHT
    tail_hidden: float = 0.7

    def __post_init__(self) -> None:
        check_whole("block_length", self.block_length, 1)
        check_number("tail_weight", self.tail_weight, 0)
        check_probability("frontier", self.frontier)
        check_probability("tail_hidden", self.tail_hidden)

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """The AR model with the attention of blocks, and answers to train it on."""
        student = self.student(job)
        answers = job.answers(student.text, report, whole=True)
        return job.fit(self, student, answers, USE.format(self.block_length))

    def student(self, job: Job) -> Student:
        """The AR checkpoint `job.model` as a decoder of blocks, or one that has become that."""
        what = "a Llama, Qwen2 or Qwen3 checkpoint"
        student = job.student(what, Blocks(self.block_length, self.mask_token))
        found = student.model.spec.block_length
        if found != self.block_length:
            attends = "everywhere" if found is None else f"in blocks of {found}"
            raise DllmError(
                f"--model {job.model}: attends {attends}; expected {what}, or what this recipe "
                f"made of one with block_length={self.block_length}"
            )
        return student

    def corrupt(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Masked positions of the views, and the loss weights: both [2, B, T], T whole blocks."""
        size = self.block_length
        blocks = int(batch.end.max()) // size + 1
        pos, rows = torch.arange(blocks * size), len(batch.ids)
        start, stop = batch.start[:, None], batch.end[:, None] + 1  # behind the end of text

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        def spread(by_block: Tensor) -> Tensor:
            return by_block.repeat_interleave(size, 1)

        level, kind, place = uniform(3, rows, blocks)
        opens = torch.arange(blocks) * size
        low, high = opens.maximum(start), (opens + size).minimum(stop)
        cut = low + (place * (high - low)).floor()
        one = uniform(rows, len(pos)) < spread(level)
        one = torch.where(spread(kind < self.frontier), pos >= spread(cut), one)

        answer = (pos >= start) & (pos < stop)
        tail = (pos >= stop) & (pos // size == batch.end[:, None] // size)
        hidden = tail & (uniform(rows, 1) < self.tail_hidden)
        masked = torch.stack([one, ~one]) & (answer | tail) | hidden
        return masked, masked * (answer + self.tail_weight * tail)

    def loss(self, model: Decoder, batch: Batch, generator: torch.Generator, part: slice) -> Tensor:
        """Mean cross-entropy (nats a token) of the masked; see `trainer.Loss`."""
        masked, weights = self.corrupt(batch, generator)
        ids = F.pad(batch.ids, (0, masked.shape[2] - batch.ids.shape[1]), value=model.spec.eos_id)
        ids, start, end = ids[part], batch.start[part], batch.end[part]
        # a part may have no rows, but it has a gradient
        loss = torch.zeros((), device=model.device, requires_grad=True)
        with mixed(model.device):
            for streams, rows in groups(start, end, self.block_length):
                tensors = (ids[rows], *(t[:, part][:, rows] for t in (masked, weights)))
                loss = loss + nll(model, streams, *(t.to(model.device) for t in tensors))
        return loss / weights.sum()
