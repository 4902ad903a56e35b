"""Checkpoints that are broken, or made to do harm: one LoadError, at once, and little memory."""

import json
import os
import random
import struct
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

import dllm
from dllm.errors import LoadError
from dllm.models.loading import load_model
from dllm.text.tokenizer import load_tokenizer
from tests.models.checkpoints import CONFIGS, make

INDEX, FIRST = "model.safetensors.index.json", "model-00001-of-00002.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4976698672\n"
JSON_FILES = ("config.json", INDEX)


@pytest.fixture
def llada(tmp_path):
    return make(tmp_path / "llada", "llada").path


def error(path, load=load_model):
    began = time.perf_counter()
    with pytest.raises(LoadError) as caught:
        load(path)
    assert time.perf_counter() - began < 20  # the first one may import transformers
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


# --- what stands where a file should ----------------------------------------------------------


@pytest.mark.parametrize("name", [*JSON_FILES, FIRST])
def test_a_git_lfs_pointer(llada, name):
    (llada / name).write_text(LFS)
    assert f"{llada / name}: is a Git-LFS pointer, not the file itself; run `git lfs" in error(
        llada
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "merges.txt"])
def test_a_git_lfs_pointer_for_a_tokenizer(llada, name):
    (llada / name).write_text(LFS)
    assert f"{llada / name}: is a Git-LFS pointer" in error(llada, load_tokenizer)


def fifo(file):
    os.mkfifo(file)


def device(file):
    file.symlink_to("/dev/zero")


def folder(file):
    file.mkdir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [*JSON_FILES, FIRST, "model.safetensors"])
@pytest.mark.parametrize("kind", [fifo, device, folder])
def test_no_regular_file(llada, name, kind):
    (llada / name).unlink(missing_ok=True)
    kind(llada / name)
    assert f"{llada / name}: expected a" in (told := error(llada))
    assert "found a directory, a pipe or a device" in told


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", [fifo, device, folder])
def test_no_regular_file_for_a_tokenizer(llada, name, kind):
    kind(llada / name)
    assert f"{llada / name}: expected a regular file" in error(llada, load_tokenizer)
    error(llada, dllm.load)


def test_a_tokenizer_of_any_size(llada):
    (llada / "tokenizer.json").write_bytes(b"")
    os.truncate(llada / "tokenizer.json", 2**33)
    assert "tokenizer.json: expected at most 256 MiB" in error(llada, load_tokenizer)


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_any_size_or_depth(llada, name):
    (llada / name).write_text("[" * 100_000)
    assert f"{llada / name}: this JSON is nested too deep" in error(llada)
    (llada / name).write_text('{"a": ' * 100_000)
    assert f"{llada / name}: this JSON is nested too deep" in error(llada)
    os.truncate(llada / name, 2**33)
    assert f"{llada / name}: expected at most 64 MiB" in error(llada)


# --- sizes ------------------------------------------------------------------------------------

SHAPES = {
    *("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "head_dim"),
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("value", [10**6, 10**9, 2**24, 2**63, 10**400, -1, 0, 2.5, "2", None, []])
def test_sizes(tmp_path, family, value):
    """Nothing is built before the headers are read: no size costs memory or time."""
    config = make(tmp_path, family).config
    for key in SHAPES & config.keys():
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        assert str(tmp_path) in error(tmp_path), key


def test_a_million_layers_are_counted_not_built(llada):
    config = json.loads((llada / "config.json").read_text())
    (llada / "config.json").write_text(json.dumps({**config, "n_layers": 10**6}))
    assert "config.json asks for 1000000 layers, but there are only 21 tensors" in error(llada)


# --- the index --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../../x.safetensors", "/etc/passwd", "a/b.safetensors", ".", "..", "", ["a"], {}, 7, None],
)
def test_the_index_names_files_of_the_folder(llada, name):
    names = json.loads((llada / INDEX).read_text())
    names["weight_map"]["x"] = name
    (llada / INDEX).write_text(json.dumps(names))
    assert str(llada) in error(llada)


# --- headers ----------------------------------------------------------------------------------


def header(about, data=b"", size=None):
    raw = about if isinstance(about, bytes) else json.dumps(about).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def one(**changes):
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        header(b"{}", size=2**63),
        header(b"{}", size=2**64 - 1),
        header(b"{}", size=3),
        header(b"[" * 100_000),
        header(one(shape=[2**63]), b"1234"),
        header(one(shape=[2**32, 2**32]), b"1234"),
        header(one(shape=[-1]), b"1234"),
        header(one(shape=[1.5]), b"1234"),
        header(one(shape="1"), b"1234"),
        header(one(data_offsets=[0, 2**63]), b"1234"),
        header(one(data_offsets=[4, 0]), b"1234"),
        header(one(data_offsets=[0]), b"1234"),
        header(one(dtype="F99"), b"1234"),
        header(one(dtype=None), b"1234"),
        header(one(), b"12345678"),
        header({"a": one()["a"], "b": one()["a"]}, b"1234"),
        header({"__metadata__": {"a": 1}}),
        header({"__metadata__": 7}),
        b"",
        b"\0" * 7,
        b"\0" * 8,
    ],
)
def test_headers(llada, content):
    (llada / FIRST).write_bytes(content)
    assert f"{llada / FIRST}: " in error(llada)


