"""Model families on disk: how config.json is recognised and read, tensor names, special ids.

Every switch is read from the checkpoint's own config.json. A class default is never used: the ones
of LLaDA's configuration class describe another network (another MLP, no RoPE, a tied head), which
would load and run without an error. Knows no tensor and no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dllm.errors import LoadError
from dllm.models.config_json import LARGEST, Config, Released, SpecialIds, brief
from dllm.models.refusals import EXPERTS, is_autoregressive, refuse_others
from dllm.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Family:
    """One layout on disk.

    kinds: values of `model_type` or `architectures` that mean this family.
    names: our module -> the checkpoint's, `{i}` is the layer.
    """

    name: str
    models: str
    kinds: frozenset[str]
    names: Mapping[str, str]
    read: Callable[[Config], ModelSpec]

    def tensor_name(self, parameter: str) -> str:
        """Checkpoint name of a parameter as `Decoder.state_dict()` calls it.

        Matches whole module names, since LLaDA uses `ff_out` for the head and, inside a block, for
        the down projection.
        """
        module, _, kind = parameter.rpartition(".")
        layer = re.match(r"layers\.(\d+)\.", module)
        if layer is None:
            return f"{self.names[module]}.{kind}"
        template = self.names[module.replace(layer[0], "layers.{i}.", 1)]
        return f"{template.format(i=layer[1])}.{kind}"


LLADA_NAMES = {
    "embed": "model.transformer.wte",
    "layers.{i}.attn_norm": "model.transformer.blocks.{i}.attn_norm",
    "layers.{i}.attn.q": "model.transformer.blocks.{i}.q_proj",
    "layers.{i}.attn.k": "model.transformer.blocks.{i}.k_proj",
    "layers.{i}.attn.v": "model.transformer.blocks.{i}.v_proj",
    "layers.{i}.attn.o": "model.transformer.blocks.{i}.attn_out",
    "layers.{i}.mlp_norm": "model.transformer.blocks.{i}.ff_norm",
    "layers.{i}.gate": "model.transformer.blocks.{i}.ff_proj",
    "layers.{i}.up": "model.transformer.blocks.{i}.up_proj",
    "layers.{i}.down": "model.transformer.blocks.{i}.ff_out",
    "norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
}

QWEN_NAMES = {
    "embed": "model.embed_tokens",
    "layers.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.attn.q": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.attn.k": "model.layers.{i}.self_attn.k_proj",
    "layers.{i}.attn.v": "model.layers.{i}.self_attn.v_proj",
    "layers.{i}.attn.o": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.attn.q_norm": "model.layers.{i}.self_attn.q_norm",
    "layers.{i}.attn.k_norm": "model.layers.{i}.self_attn.k_norm",
    "layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.gate": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.up": "model.layers.{i}.mlp.up_proj",
    "layers.{i}.down": "model.layers.{i}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def _read_llada(c: Config) -> ModelSpec:
    # Each of these silently gives another network if it is not what the decoder does.
    c.expect("activation_type", "silu")  # gate and up apart; "swiglu" chunks one projection
    c.expect("block_type", "llama")
    c.expect("block_group_size", 1)
    c.expect("layer_norm_type", "rms")
    c.expect("layer_norm_with_affine", True, optional=True)
    c.expect("multi_query_attention", False, None, optional=True)
    c.expect("rope", True)
    for switch in (
        "alibi",
        "attention_layer_norm",
        "bias_for_layer_norm",
        "include_bias",
        "include_qkv_bias",
        "input_emb_norm",
        "scale_logits",
    ):
        c.expect(switch, False)
    vocab_size = c.integer("vocab_size")
    c.expect("embedding_size", vocab_size, None)  # rows of the embedding; null means vocab_size
    _attends_everywhere(c)
    released = Released(SpecialIds(126336, 126081, 126081, 126348), (126464,))
    ids = c.special_ids(released, vocab_size)
    return ModelSpec(
        family=c.family,
        vocab_size=vocab_size,
        hidden_size=c.integer("d_model"),
        num_layers=c.integer("n_layers"),
        num_heads=c.integer("n_heads"),
        num_kv_heads=c.integer("n_kv_heads"),
        head_dim=c.head_dim("d_model", "n_heads"),
        mlp_size=c.integer("mlp_hidden_size"),  # mlp_ratio is ignored by the released code
        norm_eps=c.number("rms_norm_eps"),
        rope_theta=c.rope_theta(),
        rope_fp32=c.flag("rope_full_precision"),
        tie_head=c.flag("weight_tying"),
        max_positions=c.integer("max_sequence_length"),
        mask_id=ids.mask,
        eos_id=ids.eos,
        pad_id=ids.pad,
        eot_id=ids.eot,
    )


def _read_qwen(
    c: Config,
    released: Released | None,
    *,
    shift: Literal[0, 1],
    block_length: int | None = None,
    qkv_bias: bool = True,
    qk_norm: bool = False,
) -> ModelSpec:
    """The layout of Qwen2 (biases on q, k, v), or with `qk_norm` of Qwen3, which has no biases.

    All rotate in the model's dtype. Qwen3's head size is a number of its own, Qwen2's is
    hidden_size / heads unless the config says otherwise.
    """
    c.expect("hidden_act", "silu")
    c.expect("use_sliding_window", False, None, optional=True)
    vocab_size = c.integer("vocab_size")
    ids = c.special_ids(released, vocab_size)
    own_head_dim = qk_norm or c.values.get("head_dim") is not None
    return ModelSpec(
        family=c.family,
        vocab_size=vocab_size,
        hidden_size=c.integer("hidden_size"),
        num_layers=c.integer("num_hidden_layers"),
        num_heads=c.integer("num_attention_heads"),
        num_kv_heads=c.integer("num_key_value_heads"),
        head_dim=c.integer("head_dim")
        if own_head_dim
        else c.head_dim("hidden_size", "num_attention_heads"),
        mlp_size=c.integer("intermediate_size"),
        norm_eps=c.number("rms_norm_eps"),
        rope_theta=c.rope_theta(),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        tie_head=c.flag("tie_word_embeddings"),
        block_length=block_length,
        shift=shift,
        max_positions=c.integer("max_position_embeddings"),
        mask_id=ids.mask,
        eos_id=ids.eos,
        pad_id=ids.pad,
        eot_id=ids.eot,
    )


def _read_dream(c: Config) -> ModelSpec:
    _attends_everywhere(c)
    released = Released(SpecialIds(151666, 151643, 151643, 151645), (152064,))
    return _read_qwen(c, released, shift=1)


def _attends_everywhere(c: Config) -> None:
    """A block in the config of a family whose released models have none: other weights."""
    for key in ("block_size", "bd_size"):
        if c.values.get(key) is not None:
            raise c.error(
                f"{key} is {brief(c.values[key])}, but models of this family attend everywhere; "
                "one trained with blocks (DreamReasoner-8B, say) is not supported yet"
            )


def _read_fast_dllm_v2(c: Config) -> ModelSpec:
    released = Released(SpecialIds(151665, 151645, 151645, 151645), (151936, 152064))
    return _read_qwen(c, released, shift=1, block_length=c.integer("bd_size"))


SDAR_BLOCKS = (4, 8, 16, 32, 64)
IDLM = "I-DLM, which attends causally and predicts the next token, is not supported yet"


def _read_sdar(c: Config) -> ModelSpec:
    # The block belongs to the weights, but the first releases (all trained with 4) left it to the
    # sampler's default and their config.json does not carry it. The wider variants must name it.
    key = next((k for k in ("block_size", "block_length") if c.values.get(k) is not None), None)
    block_length = 4 if key is None else c.integer(key)
    # I-DLM has this architecture's name; its blocks are one token shorter than its strides
    if c.values.get("use_regular_causal"):
        raise c.error(f"use_regular_causal is {brief(c.values['use_regular_causal'])}: {IDLM}")
    if block_length not in SDAR_BLOCKS:
        sizes = ", ".join(map(str, SDAR_BLOCKS))
        raise c.error(f"{key} is {block_length}, but a block of SDAR has {sizes} tokens: {IDLM}")
    c.expect("attention_bias", False, optional=True)
    released = Released(SpecialIds(151669, 151643, 151643, 151645), (151936,))
    return _read_qwen(c, released, shift=0, block_length=block_length, qkv_bias=False, qk_norm=True)


def _read_block(c: Config) -> ModelSpec:
    return _read_qwen(
        c,
        None,  # ours: nothing is released, the file names all ids
        shift=1,
        block_length=None if c.need("bd_size") is None else c.integer("bd_size"),
        qkv_bias=c.flag("attention_bias"),
        qk_norm=c.flag("qk_norm"),
    )


BLOCK = "dllm_block"  # model_type of what we make of autoregressive checkpoints: see causal.py
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "llada",
            "LLaDA-8B Base/Instruct, LLaDA-1.5",
            frozenset({"llada", "LLaDAModelLM"}),
            LLADA_NAMES,
            _read_llada,
        ),
        Family(
            "dream",
            "Dream-7B, Dream-Coder, DiffuCoder",
            frozenset({"Dream", "DreamModel"}),
            QWEN_NAMES,
            _read_dream,
        ),
        Family(
            "fast_dllm_v2",
            "Fast-dLLM v2",
            frozenset({"Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM"}),
            QWEN_NAMES,
            _read_fast_dllm_v2,
        ),
        Family(
            "sdar",
            "SDAR and TraDo, dense",
            frozenset({"sdar", "SDARForCausalLM"}),
            QWEN_NAMES,
            _read_sdar,
        ),
        Family(
            "block",
            "made of an autoregressive checkpoint by `dllm train ar-to-block`",
            frozenset({BLOCK, "BlockDiffusionLM"}),
            QWEN_NAMES,
            _read_block,
        ),
    )
}

MOE = re.compile(r"moe|llada2", re.IGNORECASE)  # llada_moe, LLaDA2MoeModelLM, sdar_moe, olmoe


def find_family(config: Mapping[str, Any], source: str) -> Family:
    """The family a config.json belongs to.

    Raises LoadError naming what the file says and the known families, for an unknown architecture,
    also beside a known model_type (the class is what tells LLaDA-V from LLaDA), and for a mixture
    of experts, which none of them implements yet.
    """
    listed = config.get("architectures") or []
    named = [config.get("model_type"), *(listed if isinstance(listed, list) else [listed])]
    kinds = {kind if isinstance(kind, str) else brief(kind) for kind in named if kind is not None}
    found = [family for family in FAMILIES.values() if family.kinds & kinds]
    said = ", ".join(f"{key} {brief(config.get(key))}" for key in ("model_type", "architectures"))
    if any(MOE.search(kind) for kind in kinds):
        problem = f"{EXPERTS} ({said})"
    elif not found and is_autoregressive(config):
        problem = (
            f"an autoregressive model ({said}): use it as the target of `dllm speculate`, or make "
            "a block-diffusion model of it by `dllm train ar-to-block`"
        )
    elif not found:
        problem = f"unknown architecture ({said})"
    elif len(found) > 1:
        problem = f"model_type and architectures name different families ({said})"
    elif others := kinds - found[0].kinds:
        problem = f"not {found[0].name}, but {' and '.join(sorted(others))}, which is unknown"
    else:
        return found[0]
    known = "; ".join(f"{f.name} ({f.models})" for f in FAMILIES.values())
    raise LoadError(f"{source}: {problem}; known families: {known}")


def read_spec(config: Mapping[str, Any], source: str = "config.json") -> ModelSpec:
    """`ModelSpec` of a config.json's content; `source` names the file in errors (LoadError)."""
    family = find_family(config, source)
    read = Config(config, family.name, source)
    refuse_others(read)
    try:
        spec = family.read(read)
    except LoadError:
        raise
    except ValueError as error:  # what ModelSpec itself refuses
        raise LoadError(f"{source}: {error}") from error
    if spec.num_heads * spec.head_dim > LARGEST:
        raise read.error(f"{spec.num_heads} heads of {spec.head_dim} are more than {LARGEST} wide")
    return spec
