"""How fast a checkpoint that is not in memory becomes a model, beside reading its files alone.

    python -m benchmarks.load [--gb 5]

Writes random weights of LLaDA-8B's shapes, with as many layers as fit, into a temporary folder,
drops them from the system's cache before every run, and takes turns.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import arguments, write_result
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.loading import load_model
from dllm.models.spec import ModelSpec
from dllm.train.tiny import config_json

LAYER, REST = 218_112_000, 2 * 517_996_544  # parameters of LLaDA-8B


def write(folder: Path, gigabytes: float) -> list[Path]:
    """A checkpoint of about that many 10^9 bytes in bfloat16; its shards."""
    ids = {"mask_id": 126336, "eos_id": 126081, "pad_id": 126081, "eot_id": 126348}
    layers = max(1, round((gigabytes * 1e9 / 2 - REST) / LAYER))
    sizes = {"vocab_size": 126464, "hidden_size": 4096, "mlp_size": 12288, "head_dim": 128}
    spec = ModelSpec(
        **sizes, **ids, family="llada", num_layers=layers, num_heads=32, num_kv_heads=32,
        norm_eps=1e-5, rope_theta=5e5, rope_fp32=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = Decoder(spec).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    write_checkpoint(model, folder, config_json(spec), shards=3)
    return sorted(folder.glob("*.safetensors"))


def cold(files: list[Path], run: Callable[[], object]) -> float:
    """Seconds of `run` while none of the files is in the system's cache."""
    for file in files:
        with file.open("rb") as opening:
            os.fsync(opening.fileno())
            os.posix_fadvise(opening.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def sequential(files: list[Path]) -> None:
    space = bytearray(2**24)
    for file in files:
        with file.open("rb", buffering=0) as opening:
            while opening.readinto(space):
                pass


def main() -> None:
    options = arguments(
        __doc__, {"--gb": (5.0, "10^9 bytes of the checkpoint"), "--runs": (3, "of each")}
    )
    with tempfile.TemporaryDirectory() as name:
        files = write(Path(name), options.gb)
        size = sum(file.stat().st_size for file in files)
        runs = {"read": lambda: sequential(files), "load": lambda: load_model(name, device="cpu")}
        seconds: dict[str, list[float]] = {kind: [] for kind in runs}
        for _ in range(options.runs):
            for kind, run in runs.items():
                seconds[kind].append(round(cold(files, run), 2))
    speeds = {kind: size / 1e9 / statistics.median(found) for kind, found in seconds.items()}
    result = {"bytes": size, "seconds": seconds, "gb_per_second": speeds}
    print(result, write_result("load", result), sep="\n")


if __name__ == "__main__":
    main()