def test_a_name_twice_in_a_header(llada):
    tensor = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    (llada / FIRST).write_bytes(header(b"{%b,%b}" % (tensor, tensor), b"1234"))
    assert f"{llada / FIRST}: corrupt shard (its header has a name twice)" in error(llada)


def test_a_header_of_a_hundred_megabytes(llada):
    """The library reads it, in 24 seconds and 2 GB."""
    (llada / FIRST).write_bytes(header(b"{" + b" " * 2**24 + b"}"))
    assert "its header would have 16777218 bytes, more than 16777216" in error(llada)


def test_a_shard_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    from dllm.models import checkpoint_reader

    checkpoint = make(tmp_path, "dream")
    for file in tmp_path.glob("model*"):
        file.unlink()
    save_file(checkpoint.tensors, tmp_path / "model.safetensors")

    def cut(*args):
        os.truncate(tmp_path / "model.safetensors", 20_000)

    monkeypatch.setattr(checkpoint_reader, "check_memory", cut)
    assert "model.safetensors: was cut short while it was read" in error(tmp_path)


# --- anything ---------------------------------------------------------------------------------

VALUES = (
    None,
    True,
    0,
    -1,
    2,
    3,
    97,
    2**31,
    2**63,
    10**30,
    0.5,
    1e308,
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
)

SEEDS = 30


def mutate_json(file: Path, draw: random.Random) -> None:
    """One value somewhere in the file becomes another, or one key goes."""
    content = json.loads(file.read_text())
    inside = content.get("weight_map", content)
    key = draw.choice(list(inside))
    if draw.random() < 0.2:
        del inside[key]
    else:
        inside[key] = draw.choice([*VALUES, float("nan"), float("inf"), *inside.values()])
    file.write_text(json.dumps(content))


def mutate_bytes(file: Path, draw: random.Random) -> None:
    """A few bytes are changed, most of them in a header, or the end of the file is cut off."""
    content = bytearray(file.read_bytes())
    for _ in range(draw.randint(1, 4)):
        reach = len(content) if draw.random() < 0.2 else min(len(content), 2000)
        content[draw.randrange(reach)] = draw.choice(b'0129{}[]",:ae-\x00\xff')
    if draw.random() < 0.1:
        del content[draw.randrange(len(content)) :]
    file.write_bytes(content)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", [*JSON_FILES, FIRST])
def test_mutations_load_or_are_refused(tmp_path, family, name):
    """Seeded; whatever comes, it is a LoadError or a model with all its weights."""
    config = make(tmp_path, family).config
    good, file, refused = (tmp_path / name).read_bytes(), tmp_path / name, 0
    for seed in range(SEEDS):
        draw = random.Random(f"{family} {name} {seed}")
        file.write_bytes(good)
        text = name != FIRST
        (mutate_json if text and draw.random() < 0.7 else mutate_bytes)(file, draw)
        try:
            model = load_model(tmp_path, dtype="float32", device="cpu")
        except LoadError:
            refused += 1
        else:
            assert not any(p.is_meta for p in model.parameters()), seed
            assert model.spec.num_layers == 2
            assert config["vocab_size"] == model.spec.vocab_size
    assert refused > 4


def test_without_a_tokenizer_a_checkpoint_takes_ids(llada, capfd):
    engine = dllm.load(llada, device="cpu")
    assert engine.text is None
    output = engine.generate([[7, 8, 9]], max_new_tokens=4, sampler="threshold")[0]
    assert len(output.token_ids) <= 4
    with pytest.raises(dllm.DllmError, match="no tokenizer: give prompts as lists of token ids"):
        engine.generate("Hello", max_new_tokens=4)
    assert capfd.readouterr() == ("", "")
    assert "no tokenizer; expected tokenizer.json" in error(llada, load_tokenizer)


def test_the_bundled_target_is_told_what_it_is():
    with pytest.raises(
        LoadError, match=r"an autoregressive model .* the target of `dllm speculate"
    ):
        dllm.load("tiny-ar")
