"""Learn2PD's filter, trained: which proposals are final, told from confidences (2509.25188).

A network of two layers learns what the oracle saw and what was right at every step of its
roll-outs. The model itself stays as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.checks import check_whole
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.files import FileError
from dllm.samplers.learn2pd import save_filter
from dllm.train.job import DIFFUSION, TOGETHER, Job, TrainingRun
from dllm.train.oracle import OracleRollout, Traces
from dllm.train.rollouts import Report
from dllm.train.trainer import Stage, TrainConfig, Trainer

FILE = "filter.safetensors"  # in the directory of a result
USE = "dllm generate --model {} --sampler learn2pd:filter={{}}/{} --block-length {} --cache {}"
REFUSED = {
    "lora": "the model stays as it is, only the filter learns",
    "distill_from": "a filter learns which of the model's own proposals are final",
    "batch_size": "every update is of all recorded steps at once",
    "muon_lr": "AdamW trains the two layers of a filter",
}


class FilterMLP(nn.Sequential):
    """Logits [N, W] of "this proposal is final" for confidences [N, W]; W -> hidden -> W, ReLU.

    Its state has the names that `save_filter` writes.
    """

    def __init__(self, block_length: int, hidden: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = nn.Linear(block_length, hidden), nn.Linear(hidden, block_length)
        super().__init__(OrderedDict({"in": first, "relu": nn.ReLU(), "out": last}))


@dataclass(frozen=True)
class Filter:
    """Train a filter for windows of `block_length` tokens, decoded with `cache`.

    The model answers the questions one token a forward. Then it decodes them anew, and whatever is
    as in those references is committed at once: that is right, and the confidences beside it are
    what the filter sees. Every update is of all steps; a right candidate counts `positive_weight`.
    Sizes and rate are the paper's, but it makes 40,000 updates: on few examples that overfits.
    hidden: width of the filter's one hidden layer.
    """

    paper: ClassVar[str] = "Learn2PD, arXiv 2509.25188"
    config: ClassVar[TrainConfig] = TrainConfig(
        lr=3e-3, muon_lr=None, warmup=1, save_every=1000, betas=(0.9, 0.999), weight_decay=0.01
    )
    steps: ClassVar[int] = 3000
    block_length: int = 32
    hidden: int = 32
    positive_weight: float = 1.0
    cache: str = "none"

    def __post_init__(self) -> None:
        check_whole("block_length", self.block_length, 1)
        check_whole("hidden", self.hidden, 1)
        if not 0 < self.positive_weight < torch.inf:
            raise ValueError(f"positive_weight={self.positive_weight}: expected a number above 0")

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """The model's references, and roll-outs on them."""
        self.check(job)
        oracle = OracleRollout(self.block_length, job.max_new_tokens, TOGETHER, self.cache)
        oracle.config.check_components()
        student, steps = job.student(DIFFUSION), job.steps or self.steps
        engine = Engine(student.model, student.text)
        make = partial(oracle.references, engine)
        answered = job.student_answers(student, oracle.config, make, report)
        references = job.usable([pair for _, pair in answered], whole=False)
        traces = oracle.roll_outs(engine, references)
        config = job.train_config(self.config, steps)
        model = FilterMLP(self.block_length, self.hidden, job.seed)
        trainer = Trainer(model, [Stage(steps, lambda _: traces, self.loss)], config, job.out)
        use = USE.format(job.model, FILE, self.block_length, self.cache)
        return TrainingRun(trainer, partial(export, model), f"{use} PROMPT")

    def check(self, job: Job) -> None:
        """DllmError if the job asks for what no filter learns."""
        for name, why in REFUSED.items():
            if (value := getattr(job, name)) is not None:
                raise DllmError(f"--{name.replace('_', '-')} {value}: {why}")
        if self.block_length > job.max_new_tokens:
            raise DllmError(
                f"block_length={self.block_length}: expected at most --max-new-tokens "
                f"{job.max_new_tokens}, no window is longer"
            )

    def loss(
        self, model: nn.Module, traces: Traces, generator: torch.Generator, part: slice
    ) -> Tensor:
        """Binary cross-entropy (nats a candidate) of the steps `part`, divided by the candidates of
        all; `generator` is not drawn from.
        """
        nll = F.binary_cross_entropy_with_logits(
            model(traces.seen[part]),
            traces.right[part].float(),
            weight=traces.counted[part].float(),
            pos_weight=torch.tensor(self.positive_weight),
            reduction="sum",
        )
        return nll / traces.counted.sum()


def export(model: FilterMLP, directory: Path) -> None:
    """Write the filter into `directory`; DllmError if its weights are not finite."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        save_filter(directory / FILE, model.state_dict())
    except FileError:  # also a ValueError
        raise
    except ValueError as error:
        raise DllmError(f"the filter diverged: {error}, try a lower --lr") from error
