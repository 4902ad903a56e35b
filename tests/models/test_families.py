"""config.json -> ModelSpec: the released numbers, and one clear error for everything else."""

import re

import pytest
import torch

from dllm.errors import LoadError
from dllm.models.config_json import brief
from dllm.models.decoder import Decoder
from dllm.models.families import FAMILIES, find_family, read_spec
from dllm.models.spec import ModelSpec
from tests.models.checkpoints import CONFIGS, LLADA

OPTIONAL = {  # keys whose absence changes nothing
    "architectures",
    "attention_bias",
    "auto_map",
    "block_size",  # sdar: 4
    "eot_token_id",
    "layer_norm_with_affine",
    "mlp_ratio",
    "model_type",
    "multi_query_attention",
    "rope_scaling",
    "sliding_window",
    "torch_dtype",
    "use_sliding_window",
}
REAL_LLADA = {
    **LLADA,
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}
del REAL_LLADA["eot_token_id"]  # the released file has no such key
REAL_QWEN = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


def without(config, *keys):
    return {k: v for k, v in config.items() if k not in keys}


def real(family):
    ids = ("mask_token_id", "eos_token_id", "pad_token_id")
    vocab = {"vocab_size": 151936} if family == "sdar" else {}
    return without({**CONFIGS[family], **REAL_QWEN, **vocab}, *ids)


def test_llada_8b():
    assert read_spec(REAL_LLADA) == ModelSpec(
        family="llada",
        vocab_size=126464,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_size=12288,
        norm_eps=1e-5,
        rope_theta=500000.0,
        rope_fp32=True,
        mask_id=126336,
        eos_id=126081,
        pad_id=126081,
        eot_id=126348,
    )


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [(REAL_LLADA, 8_015_581_184, 291), (real("dream"), 7_615_616_512, 339)],
)
def test_released_size(config, parameters, tensors):
    """Published parameter counts, and that our names reach as many distinct tensors."""
    with torch.device("meta"):
        decoder = Decoder(read_spec(config))
    assert sum(p.numel() for p in decoder.parameters()) == parameters
    names = map(find_family(config, "").tensor_name, decoder.state_dict())
    assert len(set(names)) == tensors


@pytest.mark.parametrize(
    ("family", "ids", "shift", "block"),
    [
        ("dream", (151666, 151643, 151643, 151645), 1, None),
        ("fast_dllm_v2", (151665, 151645, 151645, 151645), 1, 8),
        ("sdar", (151669, 151643, 151643, 151645), 0, 4),
    ],
)
def test_released_ids_fill_in_for_absent_keys(family, ids, shift, block):
    spec = read_spec(real(family))
    assert (spec.mask_id, spec.eos_id, spec.pad_id, spec.eot_id) == ids
    assert (spec.shift, spec.block_length) == (shift, block)


def test_small_llada_takes_every_id_from_its_config():
    spec = read_spec(LLADA)
    assert (spec.mask_id, spec.eos_id, spec.pad_id, spec.eot_id) == (4, 3, 3, 5)
    assert read_spec(without(LLADA, "eot_token_id")).eot_id is None


@pytest.mark.parametrize(
    ("family", "size"), [("llada", 155136), ("dream", 151936), ("sdar", 152064)]
)
def test_released_ids_belong_to_the_released_vocabulary(family, size):
    """iLLaDA is LLaDA's network with 155,136 other tokens: its mask is 5, not 126336."""
    sizes = {"vocab_size": size, **({"embedding_size": size} if family == "llada" else {})}
    config = (without(REAL_LLADA, "mask_token_id") if family == "llada" else real(family)) | sizes
    with pytest.raises(
        LoadError, match=rf"'mask_token_id' is missing, and .* not to one of {size}"
    ):
        read_spec(config)
    named = {"mask_token_id": 5, "eos_token_id": 2, "pad_token_id": 1}
    spec = read_spec({**config, **named})
    assert (spec.mask_id, spec.eos_id, spec.pad_id, spec.eot_id) == (5, 2, 1, None)


@pytest.mark.parametrize("size", [151936, 152064])
def test_both_released_vocabularies_of_fast_dllm(size):
    assert read_spec({**real("fast_dllm_v2"), "vocab_size": size}).mask_id == 151665


@pytest.mark.parametrize("key", ["mask_token_id", "eos_token_id", "pad_token_id", "eot_token_id"])
def test_id_outside_the_vocabulary(key):
    with pytest.raises(LoadError, match=rf"c\.json: {key} is 97, outside the vocabulary \[0, 97\)"):
        read_spec({**LLADA, key: 97}, "c.json")


@pytest.mark.parametrize(
    ("family", "key"),
    [(f, k) for f, config in CONFIGS.items() for k in config if k not in OPTIONAL],
)
def test_missing_key_is_named(family, key):
    with pytest.raises(LoadError, match=rf"dir/config\.json: the key '{key}' is missing.*{family}"):
        read_spec(without(CONFIGS[family], key), "dir/config.json")


