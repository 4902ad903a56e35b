"""The block-diffusion loss: one forward computes what decoding computes block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.plan import Plan
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.ar_to_block import ArToBlock
from dllm.train.block import Streams
from dllm.train.data import Pair, lay_out

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
    """Rows of random tokens with prompts and answers of these lengths."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count):
        return torch.randint(2, VOCAB, (count,), generator=generator).tolist()

    return lay_out([Pair(tokens(p), tokens(a)) for p, a in lengths], (EOS, EOS))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


lengths = st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), min_size=1, max_size=4)
batches = st.builds(batch_of, lengths.map(lambda rows: [(p + 1, a) for p, a in rows]))
recipes = st.builds(
    ArToBlock,
    block_length=st.sampled_from([1, 2, 4, 8]),
    frontier=st.sampled_from([0.0, 0.5, 1.0]),
    tail_weight=st.sampled_from([0.0, 0.1, 1.0]),
    tail_hidden=st.sampled_from([0.0, 0.5, 1.0]),
)
seeds = st.integers(0, 99)
EVERY = slice(None)


def literal(model, batch, masked, weights):
    """The loss by one plain forward per token: the row as it stands when its block is decoded."""
    size, total = model.spec.block_length, torch.zeros((), dtype=torch.float64)
    for view, row, pos in weights.nonzero().tolist():
        stop = (pos // size + 1) * size
        canvas = torch.full((stop,), EOS)
        known = batch.ids[row, :stop]
        canvas[: len(known)] = known
        canvas[stop - size :][masked[view, row, stop - size : stop]] = MASK
        token = EOS if pos >= len(known) else known[pos]
        logits = model(canvas[None], Plan.full(stop))[0, max(pos - 1, 0)]
        total = total - weights[view, row, pos] * logits.log_softmax(-1)[token]
    return total / weights.sum()


@settings(max_examples=40)
@given(batches, recipes, seeds)
def test_it_is_what_decoding_each_block_computes(batch, recipe, seed):
    model = decoder(recipe.block_length)
    masked, weights = recipe.corrupt(batch, seeded(seed))
    with torch.no_grad():
        value = recipe.loss(model, batch, seeded(seed), EVERY)
        expected = literal(model, batch, masked, weights)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
