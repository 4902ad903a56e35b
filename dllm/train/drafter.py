"""DEER: a dLLM learns to continue an AR model's own answers (arXiv 2512.15176, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dllm.checks import check_number, check_probability, check_whole
from dllm.models.decoder import Decoder
from dllm.train.data import Batch
from dllm.train.job import Job, TrainingRun
from dllm.train.mdlm import TAIL_WEIGHT, predict, weighted
from dllm.train.rollouts import Report
from dllm.train.student import Blocks
from dllm.train.trainer import Stage, TrainConfig, Trainer

USE = "dllm speculate --target {target} --drafter {{}} PROMPT"


@dataclass(frozen=True)
class DrafterAlignment:
    """Align a dLLM with the AR model that will verify its drafts.

    Stage 1 (continuation distillation): an answer is cut at a random point, and up to `reach`
    tokens behind it are masked: all of them in a share `full` of the rows, as in a draft, a random
    number in the rest. Stage 2 (boundary refinement), a share `refine` of the steps at half the
    learning rate: 1 to `boundary` tokens behind the cut are masked, and of R the i-th weighs
    decay^(R - i). opening: share of the rows cut where the answer begins, for answers so short that
    most drafts are made there. separator: token put behind the masks, none if used without.

    An AR checkpoint, the target's own too, becomes a drafter in which block_length tokens see each
    other (0: all); mask_token: see `ar-to-block`.
    """

    paper: ClassVar[str] = "DEER, arXiv 2512.15176"
    config: ClassVar[TrainConfig] = TrainConfig(
        batch_size=64, lr=1e-4, muon_lr=None, warmup=50, save_every=100
    )
    steps: ClassVar[int] = 1000
    reach: int = 32
    full: float = 0.5
    refine: float = 0.5
    boundary: int = 96
    decay: float = 1.01
    opening: float = 0.0
    separator: str | None = None
    block_length: int = 32
    mask_token: int | str | None = None

    def __post_init__(self) -> None:
        check_whole("reach", self.reach, 1)
        check_whole("boundary", self.boundary, 1)
        check_number("decay", self.decay, 1)
        check_whole("block_length", self.block_length, 0)
        check_probability("full", self.full)
        check_probability("refine", self.refine)
        check_probability("opening", self.opening)

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """A student and answers of `job.distill_from` (or of the data), in two stages."""
        blocks = Blocks(self.block_length or None, self.mask_token)
        student = job.student("a masked-diffusion or AR checkpoint", blocks)
        steps = job.steps or self.steps
        config = job.train_config(self.config, steps)
        batches = student.batches(job.answers(student.text, report), config)
        separator = None if self.separator is None else student.token_id(self.separator)
        second = round(steps * self.refine)
        stages = [
            Stage(steps - second, batches, Objective(self.continuation, separator)),
            Stage(second, batches, Objective(self.suffix, separator), rate=0.5),
        ]
        stages = [stage for stage in stages if stage.steps]
        trainer = Trainer(student.model, stages, config, job.out)
        return TrainingRun(trainer, student.export, USE.format(target=job.distill_from or "TARGET"))

    def continuation(self, batch: Batch, generator: torch.Generator) -> Masks:
        """Stage 1: up to `reach` tokens behind a random cut, all of them masked or some."""
        cut, rows = random_cut(batch, generator, self.opening), len(batch.ids)
        masks = Masks.behind(batch, cut, torch.full((rows,), self.reach))
        rank = torch.rand(masks.masked.shape, generator=generator)
        rank = rank.masked_fill(~masks.masked, 2.0).argsort(1).argsort(1)
        some = 1 + (torch.rand(rows, generator=generator) * self.reach).long()
        whole = torch.rand(rows, generator=generator) < self.full
        count = torch.where(whole, self.reach, some)
        return masks.only(masks.masked & (rank < count[:, None]))

    def suffix(self, batch: Batch, generator: torch.Generator) -> Masks:
        """Stage 2: all of R ~ U{1..boundary} tokens behind a random cut, the first weigh most."""
        cut = random_cut(batch, generator, self.opening)
        count = 1 + (torch.rand(len(cut), generator=generator) * self.boundary).long()
        masks = Masks.behind(batch, cut, count)
        left = (cut + count)[:, None] - 1 - torch.arange(masks.ids.shape[1])  # R - i
        return masks.weighted(self.decay ** left.clamp(min=0))


def random_cut(batch: Batch, generator: torch.Generator, opening: float = 0.0) -> Tensor:
    """[B] a position in every answer, or that of the end token behind it if that is known.

    opening: with this probability the first.
    """
    length = batch.end + batch.whole.long() - batch.start
    place, first = torch.rand(2, len(length), generator=generator)
    cut: Tensor = batch.start + (place * length).long()
    return torch.where(first < opening, batch.start, cut)


@dataclass(frozen=True)
class Masks:
    """Rows that are cut off in the middle of an answer, as a drafter sees them.

    ids [B, T]: the right tokens;  masked [B, T];  end [B]: behind the last mask, nothing follows;
    weights [B, T]: in the loss, 1 a row.
    """

    ids: Tensor
    masked: Tensor
    end: Tensor
    weights: Tensor

    @classmethod
    def behind(cls, batch: Batch, cut: Tensor, count: Tensor) -> Masks:
        """`count` [B] masks from `cut` [B] on; padding weighs little, what nobody knows nothing."""
        end = cut + count
        more = max(0, int(end.max()) - batch.ids.shape[1])
        ids = torch.cat([batch.ids, batch.ids[:, -1:].expand(-1, more)], 1)
        pos = torch.arange(ids.shape[1])
        masked = (pos >= cut[:, None]) & (pos < end[:, None])
        known = (pos < batch.end[:, None]) | batch.whole[:, None]
        weights = torch.where(pos > batch.end[:, None], TAIL_WEIGHT, 1.0) * (masked & known)
        return cls(ids, masked, end, weights / weights.sum(1, keepdim=True))

    def only(self, masked: Tensor) -> Masks:
        """Fewer masks; a row in which none of those left counts weighs nothing."""
        weights = self.weights * masked
        return replace(self, masked=masked, weights=weights / weights.sum(1, True).clamp(min=1e-9))

    def rows(self, part: slice) -> Masks:
        """Some of the rows."""
        return Masks(self.ids[part], self.masked[part], self.end[part], self.weights[part])

    def predict(self, model: Decoder, separator: int | None, chosen: Tensor) -> Tensor:
        """Logits [n, V] of the `chosen` masks [B, T], as a drafter that shows these masks has them.

        separator: put behind the masks.
        """
        noisy, end = self.ids.masked_fill(self.masked, model.spec.mask_id), self.end[:, None]
        if separator is not None:
            noisy = torch.cat([noisy, noisy[:, -1:]], 1).scatter(1, end, separator)
            chosen = torch.cat([chosen, torch.zeros_like(chosen[:, :1])], 1)
            end = end + 1
        return predict(model, noisy, chosen, valid=torch.arange(noisy.shape[1]) < end)

    def weighted(self, factor: Tensor) -> Masks:
        """Other weights [B, T] of the masks."""
        weights = self.weights * factor
        return replace(self, weights=weights / weights.sum(1, keepdim=True))


@dataclass(frozen=True)
class Objective:
    """The loss of one stage: cross-entropy of masked tokens. separator: put behind the masks."""

    masks: Callable[[Batch, torch.Generator], Masks]
    separator: int | None = None

    def __call__(
        self, model: Decoder, batch: Batch, generator: torch.Generator, part: slice
    ) -> Tensor:
        """See `trainer.Loss`."""
        masks = self.masks(batch, generator).rows(part)
        chosen = masks.weights > 0
        logits = masks.predict(model, self.separator, chosen)
        return weighted(logits, masks.ids[chosen], masks.weights[chosen]) / len(batch.ids)
