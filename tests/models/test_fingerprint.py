"""Fingerprints tell checkpoints apart, of files and of models."""

import pytest
import torch
from safetensors.torch import save_file

from dllm.models.fingerprint import fingerprint, fingerprint_stored, stored_samples
from dllm.models.loading import load_model
from tests.models.checkpoints import make, write_shards


def test_a_fingerprint_of_files_ignores_how_they_are_cut(tmp_path):
    made = make(tmp_path / "two", "dream")
    (tmp_path / "one").mkdir()
    save_file(dict(reversed(made.tensors.items())), tmp_path / "one" / "model.safetensors")
    digests = {fingerprint_stored(stored_samples(tmp_path / name)) for name in ("one", "two")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda name, t: (name, t.add(2**-8 * (torch.arange(t.numel()) == 63).view_as(t))),
        lambda name, t: (f"{name}x", t),
        lambda name, t: (name, t.reshape(2, -1)),
        lambda name, t: (name, t.bfloat16().float()),
        lambda name, t: (name, t.half()),
        lambda name, t: (name, t.view(torch.int32)),
    ],
)
def test_a_fingerprint_of_files_sees_any_tensor_change(tmp_path, change):
    made = make(tmp_path, "llada")
    before = fingerprint_stored(stored_samples(tmp_path))
    for name, tensor in made.tensors.items():
        if tensor.ndim < 2:
            continue
        changed = {k: t for k, t in made.tensors.items() if k != name}
        key, value = change(name, tensor)
        write_shards(tmp_path, changed | {key: value.contiguous()})
        assert fingerprint_stored(stored_samples(tmp_path)) != before, name


def test_samples_outlive_their_file(tmp_path):
    make(tmp_path, "llada")
    samples = stored_samples(tmp_path)
    before = fingerprint_stored(samples)
    for file in tmp_path.glob("*.safetensors"):
        with open(file, "r+b") as opened:
            opened.truncate(0)
    assert fingerprint_stored(samples) == before


def test_fingerprints_of_models_differ_by_weights_dtype_and_more(tmp_path):
    make(tmp_path / "a", "llada")
    make(tmp_path / "b", "llada", seed=1)
    a, b = (load_model(tmp_path / name) for name in "ab")
    digests = [fingerprint(a), fingerprint(b), fingerprint(a, "x"), fingerprint(a.bfloat16())]
    assert len(set(digests)) == 4
    assert fingerprint(load_model(tmp_path / "a")) == digests[0]
