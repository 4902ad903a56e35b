"""Environment of a measurement: versions, hardware, revision; no names or paths of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

import dllm


def environment() -> dict[str, Any]:
    """JSON values to write beside a result."""
    return {
        "dllm": dllm.__version__,
        "revision": revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def revision(root: Path = Path(__file__).parent.parent) -> str | None:
    """The git revision of the checkout `root`; None where it is none (an installed wheel)."""
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True
        )
    except OSError:  # no git here
        return None
    return found.stdout.strip() or None
