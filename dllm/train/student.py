"""The model that a recipe trains: from a checkpoint, and back to one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.models.loading import CONFIG, load_model, read_json, resolve, write_checkpoint
from dllm.text import Text, load_text
from dllm.train.data import Pair, Shuffled
from dllm.train.trainer import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "*.model", "*.jinja"),
)


@dataclass(frozen=True)
class Student:
    """A model, its tokenizer, the directory they came from and what config.json says there."""

    model: Decoder
    text: Text
    source: Path
    config: dict[str, Any]

    @classmethod
    def of(cls, name: str, dtype: str, device: str) -> Student:
        """The checkpoint of this name (see `resolve`), to be computed in `dtype`."""
        source = resolve(name)
        model = load_model(source, dtype=dtype, device=device)
        return cls(model, load_text(source, model.spec), source, read_json(source / CONFIG))

    def batches(self, pairs: Sequence[Pair], config: TrainConfig, **tail: Any) -> Shuffled:
        """Endless batches of the same pairs; tail: padding, as `Shuffled` takes it."""
        spec = self.model.spec
        ends = (spec.eos_id if spec.eot_id is None else spec.eot_id, spec.eos_id)
        return Shuffled(pairs, ends, config.batch_size, config.seed, **tail)

    def token_id(self, token: str) -> int:
        """Id of a token of the vocabulary; DllmError if it is none."""
        return token_id(self.text.tokenizer, token, self.source)

    def export(self, directory: Path) -> None:
        """Write the weights in the dtype of the checkpoint they came from, and its tokenizer.

        That dtype is the model's from then on: call it when training is over.
        """
        kind = str(self.config.get("dtype") or self.config.get("torch_dtype") or self.model.dtype)
        self.model.to(getattr(torch, kind.removeprefix("torch.")))
        write_checkpoint(self.model, directory, self.config)
        copy_tokenizer(self.source, directory)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str, source: Path) -> int:
    """Id of a token in the vocabulary of the checkpoint `source`; DllmError if it is none."""
    vocab: dict[str, int] = tokenizer.get_vocab()
    if token not in vocab:
        special = ", ".join(tokenizer.all_special_tokens)
        raise DllmError(f"{source}: no token {token!r}; its special tokens: {special}")
    return vocab[token]


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy all files that belong to a tokenizer."""
    for pattern in TOKENIZER:
        for file in source.glob(pattern):
            shutil.copyfile(file, directory / file.name)
