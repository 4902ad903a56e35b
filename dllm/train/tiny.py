"""The recipe of the bundled model `tiny`: a LLaDA-architecture model of 3 M parameters.

Mixed from the start, such a model stays at chance on list items for long (nothing points at the
source item); five operations on lists of 3 and 4 first, and the copying circuit is there within
minutes. Every later stage adds lengths, operations and families.
"""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from dllm.eval.tasks.datasets import DATASETS, examples
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.data import Mixture
from dllm.train.job import GENERATE, Job, TrainingRun
from dllm.train.mixtures import (
    EVERYTHING,
    LISTS,
    LISTS_AND_SUMS,
    PUZZLES,
    SHORT_LISTS,
    curriculum,
    mix,
)
from dllm.train.tokenizer import EOS, MASK, build_tokenizer, save_tokenizer
from dllm.train.trainer import Loss, TrainConfig, Trainer, init_weights

VOCAB_SIZE = 1024  # words so far and some to spare, so that ids stay when generators grow
EXAMPLES_PER_TASK = 2000

CONFIG = TrainConfig(batch_size=64, lr=3e-3, muon_lr=0.004, decay=1200, save_every=200)

_STRUCTURED = ("json", "records", "table", "function")
_ALL = {
    **dict.fromkeys(LISTS, 1.0),
    "sort": 2.5,
    "word_problem": 4.5,
    "calculation": 3.0,
    **dict.fromkeys(_STRUCTURED, 1.0),
    **dict.fromkeys(PUZZLES, 0.6),
}
# The easy operations are learned by now: their share goes to what is not.
_HARD = mix(0.5, 2.5, 1.0, 1.0, 0.8, 0.5, 6.0, 6.0, 1.5, 1.5, 2.5, 2.5, 0.4)
_HARDEST = mix(0.4, 2.5, 0.9, 1.2, 0.7, 0.3, 11.0, 2.5, 0.8, 0.8, 2.0, 2.6, 0.3)
# What was still short of its goal: sums deep inside a word problem, sorting, long tables.
_REST = mix(0.35, 3.5, 1.0, 1.3, 1.2, 0.3, 14.0, 1.0, 0.6, 0.7, 1.5, 2.8, 0.3)
CURRICULUM: tuple[tuple[int, Mixture], ...] = (  # steps of each mixture
    (600, SHORT_LISTS),
    (1400, LISTS_AND_SUMS),
    (1600, Mixture(_ALL, tail=24, tail_share=0.25)),
    (2000, Mixture(_HARD, tail=24, tail_share=0.25)),
    (2050, Mixture(_HARDEST, tail=96, tail_share=0.2)),
    (
        2700,
        Mixture(
            _REST,
            {"sort": (3, 4, 5, 6), "word_problem": (2, 3, 4), "table": (3, 4, 5, 6)},
            tail=120,
            tail_share=0.25,
        ),
    ),
    (400, Mixture(EVERYTHING, tail=120, tail_share=0.25)),
)


def tokenizer() -> Tokenizer:
    """The tokenizer of all task families; a word's id depends only on the tasks before its own."""
    draws = (
        itertools.islice(examples(dataset, 0, held_out=False), EXAMPLES_PER_TASK)
        for dataset in DATASETS.values()
    )
    return build_tokenizer(
        text
        for example in itertools.chain.from_iterable(draws)
        for text in (example.prompt, example.answer)
    )


def spec(
    tok: Tokenizer,
    vocab_size: int = VOCAB_SIZE,
    *,
    hidden_size: int = 192,
    num_heads: int = 6,
    mlp_size: int = 512,
) -> ModelSpec:
    """LLaDA's architecture with 6 layers, of the width of `tiny` if nothing is said."""
    vocab = tok.get_vocab()
    eos, mask = vocab[EOS], vocab[MASK]
    return ModelSpec(
        family="llada",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=6,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=32,
        mlp_size=mlp_size,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_fp32=True,
        mask_id=mask,
        eos_id=eos,
        pad_id=eos,
        max_positions=512,
    )


def run(job: Job, loss: Loss) -> TrainingRun:
    """The run in `job.out`, at its step 0 or where it stopped, with that run's tokenizer."""
    job.refuse_options()
    file = job.out / "tokenizer.json"
    job.out.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer.from_file(str(file)) if file.exists() else tokenizer()
    if not file.exists():
        temp = job.out / f"tokenizer.{os.getpid()}"  # under torchrun all processes come here
        tok.save(str(temp))
        temp.replace(file)
    model = Decoder(spec(tok))
    init_weights(model, CONFIG.seed)
    stages = curriculum(CURRICULUM, tok, model.spec.eos_id, CONFIG, loss)
    return TrainingRun(
        Trainer(model, stages, CONFIG, job.out), partial(export, model, tok), GENERATE
    )


def config_json(spec: ModelSpec) -> dict[str, Any]:
    """The content of config.json, in LLaDA's keys."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": spec.hidden_size,
        "n_layers": spec.num_layers,
        "n_heads": spec.num_heads,
        "n_kv_heads": spec.num_kv_heads,
        "mlp_hidden_size": spec.mlp_size,
        "vocab_size": spec.vocab_size,
        "embedding_size": spec.vocab_size,
        "max_sequence_length": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope": True,
        "rope_theta": spec.rope_theta,
        "rope_full_precision": spec.rope_fp32,
        "weight_tying": spec.tie_head,
        "mask_token_id": spec.mask_id,
        "eos_token_id": spec.eos_id,
        "pad_token_id": spec.pad_id,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "include_bias": False,
        "include_qkv_bias": False,
        "bias_for_layer_norm": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
        "alibi": False,
    }


def export(model: Decoder, tok: Tokenizer, directory: Path) -> None:
    """Write a checkpoint directory that `dllm.load` reads (stored in fp16, computed in fp32)."""
    write_checkpoint(model, directory, config_json(model.spec), stored=torch.float16)
    save_tokenizer(tok, directory)
