"""The decoder against transformers' own classes, a literal bf16 reference, and itself in fp64."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F

from dllm.cache.plan import ForwardPlan
from dllm.models.decoder import Decoder, LayerInputs, rotate
from dllm.models.loading import load_model
from dllm.models.spec import ModelSpec
from tests.models.checkpoints import VOCAB, make

LLAMA_TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
LLAMA_SIZES = {
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "tie_word_embeddings": "weight_tying",
}


def as_llama(name):
    """LLaDA's tensor name -> that of transformers' Llama."""
    parts = name.removeprefix("model.transformer.").split(".")
    if parts[0] == "blocks":
        return f"model.layers.{parts[1]}.{LLAMA_LAYER[parts[2]]}.weight"
    return f"{LLAMA_TOP[parts[0]]}.weight"


def transformers_twin(family, checkpoint):
    """transformers' class of the same layout, with the same weights, in fp32."""
    import transformers as tf

    c, tensors = checkpoint.config, checkpoint.tensors
    if family == "llada":
        kind, config = tf.LlamaForCausalLM, tf.LlamaConfig
        sizes = {theirs: c[ours] for theirs, ours in LLAMA_SIZES.items()}
        tensors = {as_llama(name): tensor for name, tensor in tensors.items()}
    else:
        qwen3 = family == "sdar"
        kind, config = (
            (tf.Qwen3ForCausalLM, tf.Qwen3Config)
            if qwen3
            else (tf.Qwen2ForCausalLM, tf.Qwen2Config)
        )
        sizes = {key: c[key] for key in (*LLAMA_SIZES, "head_dim") if key in c}
    twin = kind(
        config(
            **sizes,
            vocab_size=c["vocab_size"],
            rms_norm_eps=c["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]},
            attn_implementation="eager",
        )
    )
    missing, unexpected = twin.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if sizes["tie_word_embeddings"] else [])
    return twin.eval()


def additive(allowed):
    """4-D additive mask [1, 1, T, T] from a bool [T, T]."""
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]


def visible(length, block):
    block_of = torch.arange(length) // (block or length)
    return block_of[None] <= block_of[:, None]


@pytest.mark.parametrize(
    ("family", "changes", "block"),
    [
        ("llada", {}, None),
        ("llada", {"n_kv_heads": 2}, None),
        ("llada", {"weight_tying": True}, None),
        ("dream", {}, None),
        ("fast_dllm_v2", {}, 8),
        ("fast_dllm_v2", {"tie_word_embeddings": True}, 8),
        ("sdar", {}, 4),
        ("sdar", {"tie_word_embeddings": True}, 4),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path, family, changes, block):
    checkpoint = make(tmp_path, family, **changes)
    decoder = load_model(tmp_path, device="cpu")
    twin = transformers_twin(family, checkpoint)
    ids = torch.randint(VOCAB, (2, 21), generator=torch.Generator().manual_seed(1))
    logits = decoder(ids, ForwardPlan.full(21, batch=2))
    theirs = twin(input_ids=ids, attention_mask=additive(visible(21, block))).logits
    assert (logits - theirs).abs().max() <= 2e-5
    causal = twin(input_ids=ids).logits  # the mask does matter at these sizes
    assert (logits - causal).abs().max() > 1e-2


@torch.no_grad()
def test_far_positions_are_those_of_transformers(tmp_path):
    twin = transformers_twin("dream", make(tmp_path, "dream"))
    decoder = load_model(tmp_path, device="cpu")
    ids = torch.randint(VOCAB, (1, 4096), generator=torch.Generator().manual_seed(1))
    pos = torch.tensor([[0, 17, 2049, 4090, 4095]])
    plan = ForwardPlan(pos=pos, head=torch.arange(5)[None])
    mask = additive(torch.ones(5, 5, dtype=torch.bool))
    theirs = twin(input_ids=ids.gather(1, pos), position_ids=pos, attention_mask=mask).logits
    assert (decoder(ids, plan) - theirs).abs().max() <= 2e-5


# --- numeric switches -------------------------------------------------------------------------


def literal_logits(decoder: Decoder, ids, *, rope_fp32: bool):
    """A plain forward over all positions, written from the published code, in the model's dtype."""
    s, w = decoder.spec, decoder.state_dict()
    inv_freq = 1.0 / s.rope_theta ** (torch.arange(0, s.head_dim, 2).float() / s.head_dim)
    angle = torch.outer(torch.arange(ids.shape[1]).float(), inv_freq)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()

    def norm(x, weight):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + s.norm_eps)
        return weight * wide.to(x.dtype)

    def rope(x):
        kind = torch.float32 if rope_fp32 else x.dtype
        t = x.to(kind)
        half = torch.cat((-t[..., s.head_dim // 2 :], t[..., : s.head_dim // 2]), -1)
        return (t * cos.to(kind) + half * sin.to(kind)).to(x.dtype)

    x = F.embedding(ids, w["embed.weight"])
    for i in range(s.num_layers):
        part = {n.split(".", 2)[2]: t for n, t in w.items() if n.startswith(f"layers.{i}.")}
        h = norm(x, part["attn_norm.weight"])
        q, k, v = (
            F.linear(h, part[f"attn.{n}.weight"], part.get(f"attn.{n}.bias"))
            .unflatten(-1, (-1, s.head_dim))
            .transpose(1, 2)
            for n in "qkv"
        )
        a = F.scaled_dot_product_attention(rope(q), rope(k), v, enable_gqa=True)
        x = x + F.linear(a.transpose(1, 2).flatten(2), part["attn.o.weight"])
        h = norm(x, part["mlp_norm.weight"])
        gated = F.silu(F.linear(h, part["gate.weight"])) * F.linear(h, part["up.weight"])
        x = x + F.linear(gated, part["down.weight"])
    return F.linear(norm(x, w["norm.weight"]), w["head.weight"])


@pytest.mark.parametrize(("family", "rope_fp32"), [("llada", True), ("dream", False)])
@torch.no_grad()
def test_rope_precision_in_bf16(tmp_path, family, rope_fp32):
    """LLaDA rotates in fp32, Dream in the model's dtype; the wrong one is another bf16 network."""
    make(tmp_path, family)
    decoder = load_model(tmp_path, dtype="bfloat16", device="cpu")
    ids = torch.randint(VOCAB, (1, 64), generator=torch.Generator().manual_seed(2))
    logits = decoder(ids, ForwardPlan.full(64))
    right = literal_logits(decoder, ids, rope_fp32=rope_fp32)
    wrong = literal_logits(decoder, ids, rope_fp32=not rope_fp32)
    assert (logits - right).abs().max() < 0.02 < 0.1 < (logits - wrong).abs().max()


def test_partial_rope_leaves_the_rest_of_the_head():
    spec = small_spec(head_dim=8, rope_fraction=0.5)
    plan = ForwardPlan.full(3)
    run = LayerInputs.of(spec, plan, None, torch.float64)
    x = torch.randn(1, 4, 3, 8, dtype=torch.float64)
    turned = rotate(x, run, fp32=False)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[:, :, 0], x[:, :, 0])  # position 0 turns by nothing
    assert not torch.allclose(turned[:, :, 1:, :4], x[:, :, 1:, :4])


# --- plan and store, in fp64 ------------------------------------------------------------------

T = 20
CLOSE = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)


def small_spec(**changes):
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_size": 48,
        "norm_eps": 1e-5,
        "rope_theta": 1e4,
    }
    return ModelSpec(family="test", **(sizes | changes), mask_id=0, eos_id=1, pad_id=1)


