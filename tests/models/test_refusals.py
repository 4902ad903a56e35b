"""Other models under a known family's name: refused, with the reason and not with a list."""

import pytest
import torch

from dllm.errors import LoadError
from dllm.models.families import read_spec
from dllm.models.loading import load_model
from tests.models.checkpoints import CONFIGS, make, write_shards

GPTQ = {"bits": 4, "quant_method": "gptq"}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"quantization_config": GPTQ}, "quantization_config is 'gptq': the weights are stored"),
        ({"quantization_config": {"load_in_8bit": True}}, "is {'load_in_8bit': True}: the weights"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8': the weights are stored"),
        ({"compression_config": {"format": "int"}}, "compression_config is .* stored quantised"),
        ({"mm_vision_tower": "siglip"}, "mm_vision_tower is 'siglip': a model of text and images"),
        ({"vision_config": {"depth": 3}}, "vision_config is .*: a model of text and images"),
        ({"image_token_id": 7}, "image_token_id is 7: a model of text and images"),
        ({"num_experts": 64}, "num_experts is 64: mixture-of-experts models are not supported yet"),
        ({"expand_token_id": 8}, "expand_token_id is 8: it changes the length of its answer"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has 'sliding_attention', but"),
        ({"layer_types": 5}, "layer_types is 5, expected a list"),
    ],
)
def test_by_a_key(family, changes, problem):
    with pytest.raises(LoadError, match=f"^dir/c: .*{problem}"):
        read_spec({**CONFIGS[family], **changes}, "dir/c")


@pytest.mark.parametrize("family", CONFIGS)
def test_an_empty_key_says_nothing(family):
    empty = {"quantization_config": None, "vision_config": {}, "num_experts": 0, "mm_x": False}
    full = {"layer_types": ["full_attention"] * 2}
    assert read_spec({**CONFIGS[family], **empty, **full}) == read_spec(CONFIGS[family])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"block_size": 3},
            "block_size is 3, but a block of SDAR has 4, 8, 16, 32, 64 tokens: I-D",
        ),
        ({"block_size": 7}, "block_size is 7"),
        ({"block_size": None, "block_length": 1}, "block_length is 1"),
        ({"use_regular_causal": True}, "use_regular_causal is True: I-DLM, which attends causally"),
    ],
)
def test_idlm_is_no_sdar(changes, problem):
    with pytest.raises(LoadError, match=problem):
        read_spec({**CONFIGS["sdar"], **changes})


@pytest.mark.parametrize(("family", "key"), [("dream", "block_size"), ("llada", "bd_size")])
def test_a_block_where_a_family_has_none(family, key):
    with pytest.raises(LoadError, match=f"{key} is 32, but models of this family attend every"):
        read_spec({**CONFIGS[family], key: 32})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("model.layers.0.self_attn.q_norm.weight", "norms queries and keys .as DreamReasoner-8B"),
        ("model.layers.1.mlp.experts.0.up_proj.weight", "mixture-of-experts"),
        ("model.layers.1.mlp.up_proj.weight_scale_inv", "stored quantised"),
        ("model.vision_tower.embed.weight", "a model of text and images"),
        ("model.layers.0.other", "1 unexpected: model.layers.0.other$"),
    ],
)
def test_by_a_tensor(tmp_path, name, problem):
    dream = make(tmp_path, "dream")
    write_shards(tmp_path, dream.tensors | {name: torch.ones(8)})
    with pytest.raises(LoadError, match=f"1 unexpected: {name}.*{problem}|{problem}"):
        load_model(tmp_path)
