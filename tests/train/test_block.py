"""The block-diffusion loss: one forward computes what decoding computes block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.plan import Plan
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.block import BlockLoss
from dllm.train.data import Batch

MASK, EOS, VOCAB = 1, 0, 23


def decoder(block, seed=0):
    spec = ModelSpec(
        family="block",
        vocab_size=VOCAB,
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=24,
        norm_eps=1e-5,
        rope_theta=1e4,
        mask_id=MASK,
        eos_id=EOS,
        pad_id=EOS,
        shift=1,
        block_length=block,
    )
    model = Decoder(spec)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=2.0 * p.shape[1] ** -0.5, generator=generator)
    return model.double()


def batch_of(lengths, seed=0):
    """Rows with prompts and answers of these lengths, padded with EOS as `make_batch` pads."""
    generator = torch.Generator().manual_seed(seed)
    width = max(p + a for p, a in lengths) + 2
    ids = torch.full((len(lengths), width), EOS)
    for row, (p, a) in enumerate(lengths):
        ids[row, : p + a] = torch.randint(2, VOCAB, (p + a,), generator=generator)
    start = torch.tensor([p for p, _ in lengths])
    return Batch(ids, start, start + torch.tensor([a for _, a in lengths]))


batches = st.builds(
    batch_of,
    st.lists(st.tuples(st.integers(1, 14), st.integers(0, 14)), min_size=1, max_size=5),
    st.integers(0, 99),
)
losses = st.builds(
    BlockLoss,
    frontier=st.sampled_from([0.0, 0.5, 1.0]),
    tail_weight=st.sampled_from([0.0, 0.1, 1.0]),
    tail_hidden=st.sampled_from([0.0, 0.5, 1.0]),
)
sizes = st.sampled_from([1, 2, 4, 8])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def padded(batch, width):
    extra = torch.full((len(batch.ids), width), EOS)
    return torch.cat([batch.ids, extra], 1)[:, :width]


def literal(model, batch, masked, weights):
    """The loss by one plain forward per token: the row as it stands when its block is decoded."""
    size, total = model.spec.block_length, torch.zeros((), dtype=torch.float64)
    ids = padded(batch, masked.shape[2])
    for view, row, pos in weights.nonzero().tolist():
        stop = (pos // size + 1) * size
        canvas = ids[row, :stop].clone()
        own = slice(stop - size, stop)
        canvas[own] = torch.where(masked[view, row, own], MASK, canvas[own])
        logits = model(canvas[None], Plan.full(stop))[0, max(pos - 1, 0)]
        total = total - weights[view, row, pos] * logits.log_softmax(-1)[ids[row, pos]]
    return total / weights.sum()


@settings(max_examples=60, deadline=None)
@given(batches, losses, sizes, st.integers(0, 99))
def test_it_is_what_decoding_each_block_computes(batch, loss, size, seed):
    model = decoder(size)
    masked, weights = loss.corrupt(batch, size, seeded(seed))
    with torch.no_grad():
        value = loss(model, batch, seeded(seed), slice(None))
        expected = literal(model, batch, masked, weights)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