def build(**changes):
    torch.manual_seed(0)
    decoder = Decoder(small_spec(**changes)).double().eval().requires_grad_(False)
    for p in decoder.parameters():
        p.copy_(torch.randn_like(p) * (1.5 * p.shape[1] ** -0.5 if p.ndim == 2 else 1))
    return decoder


@pytest.fixture(scope="module")
def decoder():
    return build()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(VOCAB, (2, T), generator=torch.Generator().manual_seed(3))


def query(positions, head=None, **masks):
    pos = torch.as_tensor(positions)
    pos = pos if pos.ndim == 2 else pos.expand(2, -1)
    head = torch.arange(pos.shape[1]).expand(2, -1) if head is None else torch.as_tensor(head)
    return ForwardPlan(pos=pos, head=head, **masks)


def test_only_requested_rows_reach_the_head(decoder, ids):
    full = decoder(ids, ForwardPlan.full(T, batch=2))
    head = torch.tensor([[5, 2, 2], [0, 19, 7]])
    rows = decoder(ids, ForwardPlan(pos=ForwardPlan.full(T, batch=2).pos, head=head))
    CLOSE(rows, torch.stack([full[b, head[b]] for b in range(2)]))


def test_query_order_does_not_matter(decoder, ids):
    full = decoder(ids, ForwardPlan.full(T, batch=2))
    order = torch.randperm(T, generator=torch.Generator().manual_seed(4))
    CLOSE(decoder(ids, query(order)), full[:, order])


def test_requery_of_unchanged_positions_gives_the_same_rows(decoder, ids):
    kv = decoder.new_kv(2, T)
    full = decoder(ids, ForwardPlan.full(T, batch=2), kv)
    CLOSE(full, decoder(ids, ForwardPlan.full(T, batch=2)))
    for positions in ([3], [0, 7, 8, 19], [19, 2]):
        CLOSE(decoder(ids, query(positions), kv), full[:, positions])
    # different positions per row
    mixed = query([[3, 4], [18, 0]])
    CLOSE(decoder(ids, mixed, kv), torch.stack((full[0, [3, 4]], full[1, [18, 0]])))


def test_queries_write_before_they_read(decoder, ids):
    """After a token changes, a query of it alone sees its own new key, not the stored one."""
    kv = decoder.new_kv(2, T)
    decoder(ids, ForwardPlan.full(T, batch=2), kv)
    changed = ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % VOCAB
    before = kv.k.clone()
    decoder(changed, query([6]), kv)
    touched = (kv.k != before).any(-1).any(2).any(0)  # [B, slots + 1]
    assert touched.nonzero()[:, 1].tolist() == [6, 6]
    fresh = decoder.new_kv(2, T)
    decoder(changed, query([6]), fresh)
    CLOSE(kv.k[0, :, :, 6], fresh.k[0, :, :, 6])  # layer 0 knows only the token


