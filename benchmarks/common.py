"""What every benchmark writes beside its numbers: the machine, the versions, the revision."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

import dllm

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Versions and hardware, without names or paths of the machine."""
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return {
        "dllm": dllm.__version__,
        "revision": revision.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def write_result(name: str, content: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Write benchmarks/results/NAME.json, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    temp = path.with_suffix(".tmp")
    temp.write_text(json.dumps({"environment": environment(), **content}, indent=2) + "\n")
    temp.replace(path)
    return path
