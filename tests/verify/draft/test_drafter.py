"""A model as a drafter: its columns are those of one pass, and its prefix is computed once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm.cache.plan import ForwardPlan
from dllm.errors import DllmError
from dllm.models.hf import HFModel
from dllm.models.markov import MarkovHead
from dllm.verify.draft.drafter import ModelDrafter
from tests.cache.models import EOS, MASK, PLAIN, VOCAB, decoder

MODELS = [(0, None), (1, None), (0, 4), (1, 4)]  # shift, block length
texts = st.lists(st.sampled_from(PLAIN), min_size=1, max_size=9)


def columns(lattice):
    """A lattice as [K, V] probabilities."""
    out = np.zeros((len(lattice), VOCAB))
    for i, (tokens, logp) in enumerate(zip(lattice.tokens, lattice.logp)):
        out[i, tokens[tokens >= 0]] = np.exp(logp[tokens >= 0])
    return out


def plainly(model, context, depth, masks=None, tail=()):
    """The same columns from one pass over everything, without a store."""
    ids = [*context, *[MASK] * (masks or depth), *tail]
    plan = ForwardPlan.full(len(ids))
    first = len(context) - model.spec.shift
    plan = ForwardPlan(plan.pos, torch.arange(first, first + depth)[None])
    with torch.no_grad():
        logits = model(torch.tensor([ids]), plan)[0].float()
    logits[:, MASK] = -torch.inf
    return logits.double().softmax(-1).numpy()


def drafter(model, **options):
    return ModelDrafter(model, width=VOCAB, **options)


@pytest.mark.parametrize(("shift", "block"), MODELS)
@given(context=texts, depth=st.integers(1, 6))
@settings(max_examples=10)
def test_the_first_draft_is_one_pass_over_text_and_masks(shift, block, context, depth):
    model = decoder(shift, block)
    (lattice,) = drafter(model).open([40]).propose([context], [depth])
    assert np.abs(columns(lattice) - plainly(model, context, depth)).max() < 1e-6
    assert not (lattice.tokens == MASK).any()


@pytest.mark.parametrize("shift", [0, 1])
@given(parts=st.lists(texts, min_size=2, max_size=4), depth=st.integers(1, 4))
@settings(max_examples=10)
def test_a_block_causal_model_drafts_as_without_a_store(shift, parts, depth):
    """Its cache is exact: keys of full blocks never change, the open block is computed anew."""
    model, context = decoder(shift, 4), []
    session = drafter(model).open([60])
    for part in parts:
        context = [*context, *part]
        (lattice,) = session.propose([context], [depth])
        assert np.abs(columns(lattice) - plainly(model, context, depth)).max() < 1e-6


@pytest.mark.parametrize(("shift", "block"), MODELS)
@given(
    rows=st.lists(st.lists(texts, min_size=3, max_size=3), min_size=2, max_size=3), data=st.data()
)
@settings(max_examples=10)
def test_a_row_of_a_batch_drafts_as_alone(shift, block, rows, data):
    """Whatever its neighbours ask for, and also after some of them have left."""
    model = decoder(shift, block)
    together = drafter(model).open([60] * len(rows))
    alone = [drafter(model).open([60]) for _ in rows]
    alive, contexts = list(range(len(rows))), [[] for _ in rows]
    for turn in range(3):
        depths = [data.draw(st.integers(0, 4)) for _ in alive]
        for row in alive:
            contexts[row] = [*contexts[row], *rows[row][turn]]
        found = together.propose([contexts[row] for row in alive], depths)
        for row, depth, lattice in zip(alive, depths, found, strict=True):
            (expected,) = alone[row].propose([contexts[row]], [depth])
            assert len(lattice) == depth
            assert np.abs(columns(lattice) - columns(expected)).max(initial=0) < 1e-6
        if len(alive) > 1 and data.draw(st.booleans()):
            gone = data.draw(st.integers(0, len(alive) - 1))
            together.keep([i for i in range(len(alive)) if i != gone])
            alive.pop(gone)


@pytest.mark.parametrize(("shift", "block"), MODELS)
def test_a_round_computes_new_tokens_and_masks_only(shift, block):
    model, counts = decoder(shift, block), []
    hook = model.register_forward_pre_hook(lambda _, args: counts.append(args[1].pos.shape[1]))
    session = drafter(model).open([60])
    session.propose([[3] * 21], [4])
    session.propose([[3] * 21 + [4, 6]], [4])
    session.propose([[3] * 21 + [4, 6]], [4])
    hook.remove()
    open_block = 21 % block if block else 0
    assert counts[:2] == [25, 2 + 4 + open_block]
    assert counts[2] == 4 + (23 % block if block else shift)


def test_a_text_that_is_taken_back_is_forgotten_from_where_it_differs():
    model = decoder()
    session, fresh = drafter(model).open([60]), drafter(model).open([60])
    session.propose([[3, 4, 6, 7, 8]], [3])
    fresh.propose([[3, 4]], [3])
    (lattice,) = session.propose([[3, 4, 9, 9]], [3])
    # keys of positions 0 and 1 are those of the first call, the rest is computed
    assert session.cached == [4]
    assert session.kv.live[0].nonzero()[0].tolist() == [0, 1, 2, 3]
    assert columns(lattice).shape == (3, VOCAB)
    (again,) = session.propose([[3, 4]], [2])
    assert session.cached == [2]
    assert len(again) == 2


def test_masks_ahead_and_a_separator_are_seen():
    model, context = decoder(), [3, 4, 6]
    (far,) = drafter(model, horizon=7).open([40]).propose([context], [2])
    assert np.abs(columns(far) - plainly(model, context, 2, masks=7)).max() < 1e-6
    (ended,) = drafter(model, separator=EOS).open([40]).propose([context], [3])
    assert np.abs(columns(ended) - plainly(model, context, 3, tail=[EOS])).max() < 1e-6
    assert np.abs(columns(ended) - plainly(model, context, 3)).max() > 1e-3


@pytest.mark.parametrize("shift", [0, 1])
def test_more_steps_fill_the_surest_positions_first(shift):
    """Two steps over four masks: two are filled, and the others' columns see them."""
    model, context = decoder(shift), [3, 4, 6]
    (lattice,) = drafter(model, steps=2).open([40]).propose([context], [4])
    once = plainly(model, context, 4)
    filled = np.sort(np.argsort(-once.max(1), kind="stable")[:2])
    ids = [*context, *[MASK] * 4]
    for i in filled:
        ids[len(context) + i] = int(once[i].argmax())
    head = torch.arange(len(context) - shift, len(context) - shift + 4)[None]
    with torch.no_grad():  # the context's keys are those of the first pass
        kv = model.new_kv(1, 7)
        first = torch.tensor([[*context, *[MASK] * 4]])
        model(first, ForwardPlan(ForwardPlan.full(7).pos, head), kv)
        start = len(context) - shift
        pos = torch.arange(start, 7)[None]
        logits = model(torch.tensor([ids]), ForwardPlan(pos, head - start), kv)[0].float()
    logits[:, MASK] = -torch.inf
    twice = logits.double().softmax(-1).numpy()
    for i in range(4):
        expected = once[i] if i in filled else twice[i]
        assert np.abs(columns(lattice)[i] - expected).max() < 1e-6


