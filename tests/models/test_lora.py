"""The attached and the merged model against plain weights changed by hand."""

import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError
from dllm.models.decoder import Decoder
from dllm.models.families import read_spec
from dllm.models.lora import Lora, attach, is_adapted, lora_config, matrices, merge
from tests.models.checkpoints import CONFIGS, LAYERS, VOCAB

OURS = ("attn.q", "attn.k", "attn.v", "attn.o", "gate", "up", "down")
PLAN = ForwardPlan.full(5)
IDS = torch.arange(5)[None] * 7 % VOCAB


def decoder(family="llada", dtype=torch.float64, **changes):
    model = Decoder(read_spec({**CONFIGS[family], **changes})).to(dtype)
    draw(dict(model.named_parameters()), 0.3)
    return model.eval()


def llama(dtype=torch.float64, tied=True):
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def draw(parameters, std):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in sorted(parameters):
            p = parameters[name]
            p.copy_(std * torch.randn(p.shape, dtype=torch.float64, generator=generator))


def train_by_hand(model):
    """Give an attached adapter matrices that are far from zero."""
    draw({n: p for n, p in model.named_parameters() if p.requires_grad}, 0.4)


def logits(model):
    with torch.no_grad():
        return model(IDS, PLAN) if isinstance(model, Decoder) else model(IDS).logits


def adapted_layers(model):
    return list(dict.fromkeys(name.rpartition(".lora_")[0] for name in matrices(model)))


def changed_by_hand(plain, model, lora):
    """The parameters of `plain`, W + alpha / rank * B A written out in numpy."""
    found, change = dict(plain.named_parameters()), matrices(model)
    for name in adapted_layers(model):
        a, b = (change[f"{name}.lora_{w}.weight"].detach().double().numpy() for w in "AB")
        product = np.einsum("or,ri->oi", b, a) * (lora.alpha / lora.rank)
        found[f"{name}.weight"] = found[f"{name}.weight"] + torch.from_numpy(product)
    return found


FAMILY_MODELS = st.sampled_from(sorted(CONFIGS)).flatmap(
    lambda family: st.booleans().map(
        lambda tied: decoder(
            family, **{"weight_tying" if family == "llada" else "tie_word_embeddings": tied}
        )
    )
)
MODELS = FAMILY_MODELS | st.booleans().map(lambda tied: llama(tied=tied))
LORAS = st.builds(Lora, st.integers(1, 40), st.floats(0.1, 64))


@settings(max_examples=15)
@given(MODELS, LORAS)
def test_attached_and_merged_are_the_changed_weights(model, lora):
    plain, before = copy.deepcopy(model), logits(model)
    attach(model, lora, seed=3)
    assert torch.equal(logits(model), before)  # a change of zero
    train_by_hand(model)
    weights = changed_by_hand(plain, model, lora)
    with torch.no_grad():
        args = (IDS, PLAN) if isinstance(plain, Decoder) else (IDS,)
        out = functional_call(plain, weights, args)
    expected = out if isinstance(plain, Decoder) else out.logits
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(model), expected, rtol=1e-9, atol=1e-9)

    merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-9, atol=1e-9)
    assert [name for name, _ in model.named_parameters()] == list(weights)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matrices_are_at_least_of_fp32(dtype):
    model = nn.Sequential(nn.Linear(5, 7, dtype=dtype))
    attach(model, Lora(3, targets=("0",)), seed=0)
    found = {name: (tuple(p.shape), p.dtype) for name, p in matrices(model).items()}
    wide = torch.promote_types(dtype, torch.float32)
    assert found == {"0.lora_A.weight": ((3, 5), wide), "0.lora_B.weight": ((7, 3), wide)}
    assert model(torch.ones(2, 5, dtype=dtype)).dtype == dtype