def test_dead_slots_are_never_read(decoder, ids):
    clean, dirty = decoder.new_kv(2, T), decoder.new_kv(2, T)
    dirty.k.fill_(1e30)
    dirty.v.fill_(1e30)
    for positions in (range(9), [4, 12], [0]):
        plan = query(list(positions))
        CLOSE(decoder(ids, plan, dirty), decoder(ids, plan, clean))
    assert [row.nonzero()[0].tolist() for row in dirty.live] == [[*range(9), 12]] * 2


def test_unwritten_queries_leave_the_store_alone(decoder, ids):
    kv = decoder.new_kv(2, T)
    decoder(ids, ForwardPlan.full(T, batch=2), kv)
    k, v, live = kv.k[..., :T, :].clone(), kv.v[..., :T, :].clone(), kv.live.copy()
    write = torch.tensor([[False, True], [False, False]])
    changed = (ids + 1) % VOCAB
    decoder(changed, query([3, 5], write=write), kv)
    same = (kv.k[..., :T, :] == k).all(-1).all(2).all(0)
    assert (~same).nonzero().tolist() == [[0, 5]]
    assert not torch.equal(kv.v[:, 0, :, 5], v[:, 0, :, 5])
    assert kv.live.tolist() == live.tolist()


@pytest.mark.parametrize("padding", [0, T - 1])
@pytest.mark.parametrize("block", [None, 4])
def test_ragged_batch_equals_rows_alone(ids, padding, block):
    """Row 1 queries 6 positions, row 0 all 20; padding repeats some real or unused position."""
    decoder = build(block_length=block)
    pos = torch.stack((torch.arange(T), torch.full((T,), padding)))
    pos[1, :6] = torch.arange(6)
    valid = torch.ones(2, T, dtype=torch.bool)
    valid[1, 6:] = False
    plan = ForwardPlan(pos=pos, head=torch.arange(T).expand(2, T), valid=valid)
    alone = [decoder(ids[b : b + 1], ForwardPlan.full(n)) for b, n in ((0, T), (1, 6))]
    for kv in (None, decoder.new_kv(2, T)):
        together = decoder(ids, plan, kv)
        CLOSE(together[:1], alone[0])
        CLOSE(together[1:, :6], alone[1])
    everything = torch.ones_like(valid)  # a policy's write mask does not overrule `valid`
    for mask in (None, everything):
        kv = decoder.new_kv(2, T)
        decoder(ids, dataclasses.replace(plan, write=mask), kv)
        assert kv.live.sum(1).tolist() == [T, 6]
        assert not kv.k[:, 1, :, 6:T].any()


def test_read_mask_hides_slots(decoder, ids):
    seen = [0, 1, 2, 7, 11]
    read = torch.zeros(2, T, dtype=torch.bool)
    read[:, seen] = True
    alone = decoder(ids, query(seen))
    kv = decoder.new_kv(2, T)
    CLOSE(decoder(ids, query(range(T), read=read), kv)[:, seen], alone)
    per_layer = read.expand(3, 2, T)
    CLOSE(decoder(ids, query(range(T), read=per_layer))[:, seen], alone)
    some = query([0, 1, 2, 7, 11, 19, 3], read=read)  # without a store: by position, not by query
    CLOSE(decoder(ids, some)[:, :5], alone)


def test_block_causal_logits_do_not_depend_on_later_blocks(ids):
    decoder = build(block_length=4)
    later = ids.clone()
    later[:, 8:] = (ids[:, 8:] + 1) % VOCAB
    before, after = (decoder(x, ForwardPlan.full(T, batch=2)) for x in (ids, later))
    CLOSE(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().amax(-1).min() > 1e-3
    inside = ids.clone()  # and inside a block attention goes both ways
    inside[:, 3] = (ids[:, 3] + 1) % VOCAB
    assert (before[:, 0] - decoder(inside, ForwardPlan.full(T, batch=2))[:, 0]).abs().max() > 1e-3


def test_block_causal_store_is_exact(ids):
    decoder = build(block_length=4)
    full = decoder(ids, ForwardPlan.full(T, batch=2))
    kv = decoder.new_kv(2, T)
    for start in range(0, T, 4):
        block = torch.arange(start, start + 4)
        CLOSE(decoder(ids, query(block), kv), full[:, block])


def test_grouped_heads_equal_repeated_heads(decoder, ids):
    plain = Decoder(small_spec(num_kv_heads=4)).double()
    state = decoder.state_dict()
    for name in state:
        if ".attn.k." in name or ".attn.v." in name:
            heads = state[name].unflatten(0, (2, 8))
            state[name] = heads.repeat_interleave(2, 0).flatten(0, 1)
    plain.load_state_dict(state)
    CLOSE(plain(ids, ForwardPlan.full(T, batch=2)), decoder(ids, ForwardPlan.full(T, batch=2)))
