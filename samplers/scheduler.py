"""Schedulers of the diffusers library, or with their interface, as commit rules."""

from __future__ import annotations

import copy
import importlib
import inspect
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.checks import ConfigError
from dllm.registry import ImportPath
from dllm.samplers.candidates import RULE_STREAM, Candidates
from dllm.samplers.noise import uniform
from dllm.samplers.protocols import Vocabulary
from dllm.samplers.rule import CommitRuleBase, Selection


@dataclass(frozen=True)
class Scheduler(CommitRuleBase):
    """Commit what `scheduler.step(logits, timestep, sample, ...)` fills in, with its tokens.

    scheduler: an object such as diffusers' BlockRefinementScheduler, or "module.Class" (also
    "module:Class"), which is then made without arguments. It must know a mask token: `step` takes
    `mask_token_id`, or its config has one. Schedulers of the uniform process, which replaces random
    tokens (EntropyBoundScheduler), are a ValueError.

    Each row is one call on its whole window (quotas are taken from its width): sample [1, W] is the
    mask token at masked positions and some other id elsewhere, where logits [1, W, V] are 0 and
    edits are ignored. Every call is made on a copy set to the window's step, so nothing else a
    scheduler remembers lasts from one step to the next; its draws come from a generator seeded for
    the row and step.
    """

    paper = "diffusers schedulers, github.com/huggingface/diffusers"
    by_row: ClassVar[bool] = True
    scheduler: ImportPath | Any
    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scheduler, str):
            object.__setattr__(self, "scheduler", made(self.scheduler))
        if not callable(getattr(self.scheduler, "step", None)):
            raise ValueError(f"scheduler={self.scheduler!r}: expected an object with a method step")
        if not self.takes("mask_token_id") and self.own_mask() is None:
            raise ValueError(
                f"scheduler={type(self.scheduler).__name__}: expected one that knows a mask token "
                "(as an argument of step, or in its config)"
            )
        if self.mask_token_id is not None and self.own_mask() not in (None, self.mask_token_id):
            raise ValueError(
                f"scheduler={type(self.scheduler).__name__}: its mask_token_id is "
                f"{self.own_mask()}, expected {self.mask_token_id}"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    def bind(self, vocabulary: Vocabulary) -> Scheduler:
        if self.mask_token_id is not None:
            return self
        return replace(self, mask_token_id=vocabulary.mask_id)

    def select(self, view: Candidates) -> Selection:
        if self.mask_token_id is None:
            raise ValueError("mask_token_id=None: expected the id of the mask token")
        # A plain loop: every row has a window, a step and random draws of its own, and schedulers
        # themselves go row by row.
        token = view.token.clone()
        for row in view.valid.any(1).nonzero()[:, 0].tolist():
            token[row] = self.step(view, self.mask_token_id, row)
        commit = view.valid & (token != self.mask_token_id)
        return Selection(commit, token=token.where(commit, view.token))

    def step(self, view: Candidates, mask: int, row: int) -> Tensor:
        """[K] what the scheduler puts at the candidates of `row`: the mask where it waits."""
        assert view.logits is not None
        width = int(view.end[row] - view.start[row])
        valid = view.valid[row]
        offset = (view.pos[row] - view.start[row])[valid]
        sample = view.token.new_full((1, width), 0 if mask else 1)
        sample[0, offset] = mask
        logits = view.logits.new_zeros(1, width, view.logits.shape[-1])
        logits[0, offset] = view.logits[row, valid]

        scheduler, timestep = self.at_step(int(view.window_step[row]), view.pos.device)
        options: dict[str, Any] = {}
        if self.takes("mask_token_id") and self.own_mask() is None:
            options["mask_token_id"] = mask
        if self.takes("generator"):
            keys = (view.key, view.step, view.start, torch.full_like(view.key, RULE_STREAM))
            seed = int(uniform(*(key[row] for key in keys)) * 2**52)
            options["generator"] = torch.Generator(view.pos.device).manual_seed(seed)
        result = scheduler.step(logits, timestep, sample, **options)
        filled = result.prev_sample if hasattr(result, "prev_sample") else result[0]
        if filled.shape != sample.shape:
            raise ConfigError(
                f"scheduler={type(scheduler).__name__}: gave a sample of shape "
                f"{list(filled.shape)}, expected {list(sample.shape)}"
            )
        token = torch.full_like(view.token[row], mask)
        token[valid] = filled[0, offset].to(token.dtype)
        return token

    def at_step(self, step: int, device: torch.device) -> tuple[Any, Any]:
        """A copy of the scheduler before step `step` of a window, and its timestep.

        diffusers 0.39 counts steps from 0 and keeps the last quota beyond its schedule; later ones
        take an entry of `timesteps`, from 1 down, and find the step from it.
        """
        scheduler = copy.copy(self.scheduler)
        steps = getattr(scheduler, "num_inference_steps", None)
        if steps is not None and hasattr(scheduler, "set_timesteps"):
            scheduler.set_timesteps(steps, device=device)
        timesteps = getattr(scheduler, "timesteps", None)
        if isinstance(timesteps, Tensor) and timesteps.is_floating_point():
            return scheduler, timesteps[min(step, len(timesteps) - 1)]
        return scheduler, step

    def own_mask(self) -> int | None:
        """The mask id in the scheduler's config."""
        config = getattr(self.scheduler, "config", None)
        mask: int | None = getattr(config, "mask_token_id", None)
        return mask

    def takes(self, name: str) -> bool:
        """Whether `step` has an argument `name`, or takes any (as for deprecated ones)."""
        scheduler: Any = self.scheduler
        arguments = inspect.signature(scheduler.step).parameters
        return name in arguments or any(a.kind is a.VAR_KEYWORD for a in arguments.values())


def made(path: str) -> Any:
    """The object made by the class at "module.Class" or "module:Class"; ValueError if none is."""
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"scheduler={path!r}: expected module.Class: {error}") from error