@pytest.mark.parametrize("family", CONFIGS)
def test_other_keys_may_be_missing(family):
    config = without(CONFIGS[family], *OPTIONAL - {"model_type", "eot_token_id"})
    assert read_spec(config) == read_spec(CONFIGS[family])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_type", "swiglu"),
        ("alibi", True),
        ("attention_layer_norm", True),
        ("bias_for_layer_norm", True),
        ("block_group_size", 2),
        ("block_type", "sequential"),
        ("embedding_size", 128),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("input_emb_norm", True),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("multi_query_attention", True),
        ("rope", False),
        ("scale_logits", True),
    ],
)
def test_llada_switch_that_means_another_network(key, value):
    with pytest.raises(LoadError, match=rf"{key} is {value!r}, but only .* is implemented"):
        read_spec({**LLADA, key: value})


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("dream", "hidden_act", "gelu"),
        ("dream", "use_sliding_window", True),
        ("sdar", "attention_bias", True),
        ("llada", "n_layers", 2.5),
        ("llada", "n_layers", True),
        ("llada", "n_heads", 0),
        ("llada", "rms_norm_eps", "1e-5"),
        ("llada", "weight_tying", None),
        ("fast_dllm_v2", "bd_size", 0),
        ("dream", "mask_token_id", -1),
        ("dream", "rope_scaling", "yarn"),
        ("dream", "hidden_size", 2**24 + 1),
        ("dream", "num_hidden_layers", 2**63),
        ("dream", "rope_theta", float("inf")),
        ("dream", "rope_theta", 10**400),
        ("dream", "rms_norm_eps", float("nan")),
        ("sdar", "head_dim", None),
        ("llada", "d_model", -32),
        ("llada", "vocab_size", "97"),
        ("llada", "mlp_hidden_size", 48.0),
        ("llada", "max_sequence_length", [4096]),
    ],
)
def test_bad_value_is_named(family, key, value):
    with pytest.raises(LoadError, match=rf"{key} is {re.escape(brief(value))}, "):
        read_spec({**CONFIGS[family], key: value})


def test_sizes_that_do_not_fit_together():
    with pytest.raises(LoadError, match=r"d_model=32 is not a multiple of n_heads=5"):
        read_spec({**LLADA, "n_heads": 5})
    with pytest.raises(LoadError, match=r"here: num_heads=4 is not a multiple of num_kv_heads=3"):
        read_spec({**LLADA, "n_kv_heads": 3}, "here")


def test_rope_theta_at_either_place():
    base = without(CONFIGS["dream"], "rope_theta", "rope_scaling")
    for key in ("rope_parameters", "rope_scaling"):
        nested = {**base, key: {"rope_theta": 777.0, "rope_type": "default"}}
        assert read_spec(nested).rope_theta == 777.0
    with pytest.raises(LoadError, match=r"rope_theta has several values: \[5.0, 777.0\]"):
        read_spec({**nested, "rope_theta": 5.0})


@pytest.mark.parametrize(
    "scaling",
    [{"rope_type": "yarn", "factor": 4.0}, {"type": "linear"}, {"partial_rotary_factor": 0.5}],
)
def test_other_rope_is_refused(scaling):
    with pytest.raises(LoadError, match=r"rope_scaling: .* is .*, but only .* is implemented"):
        read_spec({**CONFIGS["dream"], "rope_scaling": scaling})


def test_block_length_of_sdar():
    config = without(CONFIGS["sdar"], "block_size")
    assert read_spec(config).block_length == 4
    assert read_spec({**config, "block_length": 16}).block_length == 16
    assert read_spec({**config, "block_size": 32}).block_length == 32


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "llada"}, "llada"),
        ({"architectures": ["DreamModel"]}, "dream"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "dream"),
        ({"architectures": ["SDARForCausalLM"]}, "sdar"),
        ({"model_type": "Fast_dLLM_Qwen"}, "fast_dllm_v2"),
    ],
)
def test_recognised_by_either_key(config, family):
    assert find_family(config, "").name == family


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"model_type": "gtp2"}, "unknown architecture .*'gtp2'"),
        ({"model_type": "gpt2"}, "an autoregressive model .*'gpt2'.* `dllm speculate`"),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "an autoregressive model .*`dllm train ar-to-block`",
        ),
        ({"model_type": "llama", "architectures": ["LlamaForMasks"]}, "unknown architecture"),
        ({"model_type": "llada", "architectures": ["LlavaLLaDAModelLM"]}, "not llada, but Llava"),
        ({"model_type": "Dream", "architectures": ["DreamForCausalLM"]}, "not dream, but DreamFor"),
        ({"model_type": "qwen3", "architectures": ["SDARForCausalLM"]}, "not sdar, but qwen3"),
        ({"model_type": 7, "architectures": ["DreamModel"]}, "not dream, but 7,"),
        ({"architectures": [{}]}, "unknown architecture"),
        ({}, "unknown architecture"),
        (
            {"model_type": "llada", "architectures": ["DreamModel"]},
            "model_type and .* different families",
        ),
        ({"model_type": "llada_moe"}, "mixture-of-experts models are not supported yet"),
        ({"architectures": ["LLaDA2MoeModelLM"]}, "mixture-of-experts"),
        ({"model_type": "llada2_moe"}, "mixture-of-experts"),
        ({"model_type": "sdar_moe", "architectures": ["SDARForCausalLM"]}, "mixture-of-experts"),
        ({"model_type": "olmoe"}, "mixture-of-experts"),
    ],
)
def test_what_is_not_supported_lists_what_is(config, problem):
    with pytest.raises(LoadError, match=f"dir/c.json: {problem}") as caught:
        read_spec(config, "dir/c.json")
    assert all(name in str(caught.value) for name in FAMILIES)
