import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.eval.tasks.datasets import is_held_out
from dllm.train.data import POOL, Shuffled, TrainingPair, lay_out
from dllm.train.tokenizer import ASSISTANT, USER
from tests.train.test_mdlm import batch
from tests.train.words import TOKENIZER


def test_batches_are_a_function_of_seed_and_index():
    assert torch.equal(batch(3).ids, batch(3).ids)
    assert not any(torch.equal(batch(3).ids, batch(i).ids) for i in (0, 1, 2, 4))
    assert not torch.equal(batch(3).ids, batch(3, seed=1).ids)


def test_batches_hold_templated_prompts_that_are_not_held_out():
    for index in range(8):
        b = batch(index)
        for ids, start, end in zip(b.ids.tolist(), b.start, b.end, strict=True):
            prompt = TOKENIZER.decode(ids[1 : start - 1], skip_special_tokens=False)
            assert ids[0] == TOKENIZER.token_to_id(USER)
            assert ids[start - 1] == TOKENIZER.token_to_id(ASSISTANT)
            assert not is_held_out(prompt)
            assert set(ids[end:]) == {0}


tokens = st.lists(st.integers(9, 90), min_size=1, max_size=9)
pairs = st.lists(
    st.tuples(tokens, tokens).map(lambda each: TrainingPair(*each)), min_size=1, max_size=12
)


@given(pairs, st.integers(1, 5), st.integers(0, 3))
def test_every_pair_comes_once_an_epoch(rows, size, seed):
    """Whatever batches and pools it is cut into: n draws show every pair, the next n again."""
    rows = [TrainingPair([i + 100], row.answer) for i, row in enumerate(rows)]
    source = Shuffled(rows, (0, 0), size, seed)
    stream = [rows[source.place(number)].prompt[0] for number in range(2 * len(rows))]
    assert sorted(stream[: len(rows)]) == sorted(stream[len(rows) :]) == [r.prompt[0] for r in rows]
    pools = -(-len(rows) // (size * POOL))
    shown = [int(i) for index in range(pools * POOL) for i in source(index).ids[:, 0]]
    assert sorted(shown) == sorted(
        rows[source.place(number)].prompt[0] for number in range(pools * POOL * size)
    )


@given(pairs, st.integers(0, 4))
def test_rows_are_laid_out_with_their_ends(rows, tail):
    b = lay_out(rows, (7, 8), tail)
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    assert b.ids.shape == (len(rows), longest + 2 + tail)
    assert b.size == b.ids.numel()
    for ids, start, end, row in zip(b.ids.tolist(), b.start, b.end, rows, strict=True):
        assert (ids[:start], ids[start:end]) == (row.prompt, row.answer)
        assert ids[end:] == [7] + [8] * (len(ids) - end - 1)


def test_the_order_of_a_trajectory_goes_with_its_tokens():
    whole = TrainingPair([9, 9], [3, 4, 5], [2, 1, 3, 1])
    cut = TrainingPair([9], [3, 4], [1, 2], whole=False)
    b = lay_out([whole, cut, TrainingPair([9], [6])], (0, 0))
    assert b.order[0].tolist() == [0, 0, 2, 1, 3, 1, 1]
    assert b.order[1].tolist() == [0, 1, 2, -1, 2, 2, 2]
    assert b.order[2].tolist() == [0, -1, -1, -1, -1, -1, -1]
    assert b.whole.tolist() == [True, False, True]


def test_padding_is_drawn_by_batch():
    rows = [TrainingPair([1], [2])] * 4
    widths = [Shuffled(rows, (0, 0), 2, tail=5, tail_share=0.5)(i).ids.shape[1] for i in range(200)]
    assert set(widths) == {4, 5, 6, 7, 8, 9}
    assert 0.4 < sum(width == 4 for width in widths) / 200 < 0.8
    assert torch.equal(Shuffled(rows, (0, 0), 2)(3).ids, Shuffled(rows, (0, 0), 2)(3).ids)
