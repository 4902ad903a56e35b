"""The config.json of an autoregressive checkpoint, read as that of a block-diffusion model.

The weights stay as they are: Llama, Qwen2 and Qwen3 name their tensors alike and predict the next
token, which is `shift` 1. Only which keys a query sees is new. Knows no tensor and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.errors import LoadError
from dllm.models.config_json import Config
from dllm.models.families import BLOCK, read_spec
from dllm.models.refusals import refuse_others

CAUSAL = ("llama", "qwen2", "qwen3")
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def block_config(
    config: Mapping[str, Any],
    *,
    block_length: int | None,
    mask_id: int,
    source: str = "config.json",
) -> dict[str, Any]:
    """config.json of family `block` for the weights of a Llama, Qwen2 or Qwen3 checkpoint.

    block_length: tokens that see each other; None lets every token see all, as in Dream. mask_id:
    a token that no text holds. Of several ends of text the first and the last one stop an answer.
    LoadError names the key and the value of whatever `Decoder` does not do.
    """
    kind = config.get("model_type")
    if kind not in CAUSAL:
        raise LoadError(f"{source}: model_type is {kind!r}, expected one of {', '.join(CAUSAL)}")
    c = Config(config, kind, source)
    _refuse(c)
    eos, eot = _ends(c)
    pad = config.get("pad_token_id")
    if mask_id in (eos, eot, pad):
        raise LoadError(f"mask_id={mask_id} ends or pads a text; expected a token that no text has")
    made = {
        "architectures": ["BlockDiffusionLM"],
        "model_type": BLOCK,
        **{key: c.integer(key) for key in SIZES},
        "head_dim": _head_dim(c),
        "rms_norm_eps": c.number("rms_norm_eps"),
        "rope_theta": c.rope_theta(),
        "hidden_act": "silu",
        "tie_word_embeddings": "tie_word_embeddings" in config and c.flag("tie_word_embeddings"),
        "attention_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "bd_size": block_length,
        "mask_token_id": mask_id,
        "eos_token_id": eos,
        "eot_token_id": eot,
        "pad_token_id": eos if pad in (None, -1) else pad,
    }
    if (dtype := config.get("dtype") or config.get("torch_dtype")) is not None:
        made["dtype"] = dtype
    read_spec(made, source)  # ids outside the vocabulary, sizes that do not fit
    return made


def _refuse(c: Config) -> None:
    """Each of these is another network than the decoder's."""
    c.expect("hidden_act", "silu")
    for switch in ("attention_bias", "mlp_bias", "use_sliding_window"):
        c.expect(switch, False, None, optional=True)
    refuse_others(c)


def _ends(c: Config) -> tuple[int, int | None]:
    """The end of a text, and another token that ends an answer if there is one."""
    value = c.need("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(token) is int for token in ids):
        raise c.error(f"eos_token_id is {value!r}, expected a token id or a list of them")
    return ids[0], ids[-1] if ids[-1] != ids[0] else None


def _head_dim(c: Config) -> int:
    if c.values.get("head_dim") is not None or c.family == "qwen3":  # its own number in Qwen3
        return c.integer("head_dim")
    return c.head_dim("hidden_size", "num_attention_heads")
