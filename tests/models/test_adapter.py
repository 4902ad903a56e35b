"""An adapter directory: what is written, and what is read back."""

import json
import os
import shutil

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm
from dllm import files
from dllm.errors import LoadError
from dllm.models.adapter import load_adapter, save_adapter
from dllm.models.adapter_files import read_adapter
from dllm.models.families import FAMILIES
from dllm.models.hub import resolve
from dllm.models.loading import load_model
from dllm.models.lora import Lora, lora_config, matrices, merge
from dllm.text.tokenizer import load_text
from tests.models.adapters import (
    IDS,
    PLAN,
    adapted,
    error,
    logits,
    replace,
    rewrite,
    save,
    save_old,
)
from tests.models.checkpoints import CONFIGS, make

# --- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("targets", [(), ("q", "down"), ("head",)])
def test_what_is_saved_is_loaded(tmp_path, family, targets):
    model = save(tmp_path, family, Lora(3, 5, targets))
    apart = load_adapter(tmp_path / "adapter", dtype="float32", device="cpu")
    assert torch.equal(logits(apart), logits(model))
    assert (lora_config(apart).r, lora_config(apart).lora_alpha) == (3, 5)
    assert matrices(apart).keys() == matrices(model).keys()
    merge(model)
    loaded = load_model(tmp_path / "adapter", dtype="float32", device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_peft_reads_what_we_write(tmp_path):
    model = save(tmp_path, "dream", Lora(3, 5.0, ("q", "down")))
    base = load_model(tmp_path / "base", dtype="float32", device="cpu")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(theirs(IDS, PLAN), logits(model))
    assert not torch.equal(logits(load_model(tmp_path / "base", "float32")), logits(model))


@pytest.mark.parametrize("config", [{}, {"init_lora_weights": "gaussian", "lora_dropout": 0.1}])
def test_we_read_what_peft_writes(tmp_path, config):
    """It knows no fingerprint."""
    made = make(tmp_path / "base", "dream")
    base = load_model(made.path, dtype="float32", device="cpu")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q", "head"], **config)
    base.name_or_path = "../base"  # as transformers' models have it
    model = peft.get_peft_model(base, config).eval()
    for name, matrix in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(matrix, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", dtype="float32", device="cpu")
    with torch.no_grad():
        assert torch.equal(logits(loaded), model(IDS, PLAN))


def test_an_adapter_by_the_names_of_the_base(tmp_path):
    """As peft writes it where transformers holds the model."""
    model = save(tmp_path, "dream", Lora(3, 5.0, ("q", "down")))
    file, family = tmp_path / "adapter" / "adapter_model.safetensors", FAMILIES["dream"]
    tensors = {}
    for key, tensor in load_file(file).items():
        module, which, _ = key.removeprefix("base_model.model.").rsplit(".", 2)
        name = family.tensor_name(f"{module}.{which}")
        tensors[f"base_model.model.{name}.weight"] = tensor
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in tensors
    save_file(tensors, file, {"format": "pt"})
    rewrite(tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    loaded = load_adapter(tmp_path / "adapter", dtype="float32", device="cpu")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("targets", [(), ("q", "down")])
def test_the_format_before_peft_is_read(tmp_path, targets):
    model = save_old(tmp_path, Lora(2, 3.0, targets))
    assert read_adapter(tmp_path / "adapter").base == "../base"
    loaded = load_adapter(tmp_path / "adapter", dtype="float32", device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(LoadError, match=r"has a adapter.json; expected a directory of the ad"):
        save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    make(tmp_path / "base", "llada", seed=1)
    assert "made for the base '../base' of fingerprint" in error(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("family", "q", "down"),
    [
        ("llada", "model.transformer.blocks.1.q_proj", "model.transformer.blocks.1.ff_out"),
        ("dream", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
    ],
)
def test_the_files_are_those_described(tmp_path, family, q, down):
    """The change of a stored weight, worked out from the files alone."""
    make(tmp_path / "base", family)
    model = adapted(tmp_path / "base", Lora(4, 6.0, ("q", "down")))
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    change = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(change) == 8
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    said = {key: said[key] for key in ("peft_type", "r", "lora_alpha", "base_model_name_or_path")}
    base = str(tmp_path / "base")
    assert list(said.values()) == ["LORA", 4, 6.0, base]
    stored = {}
    for file in (tmp_path / "base").glob("*.safetensors"):
        stored |= load_file(file)
    merge(model)
    layer = model.layers[1]
    for ours, name, weight in (
        ("layers.1.attn.q", q, layer.attn.q.weight),
        ("layers.1.down", down, layer.down.weight),
    ):
        key = f"base_model.model.{ours}.lora_{{}}.weight"
        a, b = (change[key.format(which)].double().numpy() for which in "AB")
        expected = stored[f"{name}.weight"].double().numpy() + 1.5 * np.einsum("or,ri->oi", b, a)
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_any_dtype_loads_the_base_of_another(saved, dtype):
    loaded = load_model(saved, dtype=dtype, device="cpu")
    assert {p.dtype for p in loaded.parameters()} == {getattr(torch, dtype)}
    exact = logits(load_model(saved, dtype="float64", device="cpu"))
    assert (logits(loaded) - exact).norm() < 0.1 * exact.norm()


def test_an_adapter_trained_in_another_dtype_than_the_stored(tmp_path):
    make(tmp_path / "base", "sdar", tie_word_embeddings=True)
    model = adapted(tmp_path / "base", dtype="bfloat16")
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    loaded = load_adapter(tmp_path / "adapter", dtype="bfloat16", device="cpu")
    assert torch.equal(logits(loaded), logits(model))


def test_another_config_goes_along(tmp_path):
    """An autoregressive base, adapted as a block-diffusion model."""
    config = CONFIGS["fast_dllm_v2"]
    made = make(tmp_path / "base", "fast_dllm_v2")
    plain = {k: v for k, v in config.items() if k not in ("bd_size", "mask_token_id")}
    plain |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (made.path / "config.json").write_text(json.dumps(plain))
    model = adapted(made.path, config=config)
    with pytest.raises(LoadError, match=r"base .*base: an autoregressive model \(.* 'qwen2'"):
        save_adapter(model, tmp_path / "adapter", made.path)
    other = {**config, "bd_size": 16}
    with pytest.raises(LoadError, match=r"is ModelSpec\(.*block_length=16.*but the model is"):
        save_adapter(model, tmp_path / "adapter", made.path, config=other)
    assert not (tmp_path / "adapter").exists()
    save_adapter(model, tmp_path / "adapter", made.path, config=config)
    merge(model)
    loaded = load_model(tmp_path / "adapter")
    assert loaded.spec == model.spec
    assert torch.equal(logits(loaded), logits(model))
    assert load_model(tmp_path / "adapter", config=other).spec.block_length == 16
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    replace(tmp_path / "adapter", load_file(file), config='["bd_size"]')
    assert "config is ['bd_size'], expected an object" in error(tmp_path / "adapter")


def test_saving_again_replaces(tmp_path):
    save(tmp_path)
    model = adapted(tmp_path / "base", Lora(1, 7.0, ("v",)))
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    loaded = load_adapter(tmp_path / "adapter", device="cpu")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("broken", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_interrupted_write_is_noticed(tmp_path, monkeypatch, broken):
    """There is no adapter then, the old one, or a message that the two files do not fit."""
    make(tmp_path / "base", "llada")
    folder, whole = tmp_path / "adapter", os.replace

    def interrupted(source, target):
        if str(target).endswith(broken):
            raise KeyboardInterrupt
        whole(source, target)

    def write(rank):
        model = adapted(tmp_path / "base", Lora(rank))
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                save_adapter(model, folder, tmp_path / "base")

    write(2)
    assert "config.json: no such file" in error(folder)
    save_adapter(adapted(tmp_path / "base", Lora(2)), folder, tmp_path / "base")
    write(3)
    if broken == "adapter_config.json":
        assert "safetensors: rank is '3', but adapter_config.json says 2" in error(folder)
    else:
        load_model(folder)  # still the old one
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


# --- by name ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_adapter(adapted(resolve("tiny"), Lora(2, 0.5)), folder, "tiny")
    return folder


def test_dllm_load_takes_the_tokenizer_of_the_base(tiny):
    assert (
        json.loads((tiny / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    )
    engine, base = dllm.load(tiny, device="cpu"), dllm.load("tiny", device="cpu")
    prompt = "Copy: one two three"
    assert engine.text.encode(prompt) == base.text.encode(prompt)
    assert engine.generate(prompt, max_new_tokens=8).token_ids
    weights = zip(engine.model.parameters(), base.model.parameters())
    assert sum(not torch.equal(a, b) for a, b in weights) == 7 * 6


def test_a_tokenizer_of_its_own_goes_first(tiny, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(tiny, own)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("tiny") / name, own)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "mine"}))
    messages = [{"role": "user", "content": "Copy"}]
    spec = load_model(own).spec
    assert load_text(own, spec).render(messages) == "mine"
    assert load_text(tiny, spec).render(messages) == load_text(resolve("tiny"), spec).render(
        messages
    )


def test_a_broken_tokenizer_of_its_own_is_not_passed_over(tiny, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(tiny, own)
    (own / "tokenizer.json").write_text("{")
    with pytest.raises(LoadError, match=r"own: no tokenizer that works without remote code"):
        dllm.load(own)


def test_an_adapter_drafts(tiny):
    import dllm.verify

    engine = dllm.verify.load("tiny-ar", drafter=tiny, dtype="float32", device="cpu")
    alone = dllm.verify.load("tiny-ar", dtype="float32", device="cpu")
    prompt = "Copy: one two three"
    drafted = engine.generate(prompt, max_new_tokens=12)
    assert drafted.token_ids == alone.generate(prompt, max_new_tokens=12).token_ids
