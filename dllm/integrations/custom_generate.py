"""Speculation inside transformers: `target.generate(..., custom_generate=dllm.verify.generate)`.

transformers prepares configuration, logits processors and stopping criteria, and calls `generate`
below; no method is patched. The cache is our own. Tested with transformers 5.23.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dllm.errors import DllmError
from dllm.verify.config import OF_COMPONENTS, ComponentsCache, SpecConfig
from dllm.verify.loop import Request, speculate
from dllm.verify.output import Round
from dllm.verify.protocol import Drafter
from dllm.verify.rng import TorchRng
from dllm.verify.target.generation import brief, check_cache, check_mode, end_tokens
from dllm.verify.target.model import HFTarget
from dllm.verify.target.processors import Processors

UNSUPPORTED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# what transformers prepares for a model's forward that a target of ours computes for itself
PREPARED = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
# arguments of `generate` that transformers 5.23 keeps from custom loops -> what to do instead
WITHHELD = {
    "streamer": "it only got the prompt; pass it as on_tokens=",
    "assistant_model": "it does not draft; pass drafter=, or leave custom_generate= out",
}
ONE_BY_ONE = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria)
OnTokens = Callable[[int, list[int]], None]


@dataclass
class KeptForModel:
    """What is kept of a model between calls: that it can verify trees, what it costs, and the
    drafters that were given by name.
    """

    probed: bool = False
    components: ComponentsCache = field(default_factory=ComponentsCache)
    drafters: dict[str, Drafter] = field(default_factory=dict)


_kept: WeakKeyDictionary[Any, KeptForModel] = WeakKeyDictionary()


def generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    drafter: Drafter | str | os.PathLike[str] | None = None,
    on_tokens: OnTokens | None = None,
    on_round: Callable[[Round], None] | None = None,
    **prepared: Any,
) -> Any:
    """Greedy decoding or sampling as `model.generate` does it, several tokens per forward.

    For `model.generate(..., custom_generate=generate, drafter=...)`. drafter: what `load_drafter`
    gives, or the name of a checkpoint that shall be loaded beside the target's (and kept as long as
    the model is), None for model-free sources alone.  Options of `OF_COMPONENTS` (search=,
    control=, ...) are `SpecConfig`'s, with its defaults.  on_tokens(row, ids): called after every
    forward with a row's new tokens (transformers keeps its own `streamer` from custom loops); an
    object with `put` and `end`, as a streamer has them, does for a single row.  on_round: is given
    the statistics of every forward.

    Stop strings: pass a `StopStringCriteria` in `stopping_criteria`, since transformers keeps the
    tokenizer back too. A logits processor that is not known to be stateless (see processors.py)
    goes without drafts only. Raises DllmError for other decoding than greedy and sampling, inputs
    that are no tokens, a filled cache, and outputs that a verified tree does not have (scores,
    attentions, hidden states).
    """
    # `prepared` has what belongs to the model; as parameters of their own transformers would take
    # its attention mask and cache for options of this function
    _warn_of_withheld(model, sys._getframe(1).f_locals)
    _check(generation_config, prepared.get("past_key_values"))
    masks = _masks(input_ids, prepared.get("attention_mask"))
    config = SpecConfig().replace(**{k: prepared.pop(k) for k in OF_COMPONENTS if k in prepared})
    _check_inputs(prepared, masks)
    kept = _kept.setdefault(model, KeptForModel())
    components = kept.components.of(config, bool(generation_config.do_sample))
    target = HFTarget(model)
    target.probed = kept.probed
    if isinstance(drafter, str | os.PathLike):
        drafter = _named_drafter(target, os.fspath(drafter), kept)
    elif not (drafter is None or hasattr(drafter, "open")):
        raise DllmError(f"drafter={drafter!r}: expected a name, or what load_drafter gives")
    process = None
    if len(logits_processor):
        pad = generation_config.pad_token_id
        process = Processors.of_batch(input_ids, logits_processor, pad)
        process.check(drafts=drafter is not None or len(components.sources) > 0)
    requests = [
        _request(row, *each, len(input_ids), stopping_criteria, generation_config)
        for row, each in enumerate(zip(input_ids, masks, strict=True))
    ]
    emitted: list[list[int]] = [[] for _ in requests]
    put = _listener(on_tokens, len(requests))
    rounds = speculate(target, drafter, requests, components, process)
    for each in kept.components.watched(components, rounds):
        kept.probed = True
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


def _with_options(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function whose options of `SpecConfig` come as further ones by name.

    transformers reads there which arguments of `model.generate` a custom loop wants.
    """
    found = inspect.signature(function)
    *first, rest = found.parameters.values()
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(SpecConfig(), name))
        for name in OF_COMPONENTS
    ]
    return found.replace(parameters=[*first, *named, rest])


