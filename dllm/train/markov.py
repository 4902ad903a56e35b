"""DSpark's Markov head: a drafter's logits, biased by the token before, say the token behind it.

The drafter is frozen, only the head learns (arXiv 2607.05147).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.checks import check_probability, check_whole
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.models.markov import MarkovHead, save_markov
from dllm.train.data import Batch
from dllm.train.drafter import USE, Masks, random_cut
from dllm.train.job import DIFFUSION, Job, TrainingRun
from dllm.train.mdlm import mixed
from dllm.train.rollouts import Report
from dllm.train.trainer import Stage, TrainConfig, Trainer

DECAY = 4.0  # the paper's for blocks of 7
TV_SHARE = 0.9


def markov_logits(head: MarkovHead, logits: Tensor, prev: Tensor) -> Tensor:
    """A drafter's logits [..., V] behind the tokens prev [...], in fp32."""
    return logits.float() + head.bias(prev).float()


def markov_loss(
    head: MarkovHead,
    logits: Tensor,
    tokens: Tensor,
    last: Tensor,
    *,
    valid: Tensor | None = None,
    target: Tensor | None = None,
    decay: float = DECAY,
    tv_share: float = TV_SHARE,
) -> Tensor:
    """Mean loss (nats) of the head on drafts of K positions, teacher-forced.

    logits [B, K, V]: the drafter's.  tokens [B, K]: the true ones.  last [B]: the token before each
    draft.  valid [B, K]: which positions count (None: all).  Position k = 0, 1, ... weighs
    exp(-k / decay), as it counts only where all before it are accepted.
    target [B, K, V]: the target's probabilities behind the true tokens. With them the loss is
    (1 - tv_share) cross-entropy + tv_share total variation: how often a drawn token is rejected.
    """
    if not decay > 0:
        raise DllmError(f"decay={decay}: expected a number of positions above 0")
    if not 0 <= tv_share <= 1:
        raise DllmError(f"tv_share={tv_share}: expected a number from 0 to 1")
    prev = torch.cat([last[:, None], tokens[:, :-1]], 1)
    biased = markov_logits(head, logits, prev)
    loss = F.cross_entropy(biased.transpose(1, 2), tokens, reduction="none")
    if target is not None:
        tv = (biased.softmax(-1) - target).abs().sum(-1) / 2
        loss = (1 - tv_share) * loss + tv_share * tv
    ahead = torch.arange(tokens.shape[1], device=tokens.device)
    weights = torch.exp(-ahead / decay).expand_as(loss)
    if valid is not None:
        weights = weights * valid
    return (weights * loss).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


class Headed(nn.Module):
    """A frozen drafter, the head that is trained for it, and the frozen target if its tokens are
    the same.
    """

    def __init__(self, drafter: Decoder, head: MarkovHead, target: Any) -> None:
        super().__init__()
        self.drafter, self.head, self.target = drafter, head, target
        for frozen in (drafter, target):
            if frozen is not None:
                frozen.requires_grad_(False)

    def target_probs(self, masks: Masks) -> Tensor | None:
        """[n, V] the target's probabilities of the masked tokens, behind the true ones."""
        if self.target is None:
            return None
        device = self.target.device
        with mixed(device):
            logits: Tensor = self.target(masks.ids.to(device), use_cache=False).logits
        return logits[masks.masked.roll(-1, 1).to(device)].float().softmax(-1)


@dataclass(frozen=True)
class Markov:
    """Train a Markov head of `rank` for a finished drafter, whose weights stay as they are.

    An answer is cut at a random point and `reach` tokens behind it are masked. The true ones are
    learned with weight exp(-k / decay); with --distill-from and the same tokens, the total
    variation from the target's probabilities makes up `tv_share` of the loss.
    separator: token that the drafter puts behind its masks.
    """

    paper: ClassVar[str] = "DSpark, arXiv 2607.05147"
    config: ClassVar[TrainConfig] = TrainConfig(
        batch_size=64, lr=3e-3, muon_lr=None, warmup=20, save_every=100
    )
    steps: ClassVar[int] = 500
    rank: int = 64
    reach: int = 16
    decay: float = DECAY
    tv_share: float = TV_SHARE
    separator: str | None = None

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 1)
        check_whole("reach", self.reach, 1)
        check_probability("tv_share", self.tv_share)
        if not self.decay > 0:
            raise ValueError(f"decay={self.decay}: expected a number of positions above 0")

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """The drafter `job.model`, and answers of the target or of the data."""
        if job.lora is not None:
            raise DllmError("--lora: the drafter's weights stay as they are, only the head learns")
        student, steps = job.student(DIFFUSION), job.steps or self.steps
        config = job.train_config(self.config, steps)
        batches = student.batches(job.answers(student.text, report), config)
        torch.manual_seed(job.seed)
        head = MarkovHead(student.model.spec.vocab_size, self.rank).to(student.model.device)
        model = Headed(student.model, head, job.teacher_with(student.text))
        separator = None if self.separator is None else student.token_id(self.separator)
        loss = partial(self.loss, separator)
        trainer = Trainer(model, [Stage(steps, batches, loss)], config, job.out)

        def export(directory: Path) -> None:
            student.export(directory)
            save_markov(head, directory)

        return TrainingRun(trainer, export, USE.format(target=job.distill_from or "TARGET"))

    def loss(
        self,
        separator: int | None,
        model: Headed,
        batch: Batch,
        generator: torch.Generator,
        part: slice,
    ) -> Tensor:
        """The head's loss on drafts of `reach` tokens; see `markov_loss` and `trainer.Loss`."""
        rows, device = len(batch.ids), model.drafter.device
        masks = Masks.behind(batch, random_cut(batch, generator), torch.full((rows,), self.reach))
        # up to the end token: nothing behind it is ever drafted
        limit = (batch.end + batch.whole.long())[:, None]
        valid = (torch.arange(masks.ids.shape[1]) < limit)[masks.masked].view(rows, -1)
        weights = (torch.exp(-torch.arange(self.reach) / self.decay) * valid).sum(1)
        mine = masks.rows(part)
        count = len(mine.ids)
        with torch.no_grad():
            logits = mine.predict(model.drafter, separator, mine.masked)
            target = model.target_probs(mine)
        return markov_loss(
            model.head,
            logits.view(count, self.reach, -1),
            mine.ids[mine.masked].view(count, -1).to(device),
            mine.ids.gather(1, mine.end[:, None] - self.reach - 1)[:, 0].to(device),
            valid=valid[part].to(device),
            target=None if target is None else target.view(count, self.reach, -1),
            decay=self.decay,
            tv_share=self.tv_share,
        ) * float(weights[part].sum() / weights.sum())
