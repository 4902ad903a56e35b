"""Checkpoint names: a bundled model, a directory, or a hub id that is downloaded."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from dllm.errors import LoadError
from dllm.models.stored import CONFIG

BUNDLED = ("tiny", "tiny-sure", "tiny-ar")  # the last is an AR target: see dllm.verify
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "*.model", "*.jinja"]


def resolve(id_or_dir: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Directory of a checkpoint: a bundled model ("tiny"), a directory, or a hub id "owner/name".

    A hub id is downloaded (or found in the local hub cache): configuration, safetensors and
    tokenizer files, never code. Raises LoadError when the name is none of the three or the hub
    cannot serve it.
    """
    name = os.fspath(id_or_dir)
    path = os.path.expanduser(name)
    if name in BUNDLED or os.path.isdir(path):
        if revision is not None:
            raise LoadError(f"revision {revision!r} given, but {name!r} is not a hub id")
        return _bundled(name) if name in BUNDLED else Path(path)
    if os.path.isfile(path):
        raise LoadError(f"{name!r} is a file; expected the directory that holds {CONFIG}")
    if not HUB_ID.fullmatch(name):
        raise LoadError(
            f"no model {name!r}: expected a bundled model ({', '.join(BUNDLED)}), an existing "
            "directory, or a hub id like 'GSAI-ML/LLaDA-8B-Instruct'"
        )
    return _download(name, revision)


def _bundled(name: str) -> Path:
    path = Path(str(resources.files("dllm"))) / "assets" / name
    if not path.is_dir():
        raise LoadError(f"the bundled model {name!r} is missing from this installation ({path})")
    return path


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    reasons = {
        errors.GatedRepoError: "is gated: accept its terms on the hub, then `hf auth login`",
        errors.RevisionNotFoundError: "has no such revision on the hub",
        errors.RepositoryNotFoundError: "is neither a directory here nor a model on the hub",
        errors.LocalEntryNotFoundError: "is neither a directory here nor in the local hub cache, "
        "and the hub cannot be reached (offline?)",
    }
    try:
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]
        )
    except Exception as error:  # the hub's HTTP client raises classes of its own, by version
        other = f"could not be fetched from the hub: {type(error).__name__}: {error}"
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), other)
        at = f" at revision {revision!r}" if revision else ""
        raise LoadError(f"{hub_id!r}{at} {reason}") from error
    return Path(folder)
