"""The model that a recipe trains, made from a checkpoint and exported as one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dllm.errors import DllmError
from dllm.models.adapter import save_adapter
from dllm.models.causal import CAUSAL, block_config
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.hub import resolve
from dllm.models.loading import load_model
from dllm.models.lora import Lora, attach, is_adapted, merge
from dllm.models.markov import FILE as MARKOV
from dllm.models.stored import CONFIG, read_json, shard_files, survey
from dllm.text.tokenizer import AnyTokenizer, ChatTokenizer, load_text, load_tokenizer
from dllm.train.data import Shuffled, TrainingPair
from dllm.train.trainer import TrainConfig

if TYPE_CHECKING:
    pass

TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "*.model", "*.jinja"),
)


@dataclass(frozen=True)
class Blocks:
    """The reading of an AR checkpoint as a student: how many tokens see each other, and the mask
    token, by text or id; None is the tokenizer's own.
    """

    length: int | None
    mask_token: int | str | None

    def config(self, source: Path) -> dict[str, Any]:
        """config.json of the block-diffusion model on the weights in `source`."""
        mask_id = self.mask_id(load_tokenizer(source), source)
        said = read_json(source / CONFIG)
        place = str(source / CONFIG)
        return block_config(said, block_length=self.length, mask_id=mask_id, source=place)

    def mask_id(self, tokenizer: AnyTokenizer, source: Path) -> int:
        """The id that `mask_token` means; DllmError if it means none."""
        if isinstance(self.mask_token, int):
            return self.mask_token
        if self.mask_token is not None:
            return token_id(tokenizer, self.mask_token, source)
        own = tokenizer.mask_token_id
        if own is None:
            special = ", ".join(tokenizer.all_special_tokens)
            raise DllmError(
                f"{source}: the tokenizer has no mask token; expected mask_token=TOKEN or its id, "
                f"one that no text holds; special tokens: {special}"
            )
        return int(own)


@dataclass(frozen=True)
class Student:
    """A model to train and its tokenizer.

    base: the checkpoint's name as the user gave it;  source: its directory;  config: the content of
    config.json that the model was made from;  merge: whether `export` writes whole weights, where
    an adapter is trained.
    """

    model: Decoder
    text: ChatTokenizer
    base: str
    source: Path
    config: dict[str, Any]
    merge: bool = True

    @classmethod
    def of(cls, name: str, dtype: str, device: str, blocks: Blocks | None = None) -> Student:
        """The checkpoint of this name (see `resolve`), to be computed in `dtype`.

        An AR one becomes a model of `blocks`; without them it is a DllmError.
        """
        source = resolve(name)
        config = read_json(source / CONFIG)
        if blocks is not None and config.get("model_type") in CAUSAL:
            config = blocks.config(source)
        model = load_model(source, dtype=dtype, device=device, config=config)
        return cls(model, load_text(source, model.spec), name, source, config)

    def adapted(self, lora: Lora, seed: int, merge: bool) -> Student:
        """The same, of which only a new adapter will be trained."""
        attach(self.model, lora, seed)
        return replace(self, merge=merge)

    def batches(self, pairs: Sequence[TrainingPair], config: TrainConfig, **tail: Any) -> Shuffled:
        """Endless batches of the same pairs; tail: padding, as `Shuffled` takes it."""
        spec = self.model.spec
        ends = (spec.eos_id if spec.eot_id is None else spec.eot_id, spec.eos_id)
        return Shuffled(pairs, ends, config.batch_size, config.seed, **tail)

    def token_id(self, token: str) -> int:
        """Id of a token of the vocabulary; DllmError if it is none."""
        return token_id(self.text.tokenizer, token, self.source)

    def export(self, directory: Path) -> None:
        """Write the weights, stored as in the checkpoint they came from, and its tokenizer.

        Or the adapter alone. The model is not to be trained further: an adapter is merged, the
        dtype changed in place.
        """
        adapter = is_adapted(self.model)
        if adapter and not self.merge:
            changed = self.config != read_json(self.source / CONFIG)
            save_adapter(self.model, directory, self.base, self.config if changed else None)
            return
        if adapter:
            merge(self.model)
        kind = self.config.get("dtype") or self.config.get("torch_dtype") or self.model.dtype
        self.model.to(getattr(torch, str(kind).removeprefix("torch.")))
        stored = next(iter(survey(shard_files(self.source)[0]).values())).kind
        write_checkpoint(self.model, directory, self.config, stored=stored)
        (directory / MARKOV).unlink(missing_ok=True)  # of other weights
        copy_tokenizer(self.source, directory)


def token_id(tokenizer: AnyTokenizer, token: str, source: Path) -> int:
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
