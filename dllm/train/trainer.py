"""The loop of training: stages of batches and losses, Muon on the matrices and AdamW on the rest.

Knows no objective and no data: a recipe brings its model and stages. Checkpoints are safetensors,
and a run resumes bit for bit on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dllm.files import FileError
from dllm.jsonlog import JsonLog, read_records
from dllm.processes import Ranks
from dllm.train.state import FILE, load_state, save_state

LOG = "log.jsonl"


class Rows(Protocol):
    """A batch for a loss: tensors with one row for each example."""

    @property
    def size(self) -> int:
        """Tokens in the batch, padding included."""
        ...


# (model, batch, generator, rows of this part) -> loss (nats a row) of those rows, divided by the
# size of the whole batch. Batch and generator are on the CPU, whatever the model is on.
Loss = Callable[[Any, Any, torch.Generator, slice], Tensor]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a run: `steps` steps of one loss.

    batches: number of the step in the run -> its batch, and nothing else decides about that.
    rate: factor on the learning rates.
    """

    steps: int
    batches: Callable[[int], Rows]
    loss: Loss
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Options of a run. Learning rates rise over `warmup` steps and fall to zero over `decay`.

    muon_lr: of the layers' matrices; None trains them with AdamW and `lr`, like the rest.
    parts: a batch is computed in so many pieces, for want of memory; the sum is the same.
    betas, weight_decay: of AdamW.
    """

    batch_size: int = 64
    lr: float = 3e-3
    muon_lr: float | None = 0.01
    warmup: int = 100
    decay: int = 2000
    seed: int = 0
    save_every: int = 500
    parts: int = 1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0


def init_weights(model: nn.Module, seed: int) -> None:
    """Normal(0, 0.02) for tables and head, fan-in scaled matrices, zero residual outputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim < 2:
            continue
        if name.endswith(("o.weight", "o_proj.weight", "down.weight", "down_proj.weight")):
            nn.init.zeros_(p)
        else:
            std = p.shape[1] ** -0.5 if "layers." in name else 0.02
            nn.init.normal_(p, std=std, generator=generator)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a run changes, by name: all but the frozen ones."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the layers' matrices, AdamW for all other parameters."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in trained(model).items():
        muon = config.muon_lr is not None and p.ndim == 2 and "layers." in name
        (matrices if muon else rest).append(p)
    made: list[torch.optim.Optimizer] = []
    if matrices and config.muon_lr is not None:
        options: Any = {"weight_decay": 0.01, "adjust_lr_fn": "original"}
        made.append(torch.optim.Muon(matrices, lr=config.muon_lr, **options))
    if rest:
        options = {"betas": config.betas, "weight_decay": config.weight_decay, "fused": True}
        made.append(torch.optim.AdamW(rest, lr=config.lr, **options))
    return made


