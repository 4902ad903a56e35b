"""A checkpoint directory -> Decoder: names, dtypes, devices, and one clear error for a bad one."""

import json
import pickle

import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError, LoadError
from dllm.models import hub
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.hub import resolve
from dllm.models.loading import load_model
from tests.models.checkpoints import CONFIGS, VOCAB, make, write_shards

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture
def llada(tmp_path):
    return make(tmp_path / "llada", "llada")


def save_single(checkpoint, tensors=None):
    """Replace the two shards by one file."""
    for file in checkpoint.path.glob("model*"):
        file.unlink()
    save_file(tensors or checkpoint.tensors, checkpoint.path / "model.safetensors")


def error(path, **kwargs):
    with pytest.raises(LoadError) as caught:
        load_model(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is loaded ---------------------------------------------------------------------------


def test_every_tensor_is_loaded_once(tmp_path, family):
    checkpoint = make(tmp_path, family)
    decoder = load_model(tmp_path, device="cpu")
    weights = sorted(p.flatten().tolist() for p in decoder.parameters())
    assert weights == sorted(t.flatten().tolist() for t in checkpoint.tensors.values())
    assert not decoder.training
    assert not any(p.is_meta for p in decoder.parameters())


def test_single_file_equals_shards(llada):
    sharded = load_model(llada.path).state_dict()
    save_single(llada)
    torch.testing.assert_close(load_model(llada.path).state_dict(), sharded, rtol=0, atol=0)


def test_weights_survive_their_file(llada):
    save_single(llada)
    decoder = load_model(llada.path)
    before = decoder.embed.weight.clone()
    with open(llada.path / "model.safetensors", "r+b") as file:
        file.truncate(0)
    assert torch.equal(decoder.embed.weight, before)


def test_tied_head(tmp_path):
    checkpoint = make(tmp_path, "sdar", tie_word_embeddings=True)
    assert "lm_head.weight" not in checkpoint.tensors
    decoder = load_model(tmp_path)
    assert decoder.head.weight is decoder.embed.weight
    assert not decoder.head.weight.is_meta
    # some writers store the tied head all the same
    save_single(checkpoint, checkpoint.tensors | {"lm_head.weight": torch.zeros(VOCAB, 32)})
    assert torch.equal(load_model(tmp_path).head.weight, decoder.embed.weight)


def test_rotary_buffers_are_ignored(tmp_path):
    checkpoint = make(tmp_path, "dream")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_single(checkpoint, checkpoint.tensors | extra)
    load_model(tmp_path)


@pytest.mark.parametrize(
    ("stored", "key", "asked", "expected"),
    [
        (torch.bfloat16, None, "auto", torch.bfloat16),
        (torch.bfloat16, {"torch_dtype": "float32"}, "auto", torch.float32),
        (torch.float32, {"dtype": "bfloat16"}, "auto", torch.bfloat16),
        (torch.float16, None, "auto", torch.bfloat16),  # on the CPU
        (torch.float32, {"torch_dtype": "float16"}, "auto", torch.bfloat16),
        (torch.float32, {"torch_dtype": "torch.bfloat16"}, "auto", torch.bfloat16),
        (torch.float32, None, "float16", torch.float16),
        (torch.bfloat16, None, torch.float64, torch.float64),
    ],
)
def test_dtype(llada, stored, key, asked, expected):
    (llada.path / "config.json").write_text(json.dumps({**llada.config, **(key or {})}))
    write_shards(llada.path, {n: t.to(stored) for n, t in llada.tensors.items()})
    decoder = load_model(llada.path, dtype=asked, device="cpu")
    assert {p.dtype for p in decoder.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["int8", "half", torch.int8, None])
def test_unknown_dtype(llada, dtype):
    assert f"dtype {dtype!r} is unknown; expected auto, float32" in error(llada.path, dtype=dtype)


def test_unknown_dtype_in_config(tmp_path):
    make(tmp_path, "dream", torch_dtype="float8")
    assert "config.json: dtype 'float8' is unknown" in error(tmp_path)


def test_device(llada):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_model(llada.path).device.type == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu(llada):
    ids = torch.randint(VOCAB, (1, 21))
    here, there = (load_model(llada.path, "float32", device) for device in ("cpu", "cuda"))
    with torch.no_grad():
        logits = there(ids.cuda(), ForwardPlan.full(21, device="cuda")).cpu()
        torch.testing.assert_close(logits, here(ids, ForwardPlan.full(21)), rtol=0, atol=1e-4)


# --- bad checkpoints --------------------------------------------------------------------------


def test_truncated_shard(llada):
    shard = llada.path / SECOND
    shard.write_bytes(shard.read_bytes()[:-7])
    assert f"{shard}: expected a safetensors file: truncated or corrupt" in error(llada.path)


@pytest.mark.parametrize("content", [b"", b"garbage!" * 9])
def test_corrupt_shard(llada, content):
    (llada.path / FIRST).write_bytes(content)
    assert f"{llada.path / FIRST}: expected a safetensors file: truncated or corrupt" in error(
        llada.path
    )


def test_missing_shard(llada):
    (llada.path / FIRST).unlink()
    assert f"{llada.path / FIRST}: expected a safetensors file: No such file" in error(llada.path)


def test_wrong_shape(llada):
    name = "model.transformer.blocks.1.ff_out.weight"
    llada.tensors[name] = llada.tensors[name].T.contiguous()
    write_shards(llada.path, llada.tensors)
    message = error(llada.path)
    assert f"tensor '{name}' has shape [48, 32], but config.json asks for [32, 48]" in message
    assert "of-00002.safetensors: " in message


def test_missing_and_unexpected_tensors_are_listed(llada):
    moved = llada.tensors.pop("model.transformer.blocks.0.q_proj.weight")
    llada.tensors["model.transformer.blocks.0.att_proj.weight"] = moved
    write_shards(llada.path, llada.tensors)
    message = error(llada.path)
    assert "1 missing: model.transformer.blocks.0.q_proj.weight;" in message
    assert message.endswith("1 unexpected: model.transformer.blocks.0.att_proj.weight")


def test_long_lists_are_cut(llada):
    (llada.path / "config.json").write_text(json.dumps({**llada.config, "n_layers": 4}))
    assert "18 missing: " in error(llada.path)
    assert error(llada.path).endswith(" and 10 more")


def test_tensor_in_two_shards(llada):
    both = load_file(llada.path / FIRST) | load_file(llada.path / SECOND)
    save_file(both, llada.path / FIRST)
    assert f"is also in {FIRST}" in error(llada.path)


def test_quantised_tensor(llada):
    name = "model.transformer.wte.weight"
    llada.tensors[name] = llada.tensors[name].to(torch.int8)
    write_shards(llada.path, llada.tensors)
    assert f"tensor '{name}' is stored as I8, not one of F64, F32" in error(llada.path)


def test_pickles_are_never_opened(llada):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    for file in llada.path.glob("model*"):
        file.unlink()
    (llada.path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "only pickled weights (pytorch_model.bin)" in error(llada.path)


def test_no_weights_at_all(llada):
    for file in llada.path.glob("model*"):
        file.unlink()
    assert "no weights; expected model.safetensors" in error(llada.path)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", 7])
def test_index_may_not_leave_the_folder(llada, name):
    (llada.path / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    assert f"{INDEX}: {name!r} is not a file name" in error(llada.path)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        (INDEX, "{}", "expected a non-empty object 'weight_map'"),
        (INDEX, "{", "expected JSON"),
        ("config.json", "[]", "expected a JSON object, found list"),
        ("config.json", "{'a': 1}", "expected JSON"),
        ("config.json", '{"model_type": "gtp2"}', "unknown architecture"),
        ("config.json", '{"model_type": "llada"}', "the key 'activation_type' is missing"),
    ],
)
def test_bad_json_is_named(llada, file, content, problem):
    (llada.path / file).write_text(content)
    assert f"{llada.path / file}: {problem}" in error(llada.path)


def test_no_config(tmp_path):
    assert f"{tmp_path / 'config.json'}: no such file" in error(tmp_path)


# --- names of models --------------------------------------------------------------------------


def test_resolve_directory(tmp_path):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    with pytest.raises(DllmError, match=r"revision 'main' given, but .* is not a hub id"):
        resolve(tmp_path, revision="main")


def test_resolve_bundled(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(LoadError, match="bundled model 'tiny' is missing from this installation"):
        resolve("tiny")
    (tmp_path / "dllm" / "assets" / "tiny").mkdir(parents=True)
    assert resolve("tiny") == tmp_path / "dllm" / "assets" / "tiny"


@pytest.mark.parametrize(
    "name", ["tinyy", "./nope", "/no/where/at/all", "a/b/c", "", "x/../y", "a" * 5000]
)
def test_resolve_neither(name):
    with pytest.raises(LoadError) as caught:
        resolve(name)
    bundled = "a bundled model (tiny, tiny-sure, tiny-ar)"
    assert f"no model {name!r}: expected {bundled}, an existing directory" in str(caught.value)


def test_resolve_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(LoadError, match="is a file; expected the directory"):
        resolve(file)


def test_resolve_hub_asks_for_data_only(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repo, **kwargs: asked.update(kwargs, repo=repo) or str(tmp_path),
    )
    assert resolve("GSAI-ML/LLaDA-8B-Instruct", revision="abc") == tmp_path
    assert (asked["repo"], asked["revision"]) == ("GSAI-ML/LLaDA-8B-Instruct", "abc")
    assert not any("py" in p or "bin" in p for p in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (hub_errors.GatedRepoError, "is gated"),
        (hub_errors.RevisionNotFoundError, "has no such revision"),
        (hub_errors.RepositoryNotFoundError, "is neither a directory here nor a model on the hub"),
        (hub_errors.LocalEntryNotFoundError, "is neither .* the hub cannot be reached"),
        (hub_errors.HFValidationError, "could not be fetched from the hub: HFValidationError"),
    ],
)
def test_hub_failures(monkeypatch, kind, problem):
    def fail(*args, **kwargs):
        raise kind.__new__(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(LoadError, match=f"'some/model' at revision 'x' {problem}"):
        resolve("some/model", revision="x")


def test_hub_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match=r"'some/model' is neither .* cannot be reached \(offline"):
        resolve("some/model")


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_written_checkpoint_reads_back(tmp_path, family, shards):
    checkpoint = make(tmp_path / "a", family)
    decoder = load_model(checkpoint.path, device="cpu")
    write_checkpoint(decoder, tmp_path / "b", checkpoint.config, shards)
    again = load_model(tmp_path / "b", device="cpu")
    assert again.spec == decoder.spec
    torch.testing.assert_close(again.state_dict(), decoder.state_dict(), rtol=0, atol=0)
    stored = {}
    for file in (tmp_path / "b").glob("*.safetensors"):
        stored |= load_file(file)
    assert stored.keys() == checkpoint.tensors.keys()
    assert len(list((tmp_path / "b").iterdir())) == shards + 1 + (shards > 1)


def test_writing_over_another_number_of_shards(tmp_path):
    checkpoint = make(tmp_path, "dream", tie_word_embeddings=True)
    decoder = load_model(tmp_path).to(torch.bfloat16)
    for shards in (3, 1, 2):
        write_checkpoint(decoder, tmp_path, checkpoint.config, shards)
        files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
        assert len(files) == shards
        assert (tmp_path / INDEX).exists() == (shards > 1)
        again = load_model(tmp_path, device="cpu")
        assert again.dtype == torch.bfloat16
        assert torch.equal(again.layers[0].up.weight, decoder.layers[0].up.weight.cpu())


def test_interrupted_write_leaves_the_old_checkpoint(llada, tmp_path, monkeypatch):
    decoder = load_model(llada.path)
    write_checkpoint(decoder, tmp_path / "out", llada.config)
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}

    def half(tensors, filename, metadata):
        filename.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(decoder, tmp_path / "out", llada.config)
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == before


def test_config_of_another_model_is_not_written(llada, tmp_path):
    decoder = load_model(llada.path)
    with pytest.raises(
        LoadError, match=r"config describes ModelSpec.*but the decoder is ModelSpec"
    ):
        write_checkpoint(decoder, tmp_path / "out", {**llada.config, "mask_token_id": 9})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shards", [0, 1000])
def test_number_of_shards(llada, tmp_path, shards):
    with pytest.raises(LoadError, match=f"shards={shards}, expected 1 to 21"):
        write_checkpoint(load_model(llada.path), tmp_path / "out", llada.config, shards)
