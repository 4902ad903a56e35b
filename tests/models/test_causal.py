"""AR checkpoints read as block-diffusion models: same weights, same logits where blocks hold one.

The originals are transformers' own classes with random weights, written by `save_pretrained`.
"""

import json

import pytest
import torch
import transformers as tf
from torch import nn

from dllm.cache.plan import ForwardPlan
from dllm.errors import LoadError
from dllm.models.causal import block_config
from dllm.models.checkpoint_writer import write_checkpoint
from dllm.models.families import read_spec
from dllm.models.loading import load_model

VOCAB, MASK = 61, 7
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
}
KINDS = {
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM),
    "qwen2": (tf.Qwen2Config, tf.Qwen2ForCausalLM),
    "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM),
}


class WideNorm(nn.Module):
    """RMSNorm in the dtype of its input: transformers' own rounds to fp32 whatever the dtype."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class WideAngles(nn.Module):
    """cos and sin of RoPE in the dtype of its input."""

    def __init__(self, size, base):
        super().__init__()
        self.frequency = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)

    def forward(self, x, position_ids):
        angle = position_ids[..., None].to(x.dtype) * self.frequency.repeat(2)
        return angle.cos(), angle.sin()


def widened(model):
    """`model` with everything in fp64."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, WideNorm(module))
    config = model.config
    model.model.rotary_emb = WideAngles(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.rope_parameters["rope_theta"],
    )
    return model.double()


def original(folder, kind, **changes):
    """A random AR model of this kind, and its directory."""
    made, model = KINDS[kind]
    config = made(**SIZES | changes, attn_implementation="sdpa")  # eager has its softmax in fp32
    torch.manual_seed(0)
    model = model(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3 if p.ndim == 1 else p.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return model


def config_of(folder, **options):
    return block_config(json.loads((folder / "config.json").read_text()), **options)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_with_blocks_of_one_the_logits_are_the_originals(tmp_path, kind, tied):
    changes = {"tie_word_embeddings": tied} | ({"head_dim": 12} if kind == "qwen3" else {})
    twin = widened(original(tmp_path, kind, **changes))
    config = config_of(tmp_path, block_length=1, mask_id=MASK)
    decoder = load_model(tmp_path, "float64", "cpu", config=config)
    ids = torch.randint(VOCAB, (2, 100), generator=torch.Generator().manual_seed(1))
    logits = decoder(ids, ForwardPlan.full(100, 2))
    assert (logits - twin(input_ids=ids).logits).abs().max() < 1e-11
    assert (decoder.spec.shift, decoder.spec.tie_head) == (1, tied)


@pytest.mark.parametrize("block", [8, None])
@torch.no_grad()
def test_with_longer_blocks_only_the_mask_is_another(tmp_path, block):
    twin = widened(original(tmp_path, "qwen2"))
    config = config_of(tmp_path, block_length=block, mask_id=MASK)
    decoder = load_model(tmp_path, "float64", "cpu", config=config)
    ids = torch.randint(VOCAB, (1, 21), generator=torch.Generator().manual_seed(1))
    number = torch.arange(21) // (block or 21)
    hidden = torch.zeros(21, 21, dtype=torch.float64)
    hidden[number[None] > number[:, None]] = -torch.inf
    theirs = twin(input_ids=ids, attention_mask=hidden[None, None]).logits
    assert (decoder(ids, ForwardPlan.full(21)) - theirs).abs().max() < 1e-11
    assert (theirs - twin(input_ids=ids).logits).abs().max() > 1e-2


def test_it_is_written_and_read_as_a_checkpoint_of_its_own(tmp_path):
    original(tmp_path / "ar", "qwen3", head_dim=12, tie_word_embeddings=True)
    config = config_of(tmp_path / "ar", block_length=4, mask_id=MASK)
    decoder = load_model(tmp_path / "ar", "float32", "cpu", config=config)
    write_checkpoint(decoder, tmp_path / "block", config)
    again = load_model(tmp_path / "block", device="cpu")
    assert again.spec == decoder.spec
    for (name, a), (_, b) in zip(decoder.named_parameters(), again.named_parameters()):
        assert torch.equal(a, b), name


LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    **{k: v for k, v in SIZES.items() if k != "rope_parameters"},
}


