"""One clear error for every adapter directory that is broken."""

import contextlib
import random
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm.errors import DllmError
from dllm.models.loading import load_model
from tests.models.adapters import error, replace, rewrite, save_old


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_matrices(saved, keep):
    file = saved / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: expected a safetensors file: truncated or corrupt" in error(saved)


def test_missing_matrices(saved):
    (saved / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors: expected a safetensors file: No such file" in error(saved)


def test_pickled_matrices_are_never_opened(saved):
    """peft would take them."""
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    assert error(saved) == (
        f"{saved}: only pickled matrices, which can run code and are never opened"
    )


def test_tensors_that_do_not_fit(saved):
    tensors = load_file(saved / "adapter_model.safetensors")
    name = "base_model.model.layers.0.attn.k.lora_B.weight"
    matrix = tensors.pop(name)
    replace(saved, tensors)
    assert error(saved).endswith(
        "adapter_model.safetensors: tensors do not fit: 1 missing: layers.0.attn.k.lora_B"
    )
    replace(saved, tensors | {name: matrix, "more": matrix.clone()})
    assert error(saved).endswith(
        "adapter_model.safetensors: tensors do not fit: 1 unexpected: more"
    )
    replace(saved, tensors | {name: matrix.T.contiguous()})
    assert error(saved).endswith(
        f"tensor {name!r} has shape [2, 32] of F32, expected [32, 2] of F64, F32, BF16, F16"
    )
    replace(saved, tensors | {name: matrix})
    load_model(saved)


@pytest.mark.parametrize(("key", "value"), [("rank", "3"), ("alpha", "4.0"), ("alpha", "")])
def test_metadata_that_contradicts(saved, key, value):
    replace(saved, load_file(saved / "adapter_model.safetensors"), **{key: value})
    assert f"adapter_model.safetensors: {key} is {value!r}, but adapter_config.json says" in error(
        saved
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"peft_type": ...}, "peft_type is None, expected 'LORA'"),
        ({"r": ...}, "rank is '2', but adapter_config.json says None"),
        ({"use_dora": True}, "use_dora is True, but only plain LoRA is implemented"),
        ({"use_rslora": True}, "use_rslora is True, but only plain LoRA"),
        ({"bias": "all"}, "bias is 'all', but only plain LoRA"),
        ({"modules_to_save": ["head"]}, "modules_to_save is ['head'], but only"),
        ({"rank_pattern": {"q": 3}}, "rank_pattern is {'q': 3}, but only plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', but only plain LoRA"),
        ({"megatron_config": {"a": 1}}, "megatron_config is {'a': 1}, but only plain LoRA"),
        ({"megatron_core": "os"}, "megatron_core is 'os', but only plain LoRA"),
        ({"of_a_later_peft": 1}, "of_a_later_peft is 1, but only plain LoRA"),
        ({"base_model_name_or_path": None}, "names no base: None, expected text"),
        ({"base_model_name_or_path": ["tiny"]}, "names no base: ['tiny'], expected text"),
        ({"base_model_name_or_path": "tinyy"}, "no model 'tinyy': expected a bundled model"),
        ({"target_modules": {}}, None),
        ({"target_modules": "(a+)+$"}, None),
        ({"target_modules": 3}, "targets=3: expected a tuple of module names"),
        ({"target_modules": ["q", 3]}, "targets=('q', 3): expected a tuple of module names"),
        ({"target_modules": ["query"]}, "do not fit: 28 unexpected"),
        ({"target_modules": ["q"]}, "do not fit: 24 unexpected"),
        ({"target_modules": ["layers", "q", "head"]}, "do not fit: 2 missing: head.lora_A, head"),
        ({"auto_mapping": {"parent_library": "os"}, "peft_version": "9"}, None),
    ],
)
def test_bad_adapter_config(saved, changes, problem):
    """None: what has no say in what the matrices compute."""
    rewrite(saved, **changes)
    if problem is None:
        load_model(saved)
    else:
        assert problem in (told := error(saved))
        assert str(saved) in told


def test_a_rank_without_metadata_is_checked_too(saved):
    file = saved / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    load_model(saved)
    for rank, problem in (
        (0, "rank=0: expected a whole number of at least 1"),
        ("2", "rank='2': expected a whole number"),
        (3, "has shape [2, 32] of F32, expected [3, 32]"),
    ):
        rewrite(saved, r=rank)
        assert problem in error(saved)
    rewrite(saved, r=2, lora_alpha="much")
    assert "adapter_config.json: alpha='much': expected a number" in error(saved)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "dllm-lora-2"}, "format is 'dllm-lora-2', expected 'dllm-lora-1'"),
        ({"rank": ...}, "rank is '2', but adapter.json says None"),
        ({"fingerprint": 3}, "fingerprint is 3, expected text"),
        ({"base": ""}, "names no base: '', expected text"),
        ({"config": []}, "config is [], expected an object"),
        ({"targets": ["q_projection"]}, "tensors do not fit: 28 unexpected"),
    ],
)
def test_bad_files_of_the_format_before_peft(tmp_path, changes, problem):
    save_old(tmp_path)
    rewrite(tmp_path / "adapter", "adapter.json", **changes)
    assert problem in error(tmp_path / "adapter")


def test_adapter_config_is_no_json(saved):
    (saved / "adapter_config.json").write_text("{")
    assert f"{saved / 'adapter_config.json'}: expected JSON" in error(saved)


@pytest.mark.parametrize("rank", [10**6, 2**31 - 1, 2**31, 2**63])
def test_a_rank_that_the_file_does_not_have_is_refused_before_it_is_made(saved, rank):
    """Matrices of rank 10**6 would take gigabytes; they need not be in the file."""
    file = saved / "adapter_model.safetensors"
    tensors = {name: torch.zeros(0, 0) for name in load_file(file)}
    replace(saved, tensors, rank=str(rank))
    rewrite(saved, r=rank)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = error(saved)
    assert "has shape [0, 0] of F32, expected" in message or f"rank={rank}: expected" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_what_cannot_be_adapter_matrices(saved):
    file = saved / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "adapter_model.safetensors" in error(saved)
    file.unlink()
    file.mkdir()
    assert "adapter_model.safetensors" in error(saved)
    file.rmdir()
    file.write_bytes(content)
    load_model(saved)


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_adapter_is_an_error_or_an_adapter(saved, seed):
    rng, file = random.Random(seed), saved / "adapter_model.safetensors"
    content = file.read_bytes()
    for _ in range(15):
        data = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(rng.choice((200, len(data))))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with contextlib.suppress(DllmError):
            load_model(saved)
