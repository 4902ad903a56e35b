"""Every registered part with options that make it busy on short answers, to be combined.

A table has a name's specs by name; the test of each table says that no part is missing.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm.samplers.egp import ExtremelyGreedy
from dllm.samplers.learn2pd import Learn2PD, save_filter
from dllm.samplers.scheduler import Scheduler
from tests.fakes import PLAIN

LONGEST = 10  # max_new_tokens


class Halves:
    """A scheduler that fills the surer half of what is masked, by fp32: what ties must tie."""

    def step(self, logits: Tensor, timestep: Any, sample: Tensor, mask_token_id: int) -> Any:
        conf, token = logits.float().softmax(-1).max(-1)
        masked = sample == mask_token_id
        order = conf.masked_fill(~masked, -1).argsort(dim=1, descending=True, stable=True)
        first = order[:, : math.ceil(int(masked.sum()) / 2)]
        return (sample.scatter(1, first, token.gather(1, first)),)


def random_filter(seed: int, block: int = LONGEST) -> Learn2PD:
    """A filter whose answers are as good as random; low thresholds let several tokens pass."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"in.weight": (4, block), "in.bias": (4,), "out.weight": (block, 4)}
    layers = {
        n: torch.randn(s, generator=rng) for n, s in (shapes | {"out.bias": (block,)}).items()
    }
    with tempfile.TemporaryDirectory() as folder:
        save_filter(Path(folder) / "filter", layers)
        return Learn2PD(str(Path(folder) / "filter"), threshold=0.6)


def references(seed: int) -> ExtremelyGreedy:
    rows = np.random.default_rng(seed).choice(PLAIN, (10, LONGEST)).tolist()
    return ExtremelyGreedy(tuple(map(tuple, rows)))


RULES: dict[str, list[Any]] = {
    "quota": ["quota", "quota:steps=3", "quota:steps=4,remasking=random"],
    "dream": ["dream:steps=4", "dream:alg=entropy,steps=5", "dream:alg=topk_margin,alg_temp=0.5"],
    "threshold": ["threshold:threshold=0.5", "threshold:threshold=0.8"],
    "factor": ["factor:factor=2", "factor:compat=true"],
    "frechet": ["frechet:delta=0.05"],
    "localleap": ["localleap:threshold=0.7,relaxed=0.3,radius=2"],
    "entropy": ["entropy:threshold=1.2"],
    "eb": ["eb:bound=0.8", "eb:bound=1.5,error=margin"],
    "klass": ["klass:threshold=0.2,kl_threshold=1.5,history=1", "klass:threshold=0,kl_threshold=3"],
    "hierarchical": ["hierarchical:low=0.2,high=0.7"],
    "dus": ["dus"],
    "pc": ["pc", "pc:steps=4,decay=0"],
    "fhs": ["fhs", "fhs:count=3"],
    "saber": ["saber", "saber:count=5"],
    "learn2pd": [random_filter(0), random_filter(1)],
    "scheduler": [Scheduler(Halves())],
}
WHERE: dict[str, list[str]] = {
    "fixed": ["fixed"],
    "adablock": ["adablock:threshold=0.1,share=0.5", "adablock:exact=true,threshold=0,share=1"],
    "slowfast": ["slowfast:explore=2,reach=0.2", "slowfast:block_length=none"],
    "multi": ["multi:add=0,most=3,full=0.5", "multi:add=0.4,full=0.8"],
}
STOPS = {
    "eotp": ["eotp:threshold=0.3", "eotp:threshold=0"],
    "prophet": ["prophet:at=2,length=3,early=3,middle=2,late=1", "prophet:marker=ab,late=0"],
}
CHANGES = {"credit": ["credit", "credit:slots=1,alpha=3"]}
GUESSES = {"freedave": ["freedave:length=3", "freedave"], "ssd": ["ssd:length=3"]}

# Each policy with options that compute everything in every step, and with some that do not.
EXACT: dict[str, list[str]] = {
    "none": ["none"],
    "prefix": ["prefix:refresh=1"],
    "dual": ["dual:refresh=1"],
    "block": ["block"],
    "vicinity": ["vicinity:refresh=1", "vicinity:warmup=99", "vicinity:before=99,after=99"],
    "delayed": ["delayed:refresh=1"],
    "delayed-greedy": ["delayed-greedy:refresh=1", "delayed-greedy:refresh=1,ahead=1"],
    "freeze": ["freeze:refresh=1"],
    "elastic": ["elastic:refresh=1", "elastic:refresh=1,gamma=2,tracked=2"],
    "interval": ["interval:prompt=1,answer=1", "interval:prompt=1,share=1.0"],
    "sparse": ["sparse:refresh=1", "sparse:refresh=1,keep=0.0", "sparse:refresh=1,width=1"],
}
LAZY: dict[str, list[str]] = {
    "none": ["none"],
    "prefix": ["prefix", "prefix:refresh=3"],
    "dual": ["dual", "dual:refresh=2"],
    "block": ["block", "block:exact=false"],
    "vicinity": ["vicinity:before=1,after=2,warmup=1", "vicinity:before=2,after=0,refresh=3"],
    "delayed": [
        "delayed",
        "delayed:refresh=3",
        "delayed:mode=pd,refresh=4",
        "delayed:mode=prefill",
    ],
    "delayed-greedy": ["delayed-greedy", "delayed-greedy:refresh=6,neighbours=1,ahead=2"],
    "freeze": ["freeze", "freeze:refresh=3"],
    "elastic": ["elastic", "elastic:window=3,gamma=0.97,tracked=2", "elastic:refresh=3,gamma=2"],
    "interval": ["interval", "interval:prompt=3,answer=2,share=0.0", "interval:prompt=5,answer=3"],
    "sparse": ["sparse", "sparse:keep=0.2,width=1", "sparse:refresh=3"],
}
# The blocks of attention that a policy's models have (None: it goes both ways); others: None, 4.
BLOCKS: dict[str, list[int | None]] = {"block": [1, 4, 8], "elastic": [None], "sparse": [None]}
