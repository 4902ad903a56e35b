"""Target that is a transformers causal LM: the trees of all rows in one forward.

Knows transformers' calling convention. A mask [B, 1, Q, S + Q] of our own says which slots of the
cache and which queries each query sees, explicit positions say where it stands; so rows may differ
in length, progress and tree. Tokens of a tree have to be inside [0, vocab_size).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.errors import DllmError, LoadError
from dllm.models.devices import pick_device, pick_dtype
from dllm.models.hub import resolve
from dllm.models.stored import CONFIG, read_json
from dllm.verify.target.cache import Slots
from dllm.verify.target.capability import attention_spans, check_config, length_limit, probe
from dllm.verify.target.generation import end_tokens
from dllm.verify.target.queries import Queries, lay_out
from dllm.verify.tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFILL = 1024  # prompt tokens of one pass: bounds the memory of its mask


class TreeLogits:
    """Logits [B, 1 + N, V] behind the nodes of the rows' trees, which have `sizes` nodes."""

    def __init__(self, logits: Tensor, sizes: Sequence[int]) -> None:
        self.logits, self.sizes = logits, sizes

    def row(self, row: int, node: int) -> Tensor:
        """Logits [V] in fp32 behind one node."""
        return self.logits[row, node].float()

    def best(self) -> list[list[int]]:
        """The most likely token behind every node of every row, by fp32 as in transformers."""
        tokens: list[list[int]] = self.logits.float().argmax(-1).tolist()
        return [row[:size] for row, size in zip(tokens, self.sizes, strict=True)]

    def top(self, row: int, count: int) -> NDArray[np.int64]:
        """[n, count] the most likely tokens behind the row's n nodes, best first."""
        logits = self.logits[row, : self.sizes[row]]
        tokens: NDArray[np.int64] = logits.topk(min(count, logits.shape[-1])).indices.cpu().numpy()
        return tokens


class HFTarget:
    """A transformers causal LM in eval mode, with "sdpa" or "eager" attention.

    Raises DllmError, at the latest when it is first opened, for a model that cannot verify trees:
    then a small tree is compared with plain passes.
    """

    def __init__(self, model: Any) -> None:
        check_config(model)
        self.model = model
        self.spans = attention_spans(model.config)
        self.limit = length_limit(model.config)
        self.probed = False

    @property
    def vocab_size(self) -> int:
        size: int = self.model.config.get_text_config().vocab_size
        return size

    @property
    def eos(self) -> frozenset[int]:
        """Its end tokens."""
        return end_tokens(self.model.generation_config)

    def open(self, prompts: Sequence[Sequence[int]], budgets: Sequence[int]) -> HFSession:
        """Begin a batch: prompts of at least one token, each growing by up to its token budget."""
        for row, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)):
            self._check(row, prompt, budget)
        if not self.probed:
            probe(self.model, self.vocab_size, lambda texts: HFSession(self, texts))
            self.probed = True
        return HFSession(self, prompts)

    def _check(self, row: int, prompt: Sequence[int], budget: int) -> None:
        if not len(prompt):
            raise DllmError(f"prompt {row} is empty: expected at least one token")
        wrong = [token for token in prompt if not 0 <= token < self.vocab_size]
        if wrong:
            raise DllmError(
                f"prompt {row} holds token {wrong[0]}, outside the vocabulary "
                f"[0, {self.vocab_size})"
            )
        if self.limit is not None and len(prompt) + budget > self.limit:
            raise DllmError(
                f"prompt {row} has {len(prompt)} tokens, and {budget} new ones make "
                f"{len(prompt) + budget} positions, but the model is exact only up to {self.limit}"
            )