def test_the_sum_is_rounded_once():
    """In bfloat16 257 is 256: the change of 257 to a weight of -256 must come out as 1."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False, dtype=torch.bfloat16))
    attach(model, Lora(2, 2.0, ("0",)), seed=0)
    with torch.no_grad():
        model[0].weight.fill_(-256.0)
        matrices(model)["0.lora_A.weight"].copy_(torch.tensor([[256.0], [1.0]]))
        matrices(model)["0.lora_B.weight"].fill_(1.0)
    merge(model)
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight.item() == 1.0


def test_no_weight_is_copied():
    model = decoder("fast_dllm_v2", dtype=torch.float32)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    attach(model, Lora(2), seed=0)
    kept = {n.replace(".base_layer.", "."): p for n, p in model.named_parameters()}
    assert {n: p.data_ptr() for n, p in kept.items() if "lora_" not in n} == before
    merge(model)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before


@pytest.mark.parametrize("make", [decoder, llama])
def test_only_the_matrices_learn(make):
    model = make(dtype=torch.float32)
    attach(model, Lora(3), seed=0)
    train_by_hand(model)
    out = model(IDS, PLAN) if isinstance(model, Decoder) else model(IDS).logits
    out.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == (p.grad is not None) == ("lora_" in name), name
        assert p.grad is None or p.grad.abs().sum() > 0, name


def test_a_starts_random_by_seed_and_b_at_zero():
    def starts(seed, dtype=torch.float32):
        model = decoder(dtype=dtype)
        drawn = torch.get_rng_state()
        attach(model, Lora(8), seed)
        assert torch.equal(torch.get_rng_state(), drawn)
        return {name: p.detach() for name, p in matrices(model).items()}

    first, again, other = starts(0), starts(0), starts(1)
    wide = starts(0, torch.float64)
    for name, p in first.items():
        assert torch.equal(p, again[name])
        assert torch.equal(p.double(), wide[name])
        if "lora_B" in name:
            assert not p.any()
        else:
            assert not torch.equal(p, other[name])
    rows = [p[:, :32] for name, p in first.items() if "lora_A" in name]
    assert not any(torch.equal(rows[0], row) for row in rows[1:])  # one stream for all layers


# --- which layers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((), [f"layers.{i}.{name}" for i in range(LAYERS) for name in OURS]),
        (("v", "q"), [f"layers.{i}.attn.{name}" for i in range(LAYERS) for name in "qv"]),
        (("attn.q", "q"), [f"layers.{i}.attn.q" for i in range(LAYERS)]),
        (("layers.1.down",), ["layers.1.down"]),
        (("1.attn.o", "head"), ["layers.1.attn.o", "head"]),
    ],
)
def test_targets(targets, expected):
    model = decoder()
    attach(model, Lora(2, targets=targets), seed=0)
    assert adapted_layers(model) == expected


def test_targets_of_a_transformers_model():
    model = llama(tied=False)
    attach(model, Lora(2), seed=0)
    kinds = [f"self_attn.{n}_proj" for n in "qkvo"]
    kinds += [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert adapted_layers(model) == [f"model.layers.{i}.{kind}" for i in range(2) for kind in kinds]
    attach(other := llama(tied=False), Lora(2, targets=("lm_head",)), seed=0)
    assert adapted_layers(other) == ["lm_head"]


@pytest.mark.parametrize("target", ["query", "embed", "attn_norm", "attn", "ttn.q", ".q", "layers"])
def test_an_unknown_target(target):
    model = decoder()
    with pytest.raises(DllmError) as caught:
        attach(model, Lora(2, targets=("q", target)), seed=0)
    known = "this model's: q, k, v, o, gate, up, down, head"
    assert str(caught.value) == f"target {target!r} names no linear layer; {known}"
    assert all(p.requires_grad for p in model.parameters())  # nothing was done


def test_a_model_without_linear_layers_in_its_layers():
    config = GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(DllmError, match=r"target '\(\)' names no .*; this model's: lm_head"):
        attach(GPT2LMHeadModel(config), Lora(), seed=0)  # its projections are Conv1D
    with pytest.raises(DllmError, match="this model's: none"):
        attach(nn.Embedding(3, 3), Lora(), seed=0)


def test_a_subclass_of_linear_is_left_alone():
    """MultiheadAttention reads the weight of its out_proj itself."""
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    attach(model := nn.Sequential(layer), Lora(2), seed=0)
    assert adapted_layers(model) == ["0.linear1", "0.linear2"]


@pytest.mark.parametrize(
    ("model", "target", "owners"),
    [
        (lambda: decoder(weight_tying=True), "head", "embed.weight and head.weight"),
        (llama, "lm_head", "model.embed_tokens.weight and lm_head.weight"),
    ],
)
def test_a_tied_head_is_refused(model, target, owners):
    model = model()
    with pytest.raises(DllmError) as caught:
        attach(model, Lora(2, targets=(target,)), seed=0)
    assert str(caught.value).startswith(f"target {target!r}: {owners} are one tensor; expected")
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_used_twice_is_refused():
    twice = nn.Linear(4, 4)
    model = nn.ModuleList(nn.ModuleDict({"up": twice}) for _ in range(2))
    with pytest.raises(DllmError, match=r"target '0.up': 0.up.weight and 1.up.weight are one"):
        attach(model, Lora(2), seed=0)


# --- states -----------------------------------------------------------------------------------


def test_attaching_twice():
    attach(model := decoder(), Lora(2), seed=0)
    with pytest.raises(DllmError, match="attached to this model already: merge it first"):
        attach(model, Lora(2), seed=0)
    merge(model)
    attach(model, Lora(3, targets=("q",)), seed=0)
    assert lora_config(model).r == 3


@pytest.mark.parametrize("use", [merge, lora_config])
def test_without_an_adapter(use):
    with pytest.raises(DllmError, match="no adapter is attached to this Decoder"):
        use(decoder())


def test_modes_are_kept():
    for training in (True, False):
        model = decoder().train(training)
        attach(model, Lora(2), seed=0)
        assert is_adapted(model)
        merge(model)
        assert not is_adapted(model)
        assert {m.training for m in model.modules()} == {training}


def test_without_peft_an_adapter_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DllmError, match=r"adapters need peft.*pip install 'dllm-engine\[peft\]'"):
        attach(decoder(), Lora(2), seed=0)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rank": 0}, "rank=0: expected a whole number of at least 1"),
        ({"rank": 2.0}, "rank=2.0: expected a whole number of at least 1"),
        ({"rank": True}, "rank=True: expected a whole number"),
        ({"alpha": 0}, "alpha=0: expected a number above 0"),
        ({"alpha": float("nan")}, "alpha=nan: expected a number"),
        ({"alpha": float("inf")}, "alpha=inf: expected a number"),
        ({"alpha": "2"}, "alpha='2': expected a number"),
        ({"targets": "q"}, "targets='q': expected a tuple of module names"),
        ({"targets": ("q", "")}, r"targets=\('q', ''\): expected a tuple"),
        ({"targets": (1,)}, r"targets=\(1,\): expected a tuple"),
    ],
)
def test_bad_options(options, problem):
    with pytest.raises(DllmError, match=problem):
        Lora(**options)
