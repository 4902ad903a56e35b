"""Own decoding of a transformers model: greedy or sampled, its processors, its ends.

transformers itself reads the checkpoint's `generation_config`, puts options over it and builds the
processors: `generate` is called with a loop that only takes what was prepared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.configuration_utils import GenerationMode

from dllm.checks import ConfigError
from dllm.errors import DllmError
from dllm.verify.config import MODES, NOT_OURS
from dllm.verify.target.processors import OPTIONS, Processors

SINGLE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


@dataclass(frozen=True)
class TargetDecoding:
    """How a model decodes a batch by itself.

    sampled: greedy if not.  ends: its end tokens.  stop: what ends a text too.
    process: what becomes of its logits (None: nothing).  applied: which options of `generate` came
    to that, in order, in JSON's types.
    """

    sampled: bool
    ends: frozenset[int]
    stop: tuple[str, ...]
    process: Processors | None
    applied: dict[str, Any]


def check_mode(config: Any) -> None:
    """DllmError that names the option of a GenerationConfig which no verified draft can follow."""
    mode = config.get_generation_mode()
    if mode not in SINGLE:
        values = {name: getattr(config, name, None) for name in MODES}
        odd = [f"{name}={value!r}" for name, value in values.items() if value not in MODES[name]]
        named = next(iter(odd), "the generation config")
        raise DllmError(
            f"{named} asks for {mode.value.replace('_', ' ')}, which drafts cannot be verified by: "
            "expected greedy decoding or sampling"
        )


def check_cache(config: Any) -> None:
    """DllmError for a GenerationConfig whose cache says something else than the model does."""
    if config.cache_implementation == "quantized":
        raise DllmError(
            "cache_implementation='quantized' changes what the model says: drafts are verified in "
            "a cache of our own, in the model's dtype"
        )


def own_decoding(
    model: Any,
    prompts: Sequence[Sequence[int]],
    budget: int,
    options: Mapping[str, Any],
    processors: Sequence[Any] = (),
    stop: Sequence[str] = (),
) -> TargetDecoding:
    """How `model.generate(prompt, max_new_tokens=budget, **options)` decodes each of the prompts.

    processors: of the caller, put where `logits_processor` puts them.  stop: in place of the
    checkpoint's stop strings. ConfigError for an option
    that makes no sense, DllmError for one that drafts cannot be verified by.
    """
    own = model.generation_config
    for name, neutral in NOT_OURS.items():
        value = options.get(name, getattr(own, name, None))
        if value not in neutral:
            raise DllmError(f"{name}={value!r} is not kept here: expected {neutral[-1]}")
    first, *others = prompts or [[0]]
    made, config = prepared(model, first, budget, options, processors)
    check_mode(config)
    check_cache(config)
    dry_run(model, first, made)
    process = None
    if made:
        lists = [made, *(prepared(model, each, budget, options, processors)[0] for each in others)]
        texts = [torch.tensor(each, device=model.device) for each in prompts]
        process = Processors(texts, lists, None if others else made)
    said = applied(made, config, processors)
    if not stop and own.stop_strings:
        stop = [own.stop_strings] if isinstance(own.stop_strings, str) else own.stop_strings
        said["stop_strings"] = list(stop)
    return TargetDecoding(bool(config.do_sample), end_tokens(config), tuple(stop), process, said)


def prepared(
    model: Any,
    prompt: Sequence[int],
    budget: int,
    options: Mapping[str, Any],
    processors: Sequence[Any],
) -> tuple[LogitsProcessorList, Any]:
    """The processors and the GenerationConfig that `generate` hands to its loop."""
    ids = torch.tensor([list(prompt)], device=model.device)
    given = {
        **options,
        "max_new_tokens": budget,
        "max_length": None,  # a checkpoint's would be warned of
        "stop_strings": None,  # needs the tokenizer
        "use_cache": False,
        "return_dict_in_generate": False,
    }
    try:
        found: tuple[LogitsProcessorList, Any] = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList(processors),
            custom_generate=take,
            **given,
        )
    except Exception as error:  # of many kinds, by what is wrong with which option
        raise ConfigError(f"generation options {dict(options)}: {brief(error)}") from error
    return found


def take(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> tuple[LogitsProcessorList, Any]:
    """A loop for `custom_generate=` that decodes nothing: what was prepared for it."""
    return logits_processor, generation_config


def dry_run(model: Any, prompt: Sequence[int], processors: LogitsProcessorList) -> None:
    """ConfigError for an option that its processor refuses when it is first called."""
    ids = torch.tensor([list(prompt)], device=model.device)
    scores = torch.zeros(1, model.config.get_text_config().vocab_size, device=model.device)
    for each in processors:
        if (option := OPTIONS.get(type(each))) is not None:
            try:
                each(ids, scores)
            except Exception as error:
                raise ConfigError(f"{option}: {brief(error)}") from error


def applied(processors: LogitsProcessorList, config: Any, own: Sequence[Any]) -> dict[str, Any]:
    """The options behind processors, in their order, and what classes the caller's `own` are of."""
    options: dict[str, Any] = {"do_sample": bool(config.do_sample)}
    classes = []
    for each in processors:
        option = OPTIONS.get(type(each))
        if option is None or any(each is one for one in own):
            classes.append(type(each).__name__)
        else:
            options[option] = in_json(getattr(config, option))
    if "min_new_tokens" in options:
        options.pop("min_length", None)  # transformers makes the one of the other
    if classes:
        options["logits_processor"] = classes
    return options


def in_json(value: Any) -> Any:
    """The value of an option in JSON's types; a mapping from tokens as pairs."""
    if isinstance(value, Mapping):
        return [[list(tokens), bias] for tokens, bias in value.items()]
    if isinstance(value, list | tuple):
        return [in_json(each) for each in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def end_tokens(config: Any) -> frozenset[int]:
    """The end tokens of a GenerationConfig, which has none, one or several."""
    ends = config.eos_token_id
    return frozenset(() if ends is None else torch.as_tensor(ends).reshape(-1).tolist())


def brief(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
