"""Safetensors files that parts read: right, or one error each."""

from __future__ import annotations

import json
import os
import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dllm.config import DecodeConfig
from dllm.engine import Engine
from dllm.errors import DllmError
from dllm.files import FileError
from dllm.models.markov import FILE, MarkovHead, load_markov, save_markov
from dllm.registry import SpecError
from dllm.samplers.learn2pd import save_filter
from dllm.tensors import opened, read_tensors
from dllm.verify.components import sources_of
from dllm.verify.sources.datastore import Datastore
from tests.fakes import VOCAB, FakeModel, FakeText

BLOCK = 4


def write_filter(path: Path) -> None:
    layers = {"in.weight": torch.ones(3, BLOCK), "in.bias": torch.zeros(3)}
    save_filter(path, layers | {"out.weight": torch.ones(BLOCK, 3), "out.bias": torch.ones(BLOCK)})


def write_table(path: Path) -> None:
    save_file({"frequency": torch.full((VOCAB,), 0.1)}, path)


def write_datastore(path: Path) -> None:
    Datastore.build([[3, 4, 6, 7, 3, 4, 9], [7, 3, 4]], path)


def write_markov(path: Path) -> None:
    save_markov(MarkovHead(VOCAB, 2), path.parent)
    (path.parent / FILE).rename(path)


def decode(**options: Any) -> Any:
    return Engine(FakeModel(), FakeText()).generate(
        [[3, 4]], max_new_tokens=8, block_length=BLOCK, **options
    )


def use_filter(path: Path) -> None:
    decode(sampler=f"learn2pd:filter={path}")


def use_table(path: Path) -> None:
    decode(sampler=f"pc:table={path}")


def use_datastore(path: Path) -> None:
    [part] = sources_of([f"datastore:path={path},least=1"])
    text = part.open()
    text.extend([7, 3, 4])
    text.branches(3)
    text.logp([], np.array([3, 4]))


def use_markov(path: Path) -> None:
    (path.parent / FILE).unlink(missing_ok=True)
    path.rename(path.parent / FILE)
    try:
        head = load_markov(path.parent, VOCAB)
        assert head is not None
        head.bias(torch.tensor([3]))
    finally:
        (path.parent / FILE).rename(path)


KINDS = {
    "filter": (write_filter, use_filter),
    "table": (write_table, use_table),
    "datastore": (write_datastore, use_datastore),
    "markov": (write_markov, use_markov),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_what_was_written_is_used(kind, tmp_path):
    write, use = KINDS[kind]
    write(tmp_path / "file")
    use(tmp_path / "file")


@each_kind
def test_what_is_no_such_file_is_refused_at_once(kind, tmp_path):
    _, use = KINDS[kind]
    file = tmp_path / "file"
    makers = {
        "directory": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "zeros without end": lambda: file.symlink_to("/dev/zero"),
        "text": lambda: file.write_text("a filter"),
        "empty": file.touch,
        "lfs": lambda: file.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n"),
        "huge header": lambda: file.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        "deep header": lambda: file.write_bytes(struct.pack("<Q", 10**5) + b"[" * 10**5),
        "foreign": lambda: save_file({"x": torch.zeros(1)}, file),
    }
    for name, make in makers.items():
        make()
        with pytest.raises(DllmError) as error:
            use(file)
        assert name != "lfs" or "git lfs pull" in str(error.value)
        file.rmdir() if file.is_dir() else file.unlink()


@each_kind
@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "I64", "BOOL", "F4", "U8"])
def test_another_number_type_is_an_error_or_read(kind, dtype, tmp_path):
    """The header says so; what the bytes then are is up to it."""
    write, use = KINDS[kind]
    write(tmp_path / "file")
    header, data = parts(tmp_path / "file")
    sizes = {"BF16": 2, "I64": 8, "F4": 0.5}
    end = 0
    for about in header.values():
        if "dtype" in about:
            count = int(np.prod(about["shape"]) * sizes.get(dtype, 1))
            about |= {"dtype": dtype, "data_offsets": [end, end + count]}
            end += count
    joined(tmp_path / "file", header, (data * 8)[:end])
    with suppress(DllmError):
        use(tmp_path / "file")


@each_kind
@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_file_is_an_error_or_used(kind, seed, tmp_path):
    write, use = KINDS[kind]
    write(tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    rng, refused = random.Random(seed), 0
    for _ in range(25):
        if rng.random() < 0.3:
            header, data = parts(tmp_path / "good")
            joined(tmp_path / "file", changed(rng, header), data)
        else:
            data = bytearray(content)
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path / "file").write_bytes(data[: rng.choice((None, None, rng.randrange(300)))])
        try:
            use(tmp_path / "file")
        except DllmError:
            refused += 1
    assert refused


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def joined(path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def changed(rng: random.Random, value: Any) -> Any:
    """A header in which something is another value."""
    if rng.random() < 0.1:
        return rng.choice((-1, 0, 2**31, 2**63, 1.5, "", None, [], [2**40], {}, "F64"))
    if isinstance(value, dict):
        return {key: changed(rng, item) for key, item in value.items()}
    return [changed(rng, item) for item in value] if isinstance(value, list) else value


def test_a_name_or_a_format_that_is_not_there(tmp_path):
    file = tmp_path / "file"
    save_file({f"x{i}": torch.zeros(1) for i in range(100)}, file, {"format": "y" * 10**5})
    with pytest.raises(FileError, match=r"format is 'yy.*expected 'mine'") as error:
        read_tensors(file, ["x1"], format="mine")
    assert len(str(error.value)) < 1000
    with pytest.raises(FileError, match=r"holds 'x0', 'x1', 'x10', 'x11' and 96 more, expected"):
        read_tensors(file, ["z"])
    assert read_tensors(file, ["x1"])[0]["x1"].shape == (1,)
    with (
        pytest.raises(FileError, match="mine: expected a safetensors file"),
        opened(tmp_path / "none", called="mine"),
    ):
        pass


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("learn2pd", "'learn2pd': filter is missing: expected learn2pd:filter=..."),
        ("learn2pd:threshold=0.5", "filter is missing: expected learn2pd:filter=..."),
        ("learn2pd:filter=none.safetensors", "filter='none.safetensors': expected a safetensors"),
        ("scheduler", "scheduler is missing: expected scheduler:scheduler=..."),
    ],
)
def test_what_a_part_cannot_do_without_is_named(spec, message):
    with pytest.raises(SpecError) as error:
        DecodeConfig(sampler=spec).make("sampler")
    assert message in str(error.value)


def test_a_datastore_cannot_do_without_its_path():
    with pytest.raises(SpecError, match=r"path is missing: expected datastore:path=\.\.\."):
        sources_of(["datastore"])


def test_a_filter_for_other_blocks_is_one_error(tmp_path):
    write_filter(tmp_path / "f")
    engine = Engine(FakeModel(), FakeText())
    for block in (5, None):
        with pytest.raises(DllmError, match="made for blocks of 4 tokens, got a window of"):
            engine.generate(
                [[3, 4]],
                sampler=f"learn2pd:filter={tmp_path / 'f'}",
                block_length=block,
                max_new_tokens=8,
            )
