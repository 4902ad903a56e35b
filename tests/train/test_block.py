"""The block-diffusion loss: one forward computes what decoding computes block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.plan import ForwardPlan
from dllm.models.decoder import Decoder
from dllm.models.spec import ModelSpec
from dllm.train.ar_to_block import ArToBlock
from dllm.train.block import Streams, groups, nll
from dllm.train.data import TrainingPair, lay_out

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

    return lay_out([TrainingPair(tokens(p), tokens(a)) for p, a in lengths], (EOS, EOS))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


lengths = st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), min_size=1, max_size=4)
batches = st.builds(batch_of, lengths)
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
        logits = model(canvas[None], ForwardPlan.full(stop))[0, max(pos - 1, 0)]
        total = total - weights[view, row, pos] * logits.log_softmax(-1)[token]
    return total / weights.sum()


@settings(max_examples=15)
@given(batches, recipes, seeds)
def test_it_is_what_decoding_each_block_computes(batch, recipe, seed):
    model = decoder(recipe.block_length)
    masked, weights = recipe.corrupt(batch, seeded(seed))
    with torch.no_grad():
        value = recipe.loss(model, batch, seeded(seed), EVERY)
        expected = literal(model, batch, masked, weights)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", None])
def test_fp32_models_compute_in_bf16_where_the_processor_does(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, name: True})
    batch, recipe = batch_of([(9, 7), (3, 12)]), ArToBlock(block_length=8)
    exact = recipe.loss(decoder(8), batch, seeded(0), EVERY).item()
    rounded = recipe.loss(decoder(8).float(), batch, seeded(0), EVERY)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact, rel=0.05)
    assert (abs(rounded.item() - exact) > 1e-6) == (name is not None)


@given(batches, recipes, seeds)
def test_every_token_of_an_answer_is_learned_in_one_of_the_views(batch, recipe, seed):
    masked, weights = recipe.corrupt(batch, seeded(seed))
    size = recipe.block_length
    for row, (start, end) in enumerate(zip(batch.start.tolist(), batch.end.tolist())):
        both, weight = masked[:, row].sum(0), weights[:, row]
        stop = (end // size + 1) * size
        assert (both[start : end + 1] == 1).all()
        assert not both[:start].any()
        assert not both[stop:].any()
        tail = both[end + 1 : stop]
        assert (tail == 1).all() or (tail == 2).all()
        assert torch.equal(weight[:, : end + 1] > 0, masked[:, row, : end + 1])
        assert weight[:, start : end + 1].sum() == end + 1 - start
        assert weight[:, end + 1 :].sum().item() == pytest.approx(
            recipe.tail_weight * tail.sum().item(), abs=1e-5
        )
    assert masked.shape[2] == (int(batch.end.max()) // size + 1) * size


def test_the_number_of_masks_in_a_block_is_uniform():
    """In each view, and in one block whatever it is in another; no count off by 4 sigma."""
    n, size = 4000, 4
    batch = batch_of([(size, 2 * size - 1)] * n)  # two blocks of answer
    masked, _ = ArToBlock(block_length=size).corrupt(batch, seeded(0))
    counts = masked[:, :, size:].unflatten(2, (2, size)).sum(3)  # [views, n, blocks]
    table = torch.zeros(size + 1, size + 1)
    for view in counts:
        table.index_put_((view[:, 0], view[:, 1]), torch.ones(n), accumulate=True)
        assert (table - n / (size + 1) ** 2).abs().max() < 4 * (n / (size + 1) ** 2) ** 0.5
        table.zero_()


def test_frontier_blocks_are_cut_at_a_random_place_of_the_answer():
    n, size = 4000, 4
    batch = batch_of([(6, 7)] * n)  # 6 to 13: two tokens of block 1, all of 2, two of 3
    masked, _ = ArToBlock(block_length=size, frontier=1.0).corrupt(batch, seeded(0))
    for opens, closes in ((6, 8), (8, 12), (12, 14)):
        view = masked[0, :, opens:closes]
        assert (view[:, -1:] & (view.int().diff(dim=1) >= 0).all(1, keepdim=True)).all()
        counts = torch.bincount(view.sum(1), minlength=closes - opens + 1)
        expected = n / (closes - opens)
        assert counts[0] == 0
        assert (counts[1:] - expected).abs().max() < 4 * expected**0.5
    cuts = [masked[0, :, a:b].sum(1).double() for a, b in ((6, 8), (8, 12))]
    assert torch.corrcoef(torch.stack(cuts))[0, 1].abs() < 4 * n**-0.5
    masked, _ = ArToBlock(block_length=size, frontier=0.3).corrupt(batch, seeded(0))
    cut = (masked[0, :, 8:12].int().diff(dim=1) >= 0).all(1) & masked[0, :, 11]
    # any count of masks is equally likely, and behind all others in 1 of (4 over count)
    others = (1 / 4 + 1 / 6 + 1 / 4 + 1) / 5
    assert cut.double().mean() == pytest.approx(0.3 + 0.7 * others, abs=4 * (0.25 / n) ** 0.5)

    batch = batch_of([(16, 31)] * n)
    masked, _ = ArToBlock(block_length=16, frontier=0.5).corrupt(batch, seeded(0))
    view = masked[0, :, 16:].unflatten(1, (2, 16)).int()
    kinds = (view.diff(dim=2) >= 0).all(2) & (view[:, :, -1] == 1)  # by chance 1 in 14 others
    assert torch.corrcoef(kinds.T.double())[0, 1].abs() < 4 * n**-0.5


def test_the_tail_is_hidden_from_both_views_in_a_share_of_the_rows():
    n = 4000
    batch = batch_of([(5, 1)] * n)  # the end at 6: one more token in its block
    masked, _ = ArToBlock(block_length=8, tail_hidden=0.4).corrupt(batch, seeded(0))
    both = masked[:, :, 7].sum(0) == 2
    assert both.double().mean() == pytest.approx(0.4, abs=4 * (0.24 / n) ** 0.5)
    split = masked[0, ~both, 7].double()
    assert split.mean() == pytest.approx(0.5, abs=4 * (0.25 / len(split)) ** 0.5)


@settings(max_examples=20)
@given(st.data(), batches, recipes, seeds)
def test_nothing_leaks_from_masked_tokens_or_later_blocks(data, batch, recipe, seed):
    """A prediction stays when a token changes that is masked in its view, or in a later block."""
    size = recipe.block_length
    masked, weights = recipe.corrupt(batch, seeded(seed))
    view, row, pos = data.draw(st.sampled_from((weights > 0).nonzero().tolist()))
    ids = torch.nn.functional.pad(batch.ids, (0, masked.shape[2]))[:, : masked.shape[2]]
    where = torch.arange(masked.shape[2])
    later = where >= (pos // size + 1) * size
    hidden = masked[view, row] & (where // size == pos // size) & (where != pos)
    changed = ids.clone()
    changed[row, later | hidden] = (changed[row, later | hidden] + 7) % VOCAB
    one = torch.zeros_like(weights)
    one[view, row, pos] = 1
    model = decoder(size)
    ((streams, _),) = groups(batch.start[row, None], batch.end[row, None], size)
    own = slice(row, row + 1)
    with torch.no_grad():
        before, after = (
            nll(model, streams, t[own], masked[:, own], one[:, own]) for t in (ids, changed)
        )
    assert before.item() == after.item()


def gradients(recipe, model, batch, parts):
    model.zero_grad()
    loss = 0.0
    for part in parts:
        value = recipe.loss(model, batch, seeded(3), part)
        value.backward()
        loss += value.item()
    return loss, [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@settings(max_examples=8)
@given(batches, recipes)
def test_shares_of_a_batch_add_up_to_it(batch, recipe):
    model = decoder(recipe.block_length)
    whole, expected = gradients(recipe, model, batch, [EVERY])
    parts = [slice(i, None, 3) for i in range(3)]  # some have no rows
    value, found = gradients(recipe, model, batch, parts)
    assert value == pytest.approx(whole, abs=1e-12)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert any(g.any() for g in expected)


def test_only_the_answers_blocks_go_through_the_views():
    """[view 0 | view 1 | clean]: 2 blocks twice, and the 3 blocks before the last."""
    streams = Streams(first=2, last=3, size=4)
    assert streams.blocks == [2, 3, 2, 3, 0, 1, 2]
    assert streams.pos(torch.device("cpu")).tolist() == [
        *range(8, 16),
        *range(8, 16),
        *range(12),
    ]
    assert streams.views == 16