def spec_of(block_length=4, mask_id=MASK, **changes):
    return read_spec(
        block_config(LLAMA | changes, block_length=block_length, mask_id=mask_id, source="dir/c")
    )


def test_keys_of_transformers_4_and_5_mean_the_same():
    old = LLAMA | {"rope_scaling": None, "torch_dtype": "bfloat16", "head_dim": None}
    new = {k: v for k, v in LLAMA.items() if k != "rope_theta"} | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "head_dim": 8,
        "tie_word_embeddings": False,
    }
    one, two = (read_spec(block_config(c, block_length=4, mask_id=MASK)) for c in (old, new))
    assert one == two
    assert (one.rope_theta, one.head_dim, one.block_length, one.shift) == (500.0, 8, 4, 1)
    assert (one.qkv_bias, one.qk_norm, one.tie_head, one.rope_fp32) == (False,) * 4


@pytest.mark.parametrize(
    ("eos", "pad", "ids"),
    [
        (2, None, (2, None, 2)),
        (2, -1, (2, None, 2)),
        (2, 0, (2, None, 0)),
        ([2], 3, (2, None, 3)),
        ([2, 3], None, (2, 3, 2)),
        ([2, 4, 3], 5, (2, 3, 5)),
    ],
)
def test_ends_of_text(eos, pad, ids):
    spec = spec_of(eos_token_id=eos, pad_token_id=pad)
    assert (spec.eos_id, spec.eot_id, spec.pad_id, spec.mask_id) == (*ids, MASK)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', expected one of llama, qwen2, qwen3"),
        ({"model_type": None}, "model_type is None, expected"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has 'sliding_attention'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"model_type": "qwen3"}, "the key 'head_dim' is missing"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None, expected true or false"),
        ({"eos_token_id": None}, "eos_token_id is None, expected a token id"),
        ({"eos_token_id": []}, r"eos_token_id is \[\], expected a token id"),
        ({"eos_token_id": [2, True]}, r"eos_token_id is \[2, True\], expected a token id"),
        ({"eos_token_id": VOCAB}, f"eos_token_id is {VOCAB}, outside the vocabulary"),
        ({"pad_token_id": VOCAB}, f"pad_token_id is {VOCAB}, outside the vocabulary"),
        ({"mask_id": VOCAB}, f"mask_token_id is {VOCAB}, outside the vocabulary"),
        ({"block_length": 0}, "bd_size is 0, expected an integer >= 1"),
    ],
)
def test_what_is_refused_is_named(changes, problem):
    with pytest.raises(LoadError, match=f"^dir/c.*{problem}"):
        spec_of(**changes)


@pytest.mark.parametrize("mask", [2, 3, 5])
def test_the_mask_is_no_end_of_text_and_no_padding(mask):
    with pytest.raises(LoadError, match=f"mask_id={mask} ends or pads a text"):
        spec_of(mask_id=mask, eos_token_id=[2, 3], pad_token_id=5)


def test_a_missing_key_is_named():
    for key in LLAMA.keys() - {"pad_token_id", "bos_token_id", "model_type"}:
        config = {k: v for k, v in LLAMA.items() if k != key}
        with pytest.raises(LoadError, match=f"the key '{key}' is missing"):
            block_config(config, block_length=4, mask_id=MASK)


@pytest.mark.parametrize("key", ["attention_bias", "qk_norm", "bd_size", "mask_token_id"])
def test_the_flags_of_the_family_have_no_default(key):
    config = block_config(LLAMA, block_length=4, mask_id=MASK)
    with pytest.raises(LoadError, match=f"the key '{key}' is missing"):
        read_spec({k: v for k, v in config.items() if k != key})