generate.__signature__ = _with_options(generate)  # type: ignore[attr-defined]


def _warn_of_withheld(model: Any, caller: Mapping[str, Any]) -> None:
    """Say what was given to `generate`, whose local variables these are, and never comes here."""
    if caller.get("self") is not model:
        return  # called from elsewhere
    for name, instead in WITHHELD.items():
        if caller.get(name) is not None:
            warnings.warn(
                f"{name}=: transformers keeps it from custom loops, so that {instead}",
                stacklevel=5,  # the line that calls `generate`, which torch wraps
            )


def _check(config: Any, cache: Any) -> None:
    check_mode(config)
    check_cache(config)
    if wanted := [name for name in UNSUPPORTED if getattr(config, name, False)]:
        raise DllmError(f"{wanted[0]}=True: a forward over a tree of drafts has none per token")
    if cache is not None and cache.get_seq_length() > 0:
        raise DllmError("past_key_values is filled: drafts are verified in a cache of our own")


def _check_inputs(prepared: Mapping[str, Any], masks: Tensor) -> None:
    """DllmError for inputs that a forward of the target would not see."""
    for name, value in prepared.items():
        if name not in PREPARED and value is not None and value is not False:
            raise DllmError(f"{name}=: drafts are verified as tokens alone, expected input_ids")
    given = prepared.get("position_ids")
    own = masks.long().cumsum(-1) - 1
    if given is not None and bool((given.expand_as(own) != own)[masks].any()):
        raise DllmError("position_ids: expected 0, 1, 2, ... from a prompt's first token on")


def _named_drafter(target: HFTarget, name: str, kept: KeptForModel) -> Drafter:
    """The drafter that a name stands for, loaded once; its drafts are for the target's tokenizer,
    which is looked for where the target came from.
    """
    from dllm.verify.api import load_drafter

    if name not in kept.drafters:
        model = target.model
        loader: Any = AutoTokenizer
        try:
            if not model.name_or_path:
                raise OSError("the target does not come from a checkpoint")
            tokenizer = loader.from_pretrained(model.name_or_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DllmError(
                f"drafter={name!r}: no tokenizer of the target to draft for ({brief(error)}): "
                "expected what load_drafter(name, tokenizer) gives"
            ) from error
        kept.drafters[name] = load_drafter(
            name,
            tokenizer,
            vocab_size=target.vocab_size,
            dtype=model.dtype,
            device=model.device,
        )
    return kept.drafters[name]


def _masks(ids: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T] bool: which tokens are real; transformers leaves an attention mask of ones away."""
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def _request(row: int, ids: Tensor, mask: Tensor, rows: int, criteria: Any, config: Any) -> Request:
    """One row. Criteria see it as plain generation shows it, padding included, and in its place of
    a batch of `rows`, unless they are known to look at each row by itself.
    """
    prompt: list[int] = ids[mask].tolist()
    if mask[:-1].long().diff().lt(0).any() or not mask[-1]:
        raise DllmError("a prompt is padded on the right or inside: expected padding on the left")

    alone = all(type(each) in ONE_BY_ONE for each in criteria)
    ends = end_tokens(config)

    def ended(emitted: Sequence[int]) -> str | None:
        text = torch.cat([ids, ids.new_tensor(list(emitted))])
        if alone:
            done = criteria(text[None], None)[0]
        else:
            done = criteria(text.expand(rows, -1), None)[row]
        if not bool(done):
            return None
        return "eos" if emitted[-1] in ends else "stop"

    return Request(prompt, config.max_length - len(ids), TorchRng(), ended)


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
