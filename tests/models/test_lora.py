"""The attached, the merged and the switched-off model against plain weights changed by hand."""

import copy

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
from dllm.models.lora import Lora, LoraLinear, attach, attached, disabled, merge
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


def changed_by_hand(model, lora):
    """All parameters of an attached model, with W + alpha / rank * B A written out in numpy."""
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name in [n.removesuffix(".lora_A") for n in found if n.endswith(".lora_A")]:
        a, b = (found.pop(f"{name}.lora_{which}").double().numpy() for which in "AB")
        product = np.einsum("or,ri->oi", b, a) * (lora.alpha / lora.rank)
        found[f"{name}.weight"] += torch.from_numpy(product)
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


@settings(max_examples=30)
@given(MODELS, LORAS)
def test_attached_and_merged_are_the_changed_weights_and_disabled_is_the_base(model, lora):
    plain, before = copy.deepcopy(model), logits(model)
    attach(model, lora, seed=3)
    assert torch.equal(logits(model), before)  # a change of zero
    train_by_hand(model)
    weights = changed_by_hand(model, lora)
    with torch.no_grad():
        args = (IDS, PLAN) if isinstance(plain, Decoder) else (IDS,)
        out = functional_call(plain, weights, args)
    expected = out if isinstance(plain, Decoder) else out.logits
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(model), expected, rtol=1e-9, atol=1e-9)
    with disabled(model):
        assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(model), expected, rtol=1e-9, atol=1e-9)

    merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-9, atol=1e-9)
    assert [name for name, _ in model.named_parameters()] == list(weights)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(p.requires_grad for p in model.parameters())


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_layer_of_any_shape_and_dtype(size_in, size_out, rank, bias, dtype):
    base = nn.Linear(size_in, size_out, bias=bias).to(dtype)
    lora = Lora(rank, 3.0)
    layer = LoraLinear(base, lora, torch.Generator().manual_seed(0))
    assert {layer.lora_A.dtype, layer.lora_B.dtype} == {max(dtype, torch.float32, key=bits)}
    assert layer.lora_A.shape == (rank, size_in)
    assert layer.lora_B.shape == (size_out, rank)
    draw({"a": layer.lora_A, "b": layer.lora_B}, 0.5)
    x = torch.randn(2, 3, size_in, generator=torch.Generator().manual_seed(2)).to(dtype)
    a, b, w = (t.detach().double() for t in (layer.lora_A, layer.lora_B, layer.weight))
    expected = x.double() @ (w + 3.0 / rank * b @ a).T
    expected += base.bias.double() if bias else 0
    close = {"rtol": 0, "atol": 30 * torch.finfo(dtype).eps}
    out = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, **close)
    torch.testing.assert_close(layer.merged()(x).double(), expected, **close)


def bits(dtype):
    return torch.finfo(dtype).bits


def test_the_sum_is_rounded_once():
    """In bfloat16 257 is 256: the change of 257 to a weight of -256 must come out as 1."""
    base = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    layer = LoraLinear(base, Lora(2, 2.0), torch.Generator())
    with torch.no_grad():
        layer.weight.fill_(-256.0)
        layer.lora_A.copy_(torch.tensor([[256.0], [1.0]]))
        layer.lora_B.fill_(1.0)
    plain = layer.merged()
    assert plain.weight.dtype == torch.bfloat16
    assert plain.weight.item() == 1.0


def test_no_weight_is_copied_or_renamed():
    model = decoder("fast_dllm_v2", dtype=torch.float32)
    before, pointers = model.state_dict(), {n: p.data_ptr() for n, p in model.named_parameters()}
    parameters = dict(model.named_parameters())
    attach(model, Lora(2), seed=0)
    kept = {n: p for n, p in model.named_parameters() if "lora_" not in n}
    assert {n: p.data_ptr() for n, p in kept.items()} == pointers
    assert all(parameters[name] is p for name, p in kept.items())
    found = model.load_state_dict({n: t + 1 for n, t in before.items()}, strict=False)
    assert found.unexpected_keys == []
    assert all("lora_" in name for name in found.missing_keys)
    merge(model)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == pointers


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


def test_gradients_are_those_of_the_changed_weight():
    layer = LoraLinear(nn.Linear(3, 4).double(), Lora(2, 5.0), torch.Generator().manual_seed(0))
    draw({"a": layer.lora_A, "b": layer.lora_B}, 1.0)
    layer.weight.requires_grad_(False)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, a, b: functional_call(layer, {"lora_A": a, "lora_B": b}, (x,)),
        (x, layer.lora_A, layer.lora_B),
    )


def test_autocast_computes_in_its_dtype_and_leaves_gradients_wide():
    layer = LoraLinear(nn.Linear(8, 8), Lora(4, 4.0), torch.Generator().manual_seed(0))
    draw({"a": layer.lora_A, "b": layer.lora_B}, 0.5)
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        narrow = layer(x.bfloat16())
    assert out.dtype == narrow.dtype == torch.bfloat16
    assert torch.equal(out, narrow)
    torch.testing.assert_close(out.float(), layer(x), rtol=0, atol=0.1)
    out.float().sum().backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32


def test_a_starts_random_by_seed_and_b_at_zero():
    def matrices(seed, dtype=torch.float32):
        model = decoder(dtype=dtype)
        attach(model, Lora(8), seed)
        return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    first, again, other = matrices(0), matrices(0), matrices(1)
    wide = matrices(0, torch.float64)
    for name, p in first.items():
        assert torch.equal(p, again[name])
        assert torch.equal(p.double(), wide[name])
        if name.endswith("lora_B"):
            assert not p.any()
        else:
            assert not torch.equal(p, other[name])
            assert p.std().item() == pytest.approx(p.shape[1] ** -0.5, rel=0.25)
    rows = [p[:, :32] for name, p in first.items() if name.endswith("lora_A")]
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
    assert list(attached(model)) == expected


def test_targets_of_a_transformers_model():
    model = llama(tied=False)
    attach(model, Lora(2), seed=0)
    kinds = [f"self_attn.{n}_proj" for n in "qkvo"]
    kinds += [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert list(attached(model)) == [f"model.layers.{i}.{kind}" for i in range(2) for kind in kinds]
    attach(other := llama(tied=False), Lora(2, targets=("lm_head",)), seed=0)
    assert list(attached(other)) == ["lm_head"]


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
    assert list(attached(model)) == ["0.linear1", "0.linear2"]


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
    assert {layer.lora.rank for layer in attached(model).values()} == {3}


@pytest.mark.parametrize("use", [merge, attached, lambda model: disabled(model).__enter__()])
def test_without_an_adapter(use):
    with pytest.raises(DllmError, match="no adapter is attached to this Decoder"):
        use(decoder())


def test_disabled_nests_and_survives_an_error():
    attach(model := decoder(), Lora(2), seed=0)
    base = logits(model)
    train_by_hand(model)
    adapted = logits(model)
    with disabled(model):
        with disabled(model):
            pass
        assert torch.equal(logits(model), base)
    with pytest.raises(KeyError), disabled(model):
        raise KeyError
    assert torch.equal(logits(model), adapted)


def test_modes_are_kept():
    for training in (True, False):
        model = decoder().train(training)
        attach(model, Lora(2), seed=0)
        assert {m.training for m in model.modules()} == {training}
        merge(model)
        assert {m.training for m in model.modules()} == {training}


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
