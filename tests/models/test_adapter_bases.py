"""The base of an adapter: where it is looked for, and that it is the right one."""

import shutil

import pytest
import torch

from dllm.errors import DllmError, LoadError
from dllm.models.adapter import load_adapter, save_adapter
from dllm.models.adapter_files import read_adapter
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.fingerprint import fingerprint_stored, stored_samples
from dllm.models.hub import resolve
from dllm.models.loading import load_model
from dllm.models.lora import merge
from dllm.models.stored import read_json
from dllm.text.tokenizer import load_text
from tests.models.adapters import (
    adapted,
    error,
    logits,
    rewrite,
)
from tests.models.checkpoints import VOCAB, make, write_shards


def test_a_relative_base_is_relative_to_the_adapter(tmp_path, monkeypatch):
    make(tmp_path / "models" / "base", "llada")
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = adapted("models/base")
    save_adapter(model, "runs/adapter", "models/base")
    assert read_adapter(tmp_path / "runs" / "adapter").base == "../../models/base"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(logits(load_adapter("../runs/adapter", device="cpu")), logits(model))
    (tmp_path / "moved").mkdir()
    for name in ("models", "runs"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    load_model(tmp_path / "moved" / "runs" / "adapter")
    shutil.rmtree(tmp_path / "moved" / "models")
    message = error(tmp_path / "moved" / "runs" / "adapter")
    assert "adapter: no model '../../models/base': expected a bundled model" in message


def test_a_relative_base_behind_a_link(tmp_path, monkeypatch):
    make(tmp_path / "base", "llada")
    (tmp_path / "deep" / "er" / "adapter").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er" / "adapter")
    monkeypatch.chdir(tmp_path)
    save_adapter(adapted("base"), "link", "base")
    load_model("link")
    load_model("deep/er/adapter")


def test_a_base_inside_that_is_called_like_a_bundled_one(tmp_path, monkeypatch):
    make(tmp_path / "tiny", "llada")
    monkeypatch.chdir(tmp_path)
    save_adapter(adapted("./tiny"), ".", "./tiny")
    assert read_adapter(tmp_path).base == "tiny"
    assert load_model(tmp_path).spec.vocab_size == VOCAB


def test_a_base_at_home(tmp_path, monkeypatch):
    make(tmp_path / "base", "llada")
    monkeypatch.setenv("HOME", str(tmp_path))
    save_adapter(adapted(tmp_path / "base"), tmp_path / "adapter", "~/base")
    monkeypatch.setenv("HOME", "/elsewhere")
    load_model(tmp_path / "adapter")


def test_a_hub_base_is_resolved_by_its_id(tmp_path, monkeypatch):
    make(tmp_path / "downloaded", "llada")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **_: str(tmp_path / "downloaded")
    )
    model = adapted(tmp_path / "downloaded")
    save_adapter(model, tmp_path / "adapter", "some/model")
    assert read_adapter(tmp_path / "adapter").base == "some/model"
    assert torch.equal(logits(load_adapter(tmp_path / "adapter", device="cpu")), logits(model))
    # the adapter may come from the hub, too
    assert resolve("an/adapter") == tmp_path / "downloaded"


def test_another_base_is_refused_by_both_names(saved):
    base = saved.parent / "base"
    right = fingerprint_stored(stored_samples(base))
    make(base, "llada", seed=1)
    wrong = fingerprint_stored(stored_samples(base))
    message = error(saved)
    assert message.startswith(
        f"{saved}: made for the base {str(base)!r} of fingerprint {right[:12]}"
    )
    assert message.endswith(f"but {base} has {wrong[:12]}: other weights")


def test_a_model_that_is_not_its_base_is_not_saved(tmp_path):
    make(tmp_path / "base", "llada")
    make(tmp_path / "other", "llada", seed=1)
    model = adapted(tmp_path / "base")
    with pytest.raises(
        LoadError, match=r"other: is not the model's base, .*wte.weight' is another"
    ):
        save_adapter(model, tmp_path / "adapter", tmp_path / "other")
    model.layers[1].mlp_norm.weight.data[3] += 0.5
    problem = r"base: is not the model's base, '.*blocks.1.ff_norm.weight' is another tensor"
    with pytest.raises(LoadError, match=problem):
        save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_lost_a_tensor(tmp_path):
    made = make(tmp_path / "base", "llada")
    model = adapted(made.path)
    del made.tensors["model.transformer.ln_f.weight"]
    write_shards(made.path, made.tensors)
    with pytest.raises(LoadError, match=r"base: is not the model's base, '.*ln_f.weight' is"):
        save_adapter(model, tmp_path / "adapter", made.path)


def test_an_adapter_is_no_base(tmp_path, saved):
    model = adapted(saved)
    for base in (saved, saved.parent / "adapter"):
        with pytest.raises(LoadError, match=r"base .* is an adapter; expected a whole checkpoint"):
            save_adapter(model, tmp_path / "second", base)
    assert not (tmp_path / "second").exists()
    assert error(saved / "config.json", read_json).startswith(f"{saved} is an adapter; expected")
    assert "index.json: no such file" in error(saved / "index.json", read_json)
    rewrite(saved, base_model_name_or_path=str(saved))
    assert f"adapter: its base {saved} is an adapter; expected a whole" in error(saved)
    assert f"its base {saved} is an adapter" in error(saved, load_text, spec=model.spec)


def test_an_adapter_and_a_checkpoint_do_not_share_a_directory(saved):
    base = saved.parent / "base"
    with pytest.raises(LoadError, match=r"base: has a config.json; expected a directory of the ad"):
        save_adapter(adapted(base), base, base)
    shutil.copy(base / "config.json", saved)
    assert error(saved).endswith("holds an adapter and a checkpoint (config.json); expected one")


def test_a_model_without_an_adapter_is_not_saved(saved):
    base = saved.parent / "base"
    with pytest.raises(DllmError, match="no adapter is attached to this Decoder"):
        save_adapter(load_model(base), saved.parent / "none", base)


def test_an_attached_model_is_no_checkpoint(tmp_path):
    made = make(tmp_path / "base", "llada")
    model = adapted(made.path)
    with pytest.raises(LoadError, match="an adapter is attached to the decoder: merge it first"):
        write_checkpoint(model, tmp_path / "merged", made.config)
    merge(model)
    write_checkpoint(model, tmp_path / "merged", made.config)
    assert torch.equal(logits(load_model(tmp_path / "merged", device="cpu")), logits(model))
