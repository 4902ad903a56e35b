"""A checkpoint of random weights, and an engine that repeats its prompt in three parallel steps.

The echo shows streaming code a known answer, committed out of order: in forward n it is sure of the
positions p with p % 3 == n % 3, and of the nearest end of text.
"""

from __future__ import annotations

from pathlib import Path

import torch

import dllm
from dllm.cache.plan import ForwardPlan
from dllm.engine import Engine
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.tiny import config_json
from dllm.train.tokenizer import ASSISTANT, EOS, MASK, USER, build_tokenizer, save_tokenizer

WORDS = "one two three four five six seven eight nine ten"


def write_tiny(folder: Path) -> Path:
    """A LLaDA checkpoint directory: two layers, random weights, the words above and all bytes."""
    tokenizer = build_tokenizer([WORDS])
    vocab = tokenizer.get_vocab()
    spec = ModelSpec(
        family="llada",
        vocab_size=len(vocab),
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        mlp_size=48,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_fp32=True,
        mask_id=vocab[MASK],
        eos_id=vocab[EOS],
        pad_id=vocab[EOS],
        max_positions=512,
    )
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(Decoder(spec), folder, config_json(spec))
    save_tokenizer(tokenizer, folder)
    return folder


class Echo:
    """The model: proposes the last user turn again, then end of text."""

    def __init__(self, engine: Engine, interrupt_at: int | None = None) -> None:
        self.spec, self.device, self.dtype = engine.model.spec, torch.device("cpu"), torch.float32
        ids = [engine.encode(token, chat=False) for token in (USER, ASSISTANT)]
        (self.user,), (self.assistant,) = ids
        self.calls, self.interrupt_at = 0, interrupt_at

    def __call__(self, ids: torch.Tensor, plan: ForwardPlan, kv: object = None) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        logits = torch.zeros(*plan.head.shape, self.spec.vocab_size)
        for b, row in enumerate(ids.tolist()):
            last = max((i for i, token in enumerate(row) if token == self.assistant), default=0)
            first = max((i for i in range(last) if row[i] == self.user), default=0) + 1
            answer = row[first:last]
            for r, pos in enumerate(plan.head[b].tolist()):
                place = pos - last - 1
                token = answer[place] if 0 <= place < len(answer) else self.spec.eos_id
                sure = place % 3 == self.calls % 3 or place >= len(answer)
                logits[b, r, token] = 20.0 if sure else 5.0
        return logits

    def new_kv(self, batch: int, length: int) -> None:
        raise NotImplementedError


def echo(folder: Path, interrupt_at: int | None = None) -> Engine:
    """The echo, with the tokenizer of the checkpoint in `folder`."""
    engine = dllm.load(folder)
    return Engine(Echo(engine, interrupt_at), engine.text)  # type: ignore[arg-type]
