"""What all tests share: the hypothesis profile and the map of the house's modules."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The models are small: a second thread costs more than it does, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("dllm", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("dllm")


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, from the real folders; a package's own file is `<package>.__init__`."""
    found = {}
    for folder in ("dllm", "samplers", "cache", "verify"):
        for file in (root / folder).rglob("*.py"):  # rglob follows no links
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            found[name if folder == "dllm" else f"dllm.{name}"] = file
    return found
