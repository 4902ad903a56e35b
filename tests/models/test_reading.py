"""Bytes of shards into weights: in pieces, in the order of the files, converted, and told."""

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from dllm import progress
from dllm.errors import LoadError
from dllm.models import reading
from dllm.models.loading import load_model
from dllm.models.reading import read_weights
from dllm.models.stored import survey
from tests.models.checkpoints import make

CPU = torch.device("cpu")


@pytest.fixture
def shard(tmp_path):
    tensors = {
        "z": torch.randn(31, 9),
        "a": torch.randn(5).half(),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5, dtype=torch.float64),
        "b": torch.randn(2, 3, 4).bfloat16(),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors", tensors


@pytest.mark.parametrize("chunk", [8, 64, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_value_in_pieces_of_any_size(shard, monkeypatch, chunk, dtype):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    file, tensors = shard
    stored, told = survey(file), []
    found = dict(read_weights(stored, dtype, CPU, told.append))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor.to(dtype), rtol=0, atol=0)
    assert sum(told) == sum(t.nbytes for t in tensors.values())
    assert max(told) <= chunk


def test_in_the_order_of_the_file(shard):
    stored = survey(shard[0])
    order = [name for name, _ in read_weights(stored, torch.float32, CPU, lambda n: None)]
    assert order == sorted(stored, key=lambda name: stored[name].begin)
    assert order != sorted(order)


def test_no_memory_is_one_error(shard, monkeypatch):
    stored = survey(shard[0])

    def fail(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nframe #0: ...")

    weights = read_weights(stored, torch.float32, CPU, lambda n: None)
    next(weights)
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(LoadError, match=r"x.safetensors: no memory for '.*' \(Default.* memory\)$"):
        next(weights)


@pytest.mark.parametrize(
    ("terminal", "least", "shown"), [(1, 0, True), (1, 2**28, False), (0, 0, 0)]
)
def test_the_bar_is_for_large_ones_on_a_terminal(
    tmp_path, monkeypatch, capfd, terminal, least, shown
):
    screen = io.StringIO()

    def console(stderr, highlight):
        assert stderr
        return Console(file=screen, force_terminal=bool(terminal), width=80)

    monkeypatch.setattr(progress, "Console", console)
    monkeypatch.setattr(progress, "LEAST", least)
    make(tmp_path / "my[model]", "llada")
    load_model(tmp_path / "my[model]", device="cpu")
    assert ("loading my[model]" in screen.getvalue()) == shown
    assert ("100%" in screen.getvalue() or "kB" in screen.getvalue()) == shown
    assert capfd.readouterr() == ("", "")
