"""An adapter directory: what is written, what is read back, and one clear error for a bad one."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dllm
from dllm.cache.plan import Plan
from dllm.errors import DllmError, LoadError
from dllm.models import loading
from dllm.models.adapter import load_adapter, read_adapter, save_adapter
from dllm.models.fingerprint import fingerprint, fingerprint_stored, stored_samples
from dllm.models.loading import load_model, read_json, resolve, write_checkpoint
from dllm.models.lora import Lora, attach, attached, disabled, merge
from dllm.text import load_text
from tests.models.checkpoints import CONFIGS, VOCAB, make, write_shards

PLAN = Plan.full(6)
IDS = torch.arange(6)[None] * 11 % VOCAB
LORA = Lora(2, 3.0)


def logits(model):
    with torch.no_grad():
        return model(IDS, PLAN)


def adapted(base, lora=LORA, dtype="float32", config=None):
    """The checkpoint in `base` with a random adapter."""
    model = load_model(base, dtype=dtype, device="cpu", config=config)
    attach(model, lora, seed=0)
    generator = torch.Generator().manual_seed(9)
    for layer in attached(model).values():
        layer.lora_B.data.normal_(std=0.3, generator=generator)
    return model


def save(folder, family="llada", lora=LORA):
    """An adapter in folder/adapter on a checkpoint in folder/base."""
    make(folder / "base", family)
    model = adapted(folder / "base", lora)
    save_adapter(model, folder / "adapter", folder / "base")
    return model


@pytest.fixture
def saved(tmp_path):
    save(tmp_path)
    return tmp_path / "adapter"


def error(folder, load=load_model, **options):
    with pytest.raises(LoadError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder, **changes):
    """Change keys of adapter.json; None takes a key away."""
    content = json.loads((folder / "adapter.json").read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "adapter.json").write_text(json.dumps(content))


def replace(folder, tensors, **changes):
    """Other tensors (and metadata) in adapter.safetensors, with the digest to go with them."""
    file = folder / "adapter.safetensors"
    with safe_open(file, framework="pt") as old:
        metadata = {**old.metadata(), **changes}
    save_file(tensors, file, metadata)
    rewrite(folder, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


# --- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("targets", [(), ("q", "down"), ("head",)])
def test_what_is_saved_is_loaded(tmp_path, family, targets):
    model = save(tmp_path, family, Lora(3, 5, targets))
    apart = load_adapter(tmp_path / "adapter", dtype="float32", device="cpu")
    assert torch.equal(logits(apart), logits(model))
    with disabled(apart), disabled(model):
        assert torch.equal(logits(apart), logits(model))
    assert {layer.lora for layer in attached(apart).values()} == {Lora(3, 5, targets)}
    merge(model)
    loaded = load_model(tmp_path / "adapter", dtype="float32", device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter.json",
        "adapter.safetensors",
    ]


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
    model = adapted(tmp_path / "base", lora := Lora(4, 6.0, ("q", "down")))
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    matrices = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert len(matrices) == 8
    with safe_open(tmp_path / "adapter" / "adapter.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "dllm-lora-1", "rank": "4", "alpha": "6.0"}
    said = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert {**said, "fingerprint": 0, "sha256": 0} == {
        "format": "dllm-lora-1",
        "base": str(tmp_path / "base"),
        "fingerprint": 0,
        "sha256": 0,
        "rank": 4,
        "alpha": 6.0,
        "targets": ["q", "down"],
    }
    assert read_adapter(tmp_path / "adapter").lora == lora
    stored = {}
    for file in (tmp_path / "base").glob("*.safetensors"):
        stored |= load_file(file)
    merge(model)
    layer = model.layers[1]
    for name, weight in ((q, layer.attn.q.weight), (down, layer.down.weight)):
        a, b = (matrices[f"{name}.lora_{which}"].double().numpy() for which in "AB")
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
    with pytest.raises(LoadError, match=r"base .*base: unknown architecture \(model_type 'qwen2'"):
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
    rewrite(tmp_path / "adapter", config=["bd_size"])
    assert "adapter.json: config is ['bd_size'], expected an object" in error(tmp_path / "adapter")


def test_saving_again_replaces(tmp_path):
    save(tmp_path)
    model = adapted(tmp_path / "base", Lora(1, 7.0, ("v",)))
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    loaded = load_adapter(tmp_path / "adapter", device="cpu")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("broken", ["adapter.safetensors", "adapter.json"])
def test_an_interrupted_write_is_noticed(tmp_path, monkeypatch, broken):
    """The first time there is no adapter then; later the two files do not fit together."""
    make(tmp_path / "base", "llada")
    whole = os.replace

    def interrupted(source, target):
        if str(target).endswith(broken):
            raise KeyboardInterrupt
        whole(source, target)

    def write(rank):
        model = adapted(tmp_path / "base", Lora(rank))
        monkeypatch.setattr(loading.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_adapter(model, tmp_path / "adapter", tmp_path / "base")
        monkeypatch.setattr(loading.os, "replace", whole)

    write(2)
    assert "config.json: no such file" in error(tmp_path / "adapter")
    model = adapted(tmp_path / "base", Lora(2))
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    with torch.no_grad():
        next(iter(attached(model).values())).lora_A.add_(1.0)
    monkeypatch.setattr(loading.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    if broken == "adapter.json":
        assert "is corrupt, or not the file that adapter.json was" in error(tmp_path / "adapter")
    else:
        load_model(tmp_path / "adapter")  # still the old one
    assert not [file for file in (tmp_path / "adapter").iterdir() if file.name.startswith(".")]


# --- the base ---------------------------------------------------------------------------------


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
    assert "adapter.json: no model '../../models/base': expected a bundled model" in message


def test_a_relative_base_behind_a_link(tmp_path, monkeypatch):
    make(tmp_path / "base", "llada")
    (tmp_path / "deep" / "er" / "adapter").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er" / "adapter")
    monkeypatch.chdir(tmp_path)
    save_adapter(adapted("base"), "link", "base")
    load_model("link")
    load_model("deep/er/adapter")


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


def test_an_adapter_is_no_base(tmp_path, saved):
    model = adapted(saved)
    for base in (saved, saved.parent / "adapter"):
        with pytest.raises(LoadError, match=r"base .* is an adapter; expected a whole checkpoint"):
            save_adapter(model, tmp_path / "second", base)
    assert not (tmp_path / "second").exists()
    assert error(saved / "config.json", read_json).startswith(f"{saved} is an adapter; expected")
    assert "index.json: no such file" in error(saved / "index.json", read_json)
    rewrite(saved, base=str(saved))
    assert f"adapter.json: its base {saved} is an adapter; expected a whole" in error(saved)
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


# --- fingerprints -----------------------------------------------------------------------------


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


# --- bad files --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_matrices(saved, keep):
    file = saved / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: missing, truncated or corrupt" in error(saved)


def test_missing_matrices(saved):
    (saved / "adapter.safetensors").unlink()
    assert "adapter.safetensors: missing, truncated or corrupt" in error(saved)


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
    assert f"{saved / 'adapter.json'}: cannot be read as JSON" in error(saved)


def test_other_targets_than_the_tensors(saved):
    rewrite(saved, targets=["q"])
    assert "adapter.safetensors: tensors do not fit: 24 unexpected" in error(saved)


# --- by name ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_adapter(adapted(resolve("tiny"), Lora(2, 0.5)), folder, "tiny")
    return folder


def test_dllm_load_takes_the_tokenizer_of_the_base(tiny):
    assert json.loads((tiny / "adapter.json").read_text())["base"] == "tiny"
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
