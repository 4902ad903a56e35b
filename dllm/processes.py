"""Processes that share a run: one, or those that torchrun or accelerate launch started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # how long the fastest process waits for the slowest


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Those of the variables RANK and WORLD_SIZE, which both launchers set."""
        ranks = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if ranks.count > 1 and not torch.distributed.is_initialized():
            if ranks.backend != "gloo" and ranks.device is not None:
                torch.cuda.set_device(ranks.device)  # NCCL would take the first GPU for them all
            torch.distributed.init_process_group(ranks.backend, timeout=PATIENCE)
            atexit.register(torch.distributed.destroy_process_group)  # else its threads may abort
        return ranks

    @property
    def backend(self) -> str:
        """NCCL for tensors on GPUs, if each process here has one of its own; gloo otherwise."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        return "cpu:gloo,cuda:nccl" if torch.cuda.device_count() >= here else "gloo"

    @property
    def device(self) -> str | None:
        """The accelerator of this process among those of its machine; None without any."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item, from this process's own on."""
        return work[self.rank :: self.count]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()
