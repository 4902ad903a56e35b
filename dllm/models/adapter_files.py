"""Files of an adapter directory: peft's two, and those of the format that we wrote before.

Nothing is passed to peft that a file says, but numbers and names that were checked: its options can
name code to import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.errors import DllmError, LoadError
from dllm.files import parse_json
from dllm.models.hub import resolve
from dllm.models.lora import Lora, peft
from dllm.models.stored import ADAPTER, CONFIG, NOT_WHOLE, OLD_ADAPTER, is_adapter, read_json
from dllm.tensors import opened

MATRICES, OLD_MATRICES = "adapter_model.safetensors", "adapter.safetensors"
OLD_FORMAT = "dllm-lora-1"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
FREE = {  # of adapter_config.json: read here, or without a say in what a trained adapter computes
    *("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path"),
    *("auto_mapping", "inference_mode", "lora_dropout", "peft_version", "task_type"),
}
GAUSSIAN = ("init_lora_weights", "gaussian")  # other ways to begin change the base, too


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk.

    file: the matrices;  base: a bundled name, a directory (if relative, to the adapter's own) or a
    hub id;  lora: rank and alpha, and as targets what the matrices are said to be of, by the names
    of our modules or of the base's (none: not told);  fingerprint: of the base's files, None if it
    is not told;  config: the content of a config.json in place of the base's, or None.
    """

    file: Path
    base: str
    lora: Lora
    fingerprint: str | None
    config: dict[str, Any] | None


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`, its matrices unread; LoadError for what its files should not say."""
    if (folder / CONFIG).exists():
        raise LoadError(f"{folder}: holds an adapter and a checkpoint ({CONFIG}); expected one")
    old = not (folder / ADAPTER).is_file()
    file = folder / (OLD_MATRICES if old else MATRICES)
    if not old and not file.exists() and (folder / "adapter_model.bin").exists():
        raise LoadError(f"{folder}: only pickled matrices, which can run code and are never opened")
    with opened(file, error=LoadError) as tensors:
        about = tensors.metadata() or {}
    about_file = folder / (OLD_ADAPTER if old else ADAPTER)
    content = read_json(about_file)
    found = _old(about_file, content) if old else _peft(about_file, content, about)
    base, rank, alpha, targets, fingerprint, config = found
    if not isinstance(base, str) or not base:
        raise LoadError(f"{about_file}: names no base: {base!r:.99}, expected text")
    if not isinstance(config, dict | None):
        raise LoadError(f"{about_file}: config is {config!r:.99}, expected an object")
    for key, value in (("rank", rank), ("alpha", alpha)):
        if (said := about.get(key, str(value))) != str(value):
            raise LoadError(f"{file}: {key} is {said!r:.99}, but {about_file.name} says {value!r}")
    try:
        lora = Lora(rank, alpha, tuple(targets) if isinstance(targets, list) else targets)
    except DllmError as error:
        raise LoadError(f"{about_file}: {error}") from error
    return Adapter(file, base, lora, fingerprint, config)


def _peft(file: Path, content: Mapping[str, Any], about: Mapping[str, str]) -> tuple[Any, ...]:
    """Base, rank, alpha, targets, fingerprint and config of peft's files; `about`: metadata."""
    if (kind := content.get("peft_type")) != "LORA":
        raise LoadError(f"{file}: peft_type is {kind!r:.99}, expected 'LORA'")
    plain = peft().LoraConfig().to_dict()
    for key, value in content.items():
        fine = not value or value == plain.get(key) or (key, value) == GAUSSIAN
        if key not in FREE and not fine:
            raise LoadError(f"{file}: {key} is {value!r:.99}, but only plain LoRA is implemented")
    targets = content.get("target_modules")
    if isinstance(targets, str):  # "all-linear", or a pattern, which may take for ever
        targets = []
    config = parse_json(about["config"], f"{file.parent / MATRICES}") if "config" in about else None
    base, rank, alpha = (content.get(k) for k in ("base_model_name_or_path", "r", "lora_alpha"))
    return base, rank, alpha, targets or [], about.get("fingerprint"), config


def _old(file: Path, content: dict[str, Any]) -> tuple[Any, ...]:
    """The same of the adapter.json that we wrote before peft."""
    if (said := content.get("format")) != OLD_FORMAT:
        raise LoadError(f"{file}: format is {said!r:.99}, expected {OLD_FORMAT!r}")
    fingerprint = content.get("fingerprint")
    if not isinstance(fingerprint, str):
        raise LoadError(f"{file}: fingerprint is {fingerprint!r:.99}, expected text")
    rest = (content.get(key) for key in ("base", "rank", "alpha", "targets"))
    return (*rest, fingerprint, content.get("config"))


def base_folder(folder: Path, base: str) -> Path:
    """Directory of the checkpoint that the adapter in `folder` calls `base`; LoadError if none."""
    near = os.path.join(folder, base)
    try:
        return whole(resolve(near if os.path.isdir(near) else base), "its base")
    except LoadError as error:
        raise LoadError(f"{folder}: {error}") from error


def tokenizer_folder(folder: Path) -> Path:
    """Directory of the tokenizer of the model in `folder`: an adapter may leave it to its base."""
    own = not is_adapter(folder) or any((folder / name).is_file() for name in TOKENIZERS)
    return folder if own else base_folder(folder, read_adapter(folder).base)


def whole(folder: Path, what: str) -> Path:
    """`folder`; LoadError if it holds an adapter."""
    if is_adapter(folder):
        raise LoadError(f"{what} {folder} {NOT_WHOLE}")
    return folder