class HFSession:
    """A batch of texts, read by an `HFTarget`."""

    def __init__(self, target: HFTarget, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.spans, self.limit = target.model, target.spans, target.limit
        spans = [span for span in self.spans.values() if span is not None]
        horizon = max(spans) if len(spans) == len(self.spans) else None
        self.slots = Slots(len(prompts), self.model.device, horizon)
        self._waiting = [list(prompt[:-1]) for prompt in prompts]
        self._last: tuple[Queries, Tensor] | None = None

    @torch.inference_mode()
    def score(self, trees: Sequence[Tree]) -> TreeLogits:
        """One pass over all rows' trees and what waits; a long prompt is read in pieces first."""
        while max(map(len, self._waiting), default=0) > PREFILL:
            first = [tokens[:PREFILL] for tokens in self._waiting]
            rest = [tokens[PREFILL:] for tokens in self._waiting]
            self._forward(lay_out(self.slots.lengths, first))
            self.commit([[] for _ in first])
            self._waiting = rest
        logits = self._forward(lay_out(self.slots.lengths, self._waiting, trees))
        return TreeLogits(logits, [len(tree) for tree in trees])

    def commit(self, nodes: Sequence[Sequence[int]]) -> None:
        """Keep these nodes of the last pass (a path from the root, with it) of each row."""
        if self._last is None:
            raise DllmError("commit without a pass before it: call score first")
        queries, pos = self._last
        self.slots.commit(pos, queries.kept(nodes))
        self._waiting = [[] for _ in nodes]
        self._last = None

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on; call it between a commit and the next pass."""
        self.slots.select(rows)
        self._waiting = [self._waiting[row] for row in rows]

    def _forward(self, queries: Queries) -> Tensor:
        """Logits [B, width, V] of the trees (of one column where there are none)."""
        self._last = None
        if self.limit is not None and queries.farthest >= self.limit:
            raise DllmError(
                f"a draft at position {queries.farthest}, but the model is exact only up to "
                f"{self.limit} positions"
            )
        self.slots.reserve(queries.pos.shape[1])
        ids, pos = torch.from_numpy(np.stack([queries.tokens, queries.pos])).to(self.model.device)
        width = max(queries.width, 1)
        output = self.model(
            input_ids=ids,
            attention_mask=self._mask(queries, pos),
            position_ids=pos,
            past_key_values=self.slots,
            use_cache=True,
            logits_to_keep=width,
        )
        self._last = queries, pos
        logits: Tensor = output.logits[:, -width:]
        return logits

    def _mask(self, queries: Queries, pos: Tensor) -> Tensor | dict[str, Tensor] | None:
        """Additive masks [B, 1, Q, S + Q]; one per kind of layer where the model has several."""
        used, (rows, size) = self.slots.used, queries.pos.shape
        if (used == 0 or size == 1) and self.slots.whole and queries.causal:
            return None  # the model's own mask is right, and often it needs none
        mask = torch.zeros(rows, 1, size, used + size, dtype=self.model.dtype, device=pos.device)
        hidden = torch.from_numpy(queries.hidden).to(pos.device)
        mask[..., used:].masked_fill_(hidden[:, None], -math.inf)
        if not self.slots.whole:
            gaps = ~self.slots.valid[:, :used]
            mask[..., :used].masked_fill_(gaps[:, None, None], -math.inf)
        masks = dict.fromkeys(self.spans, mask)
        short = {k: span for k, span in self.spans.items() if span and queries.farthest >= span}
        if short:
            reach = pos[:, :, None] - torch.cat([self.slots.pos[:, :used], pos], 1)[:, None]
            for kind, span in short.items():
                masks[kind] = mask.masked_fill((reach >= span)[:, None], -math.inf)
        return masks if len(masks) > 1 else next(iter(masks.values()))


def load_target(
    id_or_dir: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
) -> tuple[HFTarget, PreTrainedTokenizerBase]:
    """The causal LM of a directory, hub id or bundled name, and its tokenizer.

    Safetensors only, and no code of the checkpoint is run. dtype and device as in `load_model`.
    Raises LoadError naming the checkpoint for whatever does not fit.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    loader: Any = AutoModelForCausalLM
    folder = resolve(id_or_dir)
    place = pick_device(device)
    kind = pick_dtype(dtype, read_json(folder / CONFIG), torch.float32, place)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of milliseconds
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model, report = loader.from_pretrained(
            folder, dtype=kind, use_safetensors=True, output_loading_info=True, **local
        )
    except Exception as error:  # of many kinds, by what is wrong with which file
        reason = str(error).partition("\n")[0]
        raise LoadError(
            f"{folder}: no causal language model with its tokenizer that transformers can load "
            f"without remote code, from safetensors ({type(error).__name__}: {reason})"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    if report["missing_keys"]:  # transformers would draw them at random
        missing = sorted(report["missing_keys"])
        raise LoadError(f"{folder}: {len(missing)} tensors are missing: {', '.join(missing[:8])}")
    return HFTarget(model.to(place).eval()), tokenizer