class Shared(nn.Module):
    """A model whose forward is a loss: what DDP wraps, so that its backward adds up gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Loss, batch: Rows, generator: torch.Generator, part: slice) -> Tensor:
        value = loss(self.model, batch, generator, part)
        # Every process must have a gradient for every parameter, even if it has no rows of the
        # batch, or if its rows do without some: the others would wait for ever.
        for parameter in trained(self.model).values():
            value = value + parameter.flatten()[:0].sum()
        return value


class Trainer:
    """Runs stages in order, from the checkpoint in `out` if there is one.

    model: with its first weights; what does not require a gradient stays as it is, and is not
    saved.

    Under torchrun every process takes its share of each batch, and DDP adds up the gradients; the
    result is that of one process but for rounding. On a CPU two processes of one thread are faster
    than one of two.
    """

    def __init__(
        self, model: nn.Module, stages: Sequence[Stage], config: TrainConfig, out: Path
    ) -> None:
        self.model, self.stages, self.config, self.out = model, stages, config, out
        self.optimizers = make_optimizers(self.model, config)
        self.base_lr = [group["lr"] for group in self.groups]
        self.step = 0
        ranks = Ranks.here()
        self.rank, self.processes = ranks.rank, ranks.count
        self.shared = None
        if ranks.count > 1:
            self.shared = DistributedDataParallel(Shared(model), broadcast_buffers=False)
        out.mkdir(parents=True, exist_ok=True)
        if (out / FILE).exists():
            self.step = load_state(out, trained(self.model), self.optimizers)

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> Stage:
        """The stage in force at `step`."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def lr_factor(self, step: int) -> float:
        rise = (step + 1) / self.config.warmup
        fall = (self.total_steps - step) / self.config.decay
        return max(0.0, min(1.0, rise, fall)) * self.stage(step).rate

    def run(
        self, log_every: int = 50, on_log: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        """Train to the end of the last stage; every `log_every` steps a line goes to log.jsonl.

        `on_log` gets the same numbers: step, loss (nats a row) and tokens_per_second.
        """
        with self.log() as log:
            self._run(log_every, on_log, log)

    def _run(
        self,
        log_every: int,
        on_log: Callable[[dict[str, float]], None] | None,
        log: Callable[[Mapping[str, float]], None],
    ) -> None:
        seen, started, losses = 0, time.perf_counter(), []
        while self.step < self.total_steps:
            losses.append(self.train_step())
            seen += self.last_tokens
            if self.step % log_every == 0:
                rate = seen / (time.perf_counter() - started)
                mean = sum(losses) / len(losses)
                numbers = {"step": self.step, "loss": mean, "tokens_per_second": rate}
                log({k: round(v, 4) for k, v in numbers.items()})
                if on_log is not None:
                    on_log(numbers)
                seen, started, losses = 0, time.perf_counter(), []
            if self.step % self.config.save_every == 0 or self.step == self.total_steps:
                self.save()

    def train_step(self) -> float:
        """One batch, one update; the batch's loss."""
        stage, pieces = self.stage(self.step), self.config.parts * self.processes
        device = next(self.model.parameters()).device
        batch = stage.batches(self.step)
        self.last_tokens = batch.size
        value = torch.zeros((), device=device)
        for piece in range(self.config.parts):
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
            rows = slice(self.rank + piece * self.processes, None, pieces)
            value += self.backward(stage.loss, batch, generator, rows, piece)
        if self.processes > 1:
            torch.distributed.all_reduce(value)
        parameters = [p for group in self.groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group, base in zip(self.groups, self.base_lr, strict=True):
            group["lr"] = base * self.lr_factor(self.step)
        for opt in self.optimizers:
            opt.step()
            opt.zero_grad()
        self.step += 1
        return value.item()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for opt in self.optimizers for group in opt.param_groups]

    def backward(
        self, loss: Loss, batch: Rows, generator: torch.Generator, rows: slice, piece: int
    ) -> Tensor:
        """The loss of this process's `rows`; their gradients are added to those of the step."""
        if self.shared is None:
            value = loss(self.model, batch, generator, rows)
            value.backward()  # type: ignore[no-untyped-call]
            return value.detach()
        last = piece == self.config.parts - 1
        with nullcontext() if last else self.shared.no_sync():
            value = cast(Tensor, self.shared(loss, batch, generator, rows))
            whole = value * self.processes  # DDP takes the mean, but losses are of the whole
            whole.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def save(self) -> None:
        """Write the trained weights, the optimizers' moments and the step, replaced in one go."""
        if self.rank == 0:
            state = {"step": self.step, "config": asdict(self.config)}
            save_state(self.out, trained(self.model), self.optimizers, state)

    @contextmanager
    def log(self) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """A function that adds a line to log.jsonl; on all processes but the first it does nothing.

        Lines of steps that came after the checkpoint leave the log: they will be run again. Another
        run in this directory is refused meanwhile.
        """
        if self.rank > 0:
            yield lambda _: None
            return
        with JsonLog(self.out / LOG) as log:
            for left in self.out.glob(f".{FILE}.*.tmp"):  # by a run that was killed while saving
                left.unlink()
            for number, record in read_records(self.out / LOG):
                if not isinstance(record.get("step"), int):
                    raise FileError(f"{log.name}, line {number}: expected the numbers of a step")
            log.keep(lambda record: record["step"] <= self.step)
            yield log.append
