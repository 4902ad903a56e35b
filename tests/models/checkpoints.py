"""Tiny random checkpoints that look like the released ones: real keys and tensor names, two shards.

The names are spelled out here, not taken from dllm.models.families: the two check each other.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCAB, WIDTH, LAYERS, HEADS, MLP = 97, 32, 2, 4, 48

LLADA = {
    "activation_type": "silu",
    "alibi": False,
    "architectures": ["LLaDAModelLM"],
    "attention_layer_norm": False,
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig"},
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": WIDTH,
    "embedding_size": VOCAB,
    "eos_token_id": 3,
    "eot_token_id": 5,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 4,
    "max_sequence_length": 4096,
    "mlp_hidden_size": MLP,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "n_layers": LAYERS,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": VOCAB,
    "weight_tying": False,
}

QWEN: dict[str, Any] = {
    "eos_token_id": 3,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "mask_token_id": 4,
    "max_position_embeddings": 131072,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llada": LLADA,
    "dream": {**QWEN, "model_type": "Dream", "architectures": ["DreamModel"]},
    "fast_dllm_v2": {
        **QWEN,
        "model_type": "Fast_dLLM_Qwen",
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "bd_size": 8,
    },
    "sdar": {
        **QWEN,
        "model_type": "sdar",
        "architectures": ["SDARForCausalLM"],
        "attention_bias": False,
        "block_size": 4,
        "head_dim": 12,  # not hidden_size / num_attention_heads, as in the small Qwen3 models
    },
}


def llada_tensors(c: dict[str, Any], random: torch.Generator) -> dict[str, Tensor]:
    d, mlp, kv = c["d_model"], c["mlp_hidden_size"], c["d_model"] // c["n_heads"] * c["n_kv_heads"]
    shapes = {"wte": (c["vocab_size"], d), "ln_f": (d,)}
    if not c["weight_tying"]:
        shapes["ff_out"] = (c["vocab_size"], d)
    for i in range(c["n_layers"]):
        block = {
            "attn_norm": (d,),
            "ff_norm": (d,),
            "q_proj": (d, d),
            "k_proj": (kv, d),
            "v_proj": (kv, d),
            "attn_out": (d, d),
            "ff_proj": (mlp, d),
            "up_proj": (mlp, d),
            "ff_out": (d, mlp),
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {f"model.transformer.{n}.weight": _random(s, random) for n, s in shapes.items()}


def qwen_tensors(c: dict[str, Any], random: torch.Generator) -> dict[str, Tensor]:
    d, mlp = c["hidden_size"], c["intermediate_size"]
    size = c.get("head_dim", d // c["num_attention_heads"])
    q, kv = size * c["num_attention_heads"], size * c["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c["vocab_size"], d),
        "model.norm.weight": (d,),
    }
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (d,),
            "post_attention_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (q, d),
            "self_attn.k_proj.weight": (kv, d),
            "self_attn.v_proj.weight": (kv, d),
            "self_attn.o_proj.weight": (d, q),
            "mlp.gate_proj.weight": (mlp, d),
            "mlp.up_proj.weight": (mlp, d),
            "mlp.down_proj.weight": (d, mlp),
        }
        if c["model_type"] == "sdar":
            layer |= {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)}
        else:
            layer |= {f"self_attn.{n}_proj.bias": (s,) for n, s in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {name: _random(shape, random) for name, shape in shapes.items()}


def _random(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Matrices keep the scale of their input; norm weights and biases are far from 1 and 0."""
    if len(shape) == 1:
        return torch.rand(shape, generator=random) + 0.5
    return torch.randn(shape, generator=random) * 1.5 * shape[1] ** -0.5


class Checkpoint(NamedTuple):
    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def make(folder: Path, family: str, seed: int = 0, **changes: Any) -> Checkpoint:
    """Write a checkpoint of `family`; `changes` replace keys of its config.json."""
    config = {**CONFIGS[family], **changes}
    random = torch.Generator().manual_seed(seed)
    tensors = (llada_tensors if family == "llada" else qwen_tensors)(config, random)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, tensors)
    return Checkpoint(folder, config, tensors)


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every other tensor in each of two shards, with the index."""
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        save_file(dict(list(tensors.items())[i::2]), folder / file, metadata={"format": "pt"})
    index = {name: files[i % 2] for i, name in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
