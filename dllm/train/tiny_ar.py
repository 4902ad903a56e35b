"""The recipe of `tiny-ar`: an autoregressive Llama on the data and tokenizer of `tiny`.

It is the target that the bundled drafter is verified by, and an ordinary transformers checkpoint.
Deeper than it is wide: a target's step is what drafting saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dllm.models.hub import resolve
from dllm.train.data import Batch, Mixture
from dllm.train.job import Job, TrainingRun
from dllm.train.mdlm import mixed
from dllm.train.mixtures import EVERYTHING, LISTS_AND_SUMS, SHORT_LISTS, curriculum
from dllm.train.rollouts import Report
from dllm.train.tiny import VOCAB_SIZE
from dllm.train.tokenizer import EOS, save_tokenizer
from dllm.train.trainer import TrainConfig, Trainer, init_weights

SIZES = {
    "hidden_size": 224,
    "intermediate_size": 608,
    "num_hidden_layers": 12,
    "num_attention_heads": 7,
    "num_key_value_heads": 7,
}
USE = "dllm speculate --target {} --drafter tiny PROMPT"

CONFIG = TrainConfig(batch_size=64, lr=3e-3, muon_lr=0.006, decay=600, save_every=100)

CURRICULUM: tuple[tuple[int, Mixture], ...] = (
    (200, SHORT_LISTS),
    (400, LISTS_AND_SUMS),
    (1600, Mixture(EVERYTHING)),
    # what was still short: values copied into another layout, sorting
    (600, Mixture({**EVERYTHING, "json": 5.0, "records": 5.0, "table": 6.0, "sort": 7.0})),
)


def loss(model: LlamaForCausalLM, batch: Batch, generator: torch.Generator, part: slice) -> Tensor:
    """Mean cross-entropy (nats a token) of the answers and the end token behind each.

    `part` are the rows of this process; the sum over them is divided by the tokens of the whole
    batch. `generator` is not drawn from.
    """
    pos = torch.arange(1, batch.ids.shape[1])[None]
    counted = (pos >= batch.start[:, None]) & (pos < (batch.end + batch.whole)[:, None])
    ids, chosen = batch.ids[part].to(model.device), counted[part].to(model.device)
    with mixed(model.device):
        hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[chosen])
    nll = F.cross_entropy(logits.float(), ids[:, 1:][chosen], reduction="sum")
    return nll / counted.sum()


def model(
    vocab_size: int, eos_id: int, seed: int, sizes: Mapping[str, int] = SIZES
) -> LlamaForCausalLM:
    """A Llama of `sizes` (of the bundled 7.5 M parameters), its head tied to the embedding."""
    shape: dict[str, Any] = dict(sizes)
    config = LlamaConfig(
        vocab_size=vocab_size,
        **shape,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    )
    made = LlamaForCausalLM(config)
    init_weights(made, seed)
    return made


@dataclass(frozen=True)
class Ar:
    """Train the bundled autoregressive target, from nothing, with the tokenizer of `tiny`."""

    paper: ClassVar[str] = ""

    def prepare(self, job: Job, report: Report) -> TrainingRun:
        """The run in `job.out`, at its step 0 or where it stopped."""
        job.refuse_options()
        tok = Tokenizer.from_file(str(resolve("tiny") / "tokenizer.json"))
        eos_id = tok.get_vocab()[EOS]
        made = model(VOCAB_SIZE, eos_id, CONFIG.seed)
        stages = curriculum(CURRICULUM, tok, eos_id, CONFIG, loss)
        return TrainingRun(Trainer(made, stages, CONFIG, job.out), partial(export, made, tok), USE)


def export(made: LlamaForCausalLM, tok: Tokenizer, directory: Path) -> None:
    """Write a directory that transformers loads (stored in fp16, computed in fp32)."""
    made.save_pretrained(directory, state_dict={k: v.half() for k, v in made.state_dict().items()})
    save_tokenizer(tok, directory)
