"""Speculation inside transformers: `target.generate(..., custom_generate=dllm.verify.generate)`.

transformers prepares configuration, logits processors and stopping criteria, and calls `generate`
below; no method is patched. The cache is our own. Tested with transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dllm.errors import DllmError
from dllm.verify.config import PARTS, PartsCache, SpecConfig
from dllm.verify.loop import Request, speculate
from dllm.verify.output import Round
from dllm.verify.protocol import Drafter
from dllm.verify.rng import TorchRng
from dllm.verify.target import HFTarget

UNSUPPORTED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
OnTokens = Callable[[int, list[int]], None]


@dataclass
class Known:
    """What is kept of a model between calls: that it can verify trees, and what it costs."""

    probed: bool = False
    parts: PartsCache = field(default_factory=PartsCache)


_known: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()


def generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    drafter: Drafter | None = None,
    search: str | None = None,
    accept: str | None = None,
    control: str | None = None,
    sources: Sequence[str] | None = None,
    reuse: int | None = None,
    lossless: bool | None = None,
    on_tokens: OnTokens | None = None,
    on_round: Callable[[Round], None] | None = None,
    **prepared: Any,
) -> Any:
    """Greedy decoding or sampling as `model.generate` does it, several tokens per forward.

    For `model.generate(..., custom_generate=generate, drafter=...)`. drafter: None for model-free
    sources alone.  search, accept, control, sources, reuse, lossless: as in `SpecConfig`.
    on_tokens(row, ids): called after every forward with a row's new tokens (transformers keeps its
    own `streamer` from custom loops); an object with `put` and `end`, as a streamer has them, does
    for a single row.  on_round: is given the statistics of every forward.

    Stop strings: pass a `StopStringCriteria` in `stopping_criteria`, since transformers keeps the
    tokenizer back too. Raises DllmError for beams, assisted generation, a filled cache, and outputs
    that a verified tree does not have (scores, attentions, hidden states).
    """
    # `prepared` has what belongs to the model; as parameters of their own transformers would take
    # its attention mask and cache for options of this function
    _check(generation_config, prepared.get("past_key_values"))
    given = dict(zip(PARTS, (search, accept, control, sources, reuse, lossless), strict=True))
    config = SpecConfig().replace(**{k: v for k, v in given.items() if v is not None})
    sampled = bool(generation_config.do_sample)
    known = _known.setdefault(model, Known())
    parts = known.parts.of(config.replace(temperature=float(sampled)))
    target = HFTarget(model)
    target.probed = known.probed
    masks = _masks(input_ids, prepared.get("attention_mask"))
    shared = len(input_ids), logits_processor, stopping_criteria, generation_config
    requests = [
        _request(row, *each, *shared) for row, each in enumerate(zip(input_ids, masks, strict=True))
    ]
    emitted: list[list[int]] = [[] for _ in requests]
    put = _listener(on_tokens, len(requests))
    for each in speculate(target, drafter, requests, parts):
        known.probed = True
        for row in each.rows:
            emitted[row.row] += row.tokens
            put(row.row, list(row.tokens))
        if on_round is not None:
            on_round(each)
    if on_tokens is not None and hasattr(on_tokens, "end"):
        on_tokens.end()
    sequences = _padded(input_ids, emitted, generation_config)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
    return sequences


def _check(config: Any, cache: Any) -> None:
    if (config.num_beams or 1) > 1:
        raise DllmError(f"num_beams={config.num_beams}: a verified draft is one text, expected 1")
    if wanted := [name for name in UNSUPPORTED if getattr(config, name, False)]:
        raise DllmError(f"{wanted[0]}=True: a forward over a tree of drafts has none per token")
    if cache is not None and cache.get_seq_length() > 0:
        raise DllmError("past_key_values is filled: drafts are verified in a cache of our own")


def _masks(ids: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T] bool: which tokens are real; transformers leaves an attention mask of ones away."""
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def _request(
    row: int, ids: Tensor, mask: Tensor, rows: int, processors: Any, criteria: Any, config: Any
) -> Request:
    """One row. Processors and criteria see it as plain generation shows it: padding included, and
    in its place of a batch of `rows`, since some processors know something of every row.
    """
    padded: list[int] = ids.tolist()
    prompt: list[int] = ids[mask].tolist()
    if mask[:-1].long().diff().lt(0).any() or not mask[-1]:
        raise DllmError("a prompt is padded on the right or inside: expected padding on the left")

    def shown(emitted: Sequence[int]) -> Tensor:
        return torch.tensor([[*padded, *emitted]], device=ids.device).expand(rows, -1)

    def process(emitted: Sequence[int], logits: Tensor) -> Tensor:
        scores: Tensor = processors(shown(emitted), logits.repeat(rows, 1))
        return scores[row]

    ends = (
        set(torch.as_tensor(config.eos_token_id).reshape(-1).tolist())
        if (config.eos_token_id is not None)
        else set()
    )

    def ended(emitted: Sequence[int]) -> str | None:
        if not bool(criteria(shown(emitted), None)[row]):
            return None
        return "eos" if emitted[-1] in ends else "stop"

    room = config.max_length - len(padded)
    process_or_none = process if len(processors) else None
    return Request(prompt, room, TorchRng(), ended, process_or_none)


def _listener(on_tokens: Any, rows: int) -> OnTokens:
    """What to call with a row's new tokens."""
    if on_tokens is None:
        return lambda row, tokens: None
    if not hasattr(on_tokens, "put"):
        call: OnTokens = on_tokens
        return call
    if rows > 1:
        raise DllmError(f"a streamer shows one text, but the batch has {rows} rows")

    def put(row: int, tokens: list[int]) -> None:
        for token in tokens:
            on_tokens.put(torch.tensor([token]))

    return put


def _padded(ids: Tensor, emitted: Sequence[Sequence[int]], config: Any) -> Tensor:
    """Prompts [B, T] and what was emitted, filled up on the right with the padding token."""
    width = max(map(len, emitted), default=0)
    pad = config.pad_token_id
    if pad is None and any(len(tokens) < width for tokens in emitted):
        raise DllmError("rows end at different lengths, but there is no pad_token_id to fill with")
    rows = [[*tokens, *[pad] * (width - len(tokens))] for tokens in emitted]
    new = torch.tensor(rows, dtype=ids.dtype, device=ids.device).reshape(len(rows), width)
    return torch.cat([ids, new], 1)