def head_of(seed):
    torch.manual_seed(seed)
    head = MarkovHead(VOCAB, 3)
    torch.nn.init.normal_(head.right.weight, std=2.0)
    return head.double()


@pytest.mark.parametrize(("shift", "block"), MODELS)
@given(rows=st.lists(texts, min_size=1, max_size=3), depth=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_a_markov_head_biases_each_column_by_the_token_before(shift, block, rows, depth):
    """The first by the last token of the context."""
    model, head = decoder(shift, block), head_of(depth)
    session = drafter(model, markov=head, temperature=0.8).open([40] * len(rows))
    depths = [depth + i % 2 for i in range(len(rows))]
    with torch.no_grad():
        table = head.bias(torch.arange(VOCAB)).numpy()
    for context, size, lattice in zip(rows, depths, session.propose(rows, depths), strict=True):
        assert len(lattice) == size
        plain = np.log(np.maximum(plainly(model, context, size), 1e-300))
        for i, tokens in enumerate(lattice.tokens):
            befores = lattice.tokens[i - 1] if i else [context[-1]]
            for u, before in enumerate(befores):
                powers = np.exp((plain[i] + table[before]) / 0.8)
                powers[MASK] = 0
                distribution, logp = (
                    powers / powers.sum(),
                    lattice.pairs[i, u] if i else lattice.logp[0],
                )
                if before >= 0:
                    known = tokens >= 0
                    assert np.abs(np.exp(logp[known]) - distribution[tokens[known]]).max() < 1e-5
                    assert known.sum() == VOCAB - 1


def test_a_draft_longer_than_the_store_is_not_made():
    session = ModelDrafter(decoder(), limit=8).open([10])
    assert len(session.propose([[3] * 15], [5])[0]) == 0
    assert len(session.propose([[3] * 9], [50])[0]) == 8  # and never more than the limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2, "markov": MarkovHead(VOCAB, 2)}, "steps=2: expected 1 with a Markov head"),
        ({"markov": MarkovHead(VOCAB + 1, 2)}, f"for {VOCAB + 1} tokens: expected {VOCAB}"),
    ],
)
def test_knobs_are_checked(options, message):
    with pytest.raises(DllmError, match=message):
        ModelDrafter(decoder(), **options)


def test_a_model_without_a_store_is_refused():
    wrapped = HFModel(lambda **_: None, vocab_size=9, mask_id=1, eos_id=2)
    with pytest.raises(DllmError, match="keeps no keys and values"):
        ModelDrafter(wrapped)
