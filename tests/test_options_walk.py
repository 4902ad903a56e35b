"""Every option of every part, with values that nobody should give: one error, or an answer.

The parts and their options are found in the tables: a new one is walked without a word here.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

from dllm.config import COMPONENTS, DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.eval.tasks import TASKS
from dllm.registry import Registry
from dllm.train.recipes import RECIPES
from dllm.verify import HFTarget
from dllm.verify.components import COMPONENTS as OF_SPECULATION
from dllm.verify.config import SpecConfig
from dllm.verify.engine import SpecEngine
from tests.cache.models import decoder
from tests.fakes import FakeModel, FakeText
from tests.verify.scripted import knowing
from tests.verify.tiny_targets import VOCAB, tiny_target

LARGE = (10**9, 2**31 - 1, 1e308)  # what may be a good value
SMALL = (0, 1e-320, inf)
VALUES = (
    *(*LARGE, *SMALL),
    *(-1, 1, 2**31, 2**63, 2**70, -(2**63), 10**400, nan, -inf),
    *("", "1e400", "none", "true", "x" * 10**5, "\x1b[2J", "9" * 5000, "1+2", "10+" * 10**5),
)
OBJECTS = (
    *VALUES,
    *(None, True, (), ("a",), [1], [None], {}, 1j, b"a", object, ["0:"], [f"{10**30}:a"]),
)
SECONDS, BYTES = 30, 2**30  # of one option, and bytes that it may take


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """An option that hangs or allocates fails, and takes nothing else along."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def places(registries: dict[str, Registry[Any]]) -> list[Any]:
    """(option, component, field) of everything that a spec can set."""
    return [
        pytest.param(option, name, field.name, id=f"{option}-{name}-{field.name}")
        for option, registry in registries.items()
        for name in registry
        for field in fields(registry.find(name))
        if field.init
    ]


ALL = {**COMPONENTS, **OF_SPECULATION, "task": TASKS, "recipe": RECIPES}


@cache  # two tests ask
def accepted(option: str, name: str, key: str) -> list[str]:
    """Specs with one of `VALUES` that are no error; those without extremes are left out."""
    found = []
    for value in VALUES:
        spec = f"{name}:{key}={value}"
        try:
            ALL[option].build(spec)
        except DllmError:
            continue
        if value in (*LARGE, *SMALL, "none", "1+2"):
            found.append(spec)
    return found


@pytest.mark.parametrize(("option", "name", "key"), places(ALL))
def test_a_value_makes_a_component_or_one_error(option, name, key):
    accepted(option, name, key)


@pytest.mark.parametrize(("option", "name", "key"), places(COMPONENTS))
def test_what_makes_a_component_decodes(option, name, key):
    for spec in accepted(option, name, key):
        decode(**{option: spec})


@pytest.mark.parametrize("name", [field.name for field in fields(DecodeConfig)])
def test_an_option_of_decoding(name):
    for value in OBJECTS:
        decode(**{name: value})


def decode(**given: Any) -> None:
    """An answer, or a DllmError."""
    model = decoder() if "cache" in given else FakeModel()
    usual = {"max_new_tokens": 5, "block_length": 4}
    try:
        outputs = Engine(model, FakeText()).generate([[3, 4], [6]], **{**usual, **given})
    except DllmError:
        return
    assert {output.finish_reason for output in outputs} <= {"eos", "length", "stop"}


@pytest.fixture(scope="module")
def engine():
    model = tiny_target("llama", torch.float32)
    out = model.generate(torch.tensor([[9, 4]]), max_new_tokens=9, do_sample=False, pad_token_id=0)
    return SpecEngine(HFTarget(model), None, knowing(out.tolist(), VOCAB))


# which searches an acceptance rule fits, and which temperature: elsewhere it is refused at once
FITTING = {"kseq": "kseq", "rsd": "rsd", "block": "sample", "ratio": "sample"}


@pytest.mark.parametrize(("option", "name", "key"), places(OF_SPECULATION))
def test_what_makes_a_component_verifies(engine, option, name, key):
    drawn = option == "accept" or name in ("sample", "rsd", "kseq", "greedy-plus-one")
    more = {"temperature": float(drawn), "lossless": option != "accept"}
    if option == "accept":
        more["search"] = FITTING.get(name, "product")
    for spec in accepted(option, name, key):
        verify(engine, **{"sources" if option == "source" else option: spec}, **more)


@pytest.mark.parametrize("name", [field.name for field in fields(SpecConfig)])
def test_an_option_of_speculation(engine, name):
    for value in OBJECTS:
        verify(engine, **{name: value})


def verify(engine: SpecEngine, **given: Any) -> None:
    try:
        output = engine.generate([9, 4], **{"max_new_tokens": 6, **given})
    except DllmError:
        return
    assert output.finish_reason in ("eos", "length", "stop")
