"""Checkpoints that pass for a known family and are another: told by keys and tensors, by name.

Such a checkpoint would load and answer nonsense, or fail on a tensor whose name says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dllm.models.config_json import Config, brief

QUANTISED = (
    "the weights are stored quantised; expected plain float32, bfloat16, float16 or float64 "
    "tensors: take the checkpoint it was made from, or dequantise it and save it anew"
)
MEDIA = "a model of text and images or sound (as LLaDA-V is); only text models are supported"
EXPERTS = "mixture-of-experts models are not supported yet"
LENGTHS = "it changes the length of its answer (as DreamOn does), which is not supported yet"
QK_NORM = "it norms queries and keys (as DreamReasoner-8B does), which this family does not"

KEYS = {  # of config.json, unless the value is null, false, 0 or empty
    r"quantization_config|compression_config": QUANTISED,
    r"mm_\w+|(vision|audio)_\w+|(image|video|audio)_token_(id|index)": MEDIA,
    r"num_experts|num_local_experts|n_routed_experts": EXPERTS,
    r"(expand|delete|split)_token_id": LENGTHS,
}
TENSORS = {  # found beside those of the family, or in their place
    r"qweight|qzeros|weight_scale|absmax|quant_state|\bSCB\b": QUANTISED,
    r"vision|mm_projector|image": MEDIA,
    r"\bexperts\b": EXPERTS,
    r"\b[qk]_norm\b": QK_NORM,
}


def refuse_others(c: Config) -> None:
    """LoadError for a config.json that says it belongs to another kind of model."""
    for key, value in c.values.items():
        for pattern, reason in KEYS.items():
            if value and re.fullmatch(pattern, key):
                told = value.get("quant_method", value) if isinstance(value, dict) else value
                raise c.error(f"{key} is {brief(told)}: {reason}")
    layers = c.values.get("layer_types")
    if layers is not None:
        if not isinstance(layers, list):
            raise c.error(f"layer_types is {brief(layers)}, expected a list")
        for other in layers:
            if other != "full_attention":
                raise c.error(
                    f"layer_types has {brief(other)}, but only 'full_attention' is implemented"
                )


def why_other(tensors: Iterable[str]) -> str | None:
    """The reason against a model that names of tensors unknown to its family give, if any."""
    for name in tensors:
        for pattern, reason in TENSORS.items():
            if re.search(pattern, name):
                return reason
    return None


def is_autoregressive(config: Mapping[str, Any]) -> bool:
    """Whether transformers itself has the model, as a causal one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind, listed = config.get("model_type"), config.get("architectures")
    own = CAUSAL.get(kind) if isinstance(kind, str) else None
    return own is not None and listed in (None, [], [own])
