"""One clear error for every adapter directory that is broken."""

import contextlib
import hashlib
import random
import resource

import pytest
import torch
from safetensors.torch import load_file

from dllm.errors import DllmError
from dllm.models.loading import load_model
from tests.models.adapters import error, replace, rewrite


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_matrices(saved, keep):
    file = saved / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: expected a safetensors file: truncated or corrupt" in error(saved)


def test_missing_matrices(saved):
    (saved / "adapter.safetensors").unlink()
    assert "adapter.safetensors: expected a safetensors file: No such file" in error(saved)


def test_one_wrong_bit(saved):
    file = saved / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 16
    file.write_bytes(content)
    assert f"{file}: is corrupt, or not the file that adapter.json was written with" in error(saved)


def test_tensors_that_do_not_fit(saved):
    tensors = load_file(saved / "adapter.safetensors")
    name = "model.transformer.blocks.0.k_proj.lora_B"
    matrix = tensors.pop(name)
    replace(saved, tensors)
    assert error(saved).endswith(f"adapter.safetensors: tensors do not fit: 1 missing: {name}")
    replace(saved, tensors | {name: matrix, "more": matrix.clone()})
    assert error(saved).endswith("adapter.safetensors: tensors do not fit: 1 unexpected: more")
    replace(saved, tensors | {name: matrix.T.contiguous()})
    assert error(saved).endswith(f"tensor {name!r} has shape [2, 32], expected [32, 2]")
    replace(saved, tensors | {name: matrix})
    load_model(saved)


@pytest.mark.parametrize(
    ("key", "value"), [("format", "pt"), ("rank", "3"), ("alpha", "4.0"), ("alpha", "")]
)
def test_metadata_that_contradicts(saved, key, value):
    replace(saved, load_file(saved / "adapter.safetensors"), **{key: value})
    assert f"adapter.safetensors: {key} is {value!r}, but adapter.json says" in error(saved)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "dllm-lora-2"}, "format is 'dllm-lora-2', expected 'dllm-lora-1'"),
        ({"format": None}, "format is None, expected 'dllm-lora-1'"),
        ({"rank": None}, "keys do not fit: 1 missing: rank"),
        ({"confg": {}}, "keys do not fit: 1 unexpected: confg"),
        ({"base": ""}, "base is '', expected text"),
        ({"fingerprint": 3}, "fingerprint is 3, expected text"),
        ({"sha256": ["a"]}, r"sha256 is ['a'], expected text"),
        ({"rank": 0}, "rank=0: expected a whole number of at least 1"),
        ({"alpha": "much"}, "alpha='much': expected a number"),
        ({"targets": "q"}, "targets='q': expected a tuple of module names"),
        ({"targets": {}}, "targets={}: expected a tuple of module names"),
        ({"targets": ["q_proj"]}, "target 'q_proj' names no linear layer; this model's: q, k"),
        ({"base": "tinyy"}, "no model 'tinyy': expected a bundled model"),
    ],
)
def test_bad_adapter_json(saved, changes, problem):
    rewrite(saved, **changes)
    assert f"{saved / 'adapter.json'}: {problem}" in error(saved)


def test_adapter_json_is_no_json(saved):
    (saved / "adapter.json").write_text("{")
    assert f"{saved / 'adapter.json'}: expected JSON" in error(saved)


def test_other_targets_than_the_tensors(saved):
    rewrite(saved, targets=["q"])
    assert "adapter.safetensors: tensors do not fit: 24 unexpected" in error(saved)


@pytest.mark.parametrize("rank", [10**6, 2**31 - 1, 2**31, 2**63])
def test_a_rank_that_the_file_does_not_have_is_refused_before_it_is_made(saved, rank):
    """Matrices of rank 10**6 would take gigabytes; they need not be in the file."""
    file = saved / "adapter.safetensors"
    tensors = {name: torch.zeros(0, 0) for name in load_file(file)}
    replace(saved, tensors, rank=str(rank))
    rewrite(saved, rank=rank)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = error(saved)
    assert "has shape [0, 0], expected" in message or f"rank={rank}: expected" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_what_cannot_be_adapter_matrices(saved):
    file = saved / "adapter.safetensors"
    content = file.read_bytes()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "adapter.safetensors" in error(saved)
    file.unlink()
    file.mkdir()
    assert "adapter.safetensors" in error(saved)
    file.rmdir()
    file.write_bytes(content)
    load_model(saved)


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_adapter_is_an_error_or_an_adapter(saved, seed):
    rng, file = random.Random(seed), saved / "adapter.safetensors"
    content, about = file.read_bytes(), (saved / "adapter.json").read_text()
    for _ in range(15):
        data = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(rng.choice((200, len(data))))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        (saved / "adapter.json").write_text(about)
        rewrite(saved, sha256=hashlib.sha256(data).hexdigest())
        with contextlib.suppress(DllmError):
            load_model(saved)
