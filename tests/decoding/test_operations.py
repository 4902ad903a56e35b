"""The weight of a step: tensor operations outside the forward, and looks at the device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dllm.config import DecodeConfig
from dllm.decoding import forward, speculation, step
from dllm.decoding.rows import DecodeRequest
from dllm.decoding.speculation import SpeculatingBatch
from dllm.decoding.transfer import receive
from tests.cache.models import decoder
from tests.fakes import FakeText
from tests.specs import CHANGES, RULES, STOPS, WHERE

# what makes the host wait for a value of the device
LOOKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")
CACHES = ["none", "prefix", "dual", "vicinity", "delayed", "block"]
RUNNERS = ["elastic", "sparse", "interval", "freeze", "delayed-greedy"]
# never more than a few tokens, so that a window lasts for some steps
SLOW = {
    "threshold:threshold=1": 95,
    "quota:count=1": 95,
    "localleap:threshold=1,relaxed=1": 150,
    "eb:bound=0": 150,
    "entropy:threshold=0": 150,
    "frechet:delta=1": 150,
    "factor:factor=0.001": 150,
    "klass:threshold=1": 150,
}


class Operations(TorchDispatchMode):
    """Counts the operations that run outside the model, and those that look at a value anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.outside, self.looks = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        index = args[1] if name.startswith(("index", "_index")) and len(args) > 1 else ()
        masks = [t for t in index or () if t is not None and t.dtype == torch.bool]
        if name in LOOKS or (isinstance(index, (list, tuple)) and masks):
            self.looks[name] += 1
        if not self.inside:
            self.outside[name] += 1
        return func(*args, **(kwargs or {}))


def one_step(
    monkeypatch: pytest.MonkeyPatch, configs: list[DecodeConfig], block: int | None = None
) -> tuple[int, int, Counter[str]]:
    """Operations outside the forward of a step within a window, transfers, looks at values."""
    batch = SpeculatingBatch(decoder(0, block), FakeText(), configs[0], len(configs), 40)
    batch.join([DecodeRequest([3, 4, 6, 7], config) for config in configs])
    batch.step()
    batch.step()
    operations, transfers = Operations(), 0
    logits = batch.forward._logits

    def inside(*args: Any) -> torch.Tensor:
        operations.inside = True
        try:
            return logits(*args)
        finally:
            operations.inside = False

    def received(tensor: torch.Tensor) -> Any:
        nonlocal transfers
        transfers += 1
        return receive(tensor)

    monkeypatch.setattr(batch.forward, "_logits", inside)
    for module in (step, forward, speculation):
        monkeypatch.setattr(module, "receive", received, raising=False)
    with operations:
        batch.step()
    assert len(batch.active) == len(configs), "nobody left"
    return operations.outside.total(), transfers, operations.looks


def config_of(**options: Any) -> DecodeConfig:
    return DecodeConfig(**({"max_new_tokens": 24, "block_length": 8} | options))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sampler", SLOW)
def test_a_step_is_light_and_waits_once_whatever_the_batch(monkeypatch, sampler, cache):
    config = config_of(sampler=sampler, cache=cache)
    block = 4 if cache == "block" else None
    found = [one_step(monkeypatch, [config] * count, block) for count in (1, 8, 32)]
    assert found == [(found[0][0], 1, Counter())] * 3
    assert found[0][0] <= SLOW[sampler]


def test_four_rules_in_one_batch(monkeypatch):
    rules = ["threshold:threshold=1", "quota:count=1", "localleap:threshold=1,relaxed=1"]
    configs = [config_of(sampler=rule, cache="dual") for rule in [*rules, "eb:bound=0"]]
    operations, transfers, looks = one_step(monkeypatch, configs * 2)
    assert (transfers, looks) == (1, Counter())
    assert operations <= 190


def shipped() -> list[Any]:
    """A step with each component that is shipped, but for those that go row by row themselves."""
    alone = {"scheduler", "learn2pd"}  # diffusers' schedulers know one row; a filter is a file
    found = [{"sampler": specs[0]} for name, specs in RULES.items() if name not in alone]
    found += [{"planner": specs[0]} for specs in WHERE.values()]
    found += [{"stop_rule": specs[-1]} for specs in STOPS.values()]
    found += [{"transform": specs[0]} for specs in CHANGES.values()]
    found += [{"cache": cache} for cache in RUNNERS]
    found += [{"temperature": 0.7}, {"temperature": 0.7, "top_p": 0.9, "top_k": 3}]
    found += [{"cfg_scale": 0.5}, {"cfg_scale": 0.5, "cache": "dual"}]
    return [pytest.param(each, id=", ".join(map(str, each.values()))) for each in found]


@pytest.mark.parametrize("options", shipped())
def test_every_component_stays_within_its_bounds(monkeypatch, options):
    config = config_of(**({"sampler": "quota:count=1"} | options))
    found = [one_step(monkeypatch, [config] * count) for count in (1, 8)]
    (one, reads, looks), (eight, more, also) = found
    assert max(one, eight) <= 250
    assert reads == more
    # elastic's own test of every layer but the last is a look at the device: that is the method
    assert max(reads + looks.total(), more + also.total()) <= (
        4 if "elastic" in options.values() else 1
    )
