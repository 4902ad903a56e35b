"""Devices, dtypes and memory: the choice for a model's weights, and the check that they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dllm.errors import LoadError
from dllm.models.config_json import brief

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def devices() -> list[str]:
    """The devices of this machine."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def pick_device(device: str | torch.device) -> torch.device:
    """The device meant by a user's `device`; "auto" is cuda if there is one, else cpu."""
    here = devices()
    if device == "auto":
        return torch.device("cuda" if "cuda:0" in here else "cpu")
    with suppress(RuntimeError, TypeError, ValueError):
        chosen = torch.device(device)
        index = chosen.index or 0
        if (f"{chosen.type}:{index}" if chosen.type == "cuda" or index else chosen.type) in here:
            return chosen
    told = str(device) if isinstance(device, torch.device) else device
    raise LoadError(f"device {brief(told)}: this machine has {', '.join(here)}; or give 'auto'")


def pick_dtype(
    dtype: str | torch.dtype, config: Mapping[str, Any], stored: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype meant by a user's `dtype`; `stored` is what the checkpoint's tensors have."""

    def known(value: object, where: str) -> torch.dtype:
        chosen = DTYPES.get(value) if isinstance(value, str) else value
        if isinstance(chosen, torch.dtype) and chosen in DTYPES.values():
            return chosen
        raise LoadError(f"{where} {brief(value)} is unknown; expected auto, {', '.join(DTYPES)}")

    if dtype != "auto":
        kind = known(dtype, "dtype")
    else:
        named = config.get("dtype") or config.get("torch_dtype")
        plain = named.removeprefix("torch.") if isinstance(named, str) else named
        kind = known(plain, "config.json: dtype") if named else stored
        if kind == torch.float16 and device.type == "cpu":  # slow there, or not implemented
            kind = torch.bfloat16
    if kind == torch.float64 and device.type == "mps":
        raise LoadError("dtype float64: device 'mps' has float32, bfloat16 and float16 only")
    return kind


def check_memory(needed: int, dtype: torch.dtype, device: torch.device, source: Path) -> None:
    """LoadError if `needed` bytes of weights are more than `device` has left."""
    free = free_memory(device)
    if free is not None and needed > free:
        raise LoadError(
            f"{source}: its weights take {needed / 1e9:.1f} GB in "
            f"{str(dtype).removeprefix('torch.')}, but {device} has {free / 1e9:.1f} GB free"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on `device`; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held  # what torch's allocator holds and does not use
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:  # of Linux; elsewhere none is known
    """Bytes left to the machine, this process's control group, and by its own limit (ulimit -v)."""
    with suppress(OSError, KeyError):
        machine = _table("/proc/meminfo")
        yield (machine["MemAvailable:"] + machine["SwapFree:"]) * 1024
    with suppress(OSError, KeyError, ValueError):
        yield from _groups()
    with suppress(ImportError, OSError, KeyError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            yield most - _table("/proc/self/status")["VmSize:"] * 1024


def _groups() -> Iterator[int]:
    """By control group, from this process's own up to the root: its limit less what it holds.

    Pages of files count as used there, but are given up when memory is short.
    """
    for line in GROUP.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "":  # version 2
            root, most, now = GROUPS, "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            root = GROUPS / "memory"
            most, now = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError):  # a container sees its own group as the root
                limit = (folder / most).read_text().strip()
                if limit.isdecimal():
                    held = int((folder / now).read_text())
                    files = _table(folder / "memory.stat")
                    yield int(limit) - held + files["active_file"] + files["inactive_file"]
            if folder == root:
                break


def _table(file: str | Path) -> dict[str, int]:
    """The numbers in a file of lines like `MemAvailable:  123 kB`."""
    rows = (line.split() for line in Path(file).read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
