"""The Markov head and its file."""

import pytest
import torch
from safetensors.torch import save_file

from dllm.errors import DllmError, LoadError
from dllm.models.markov import FILE, MarkovHead, load_markov, save_markov

VOCAB, RANK = 7, 3


def trained(vocab=VOCAB, rank=RANK):
    torch.manual_seed(0)
    head = MarkovHead(vocab, rank)
    torch.nn.init.normal_(head.right.weight)
    return head


def test_a_new_head_adds_nothing_and_can_learn():
    head = MarkovHead(VOCAB, RANK)
    assert (head.bias(torch.arange(VOCAB)) == 0).all()
    head.bias(torch.arange(VOCAB))[:, 0].sum().backward()
    assert head.right.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_the_bias_is_a_row_of_the_product(shape):
    head, prev = trained(), torch.randint(VOCAB, shape)
    table = head.left.weight @ head.right.weight.T  # [before, token]
    assert head.bias(prev).shape == (*shape, VOCAB)
    torch.testing.assert_close(head.bias(prev), table[prev])
    torch.testing.assert_close(head(prev), table[prev])
    assert torch.linalg.matrix_rank(table) == RANK
    assert (head.vocab_size, head.rank) == (VOCAB, RANK)


def test_a_file_gives_the_head_back(tmp_path):
    head = trained()
    save_markov(head, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o644
    again = load_markov(tmp_path, VOCAB)
    assert not again.training
    for one, other in zip(head.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    half = load_markov(tmp_path, VOCAB, dtype=torch.bfloat16)
    assert half.left.weight.dtype == half.right.weight.dtype == torch.bfloat16


def test_no_file_is_no_head(tmp_path):
    assert load_markov(tmp_path, VOCAB) is None


def write(folder, tensors, form="dllm-markov-1"):
    save_file(tensors, folder / FILE, {"format": form} if form else None)


GOOD = {"left.weight": torch.zeros(VOCAB, RANK), "right.weight": torch.zeros(VOCAB, RANK)}


@pytest.mark.parametrize(
    ("tensors", "form", "said"),
    [
        (GOOD, "other", "format is 'other', expected 'dllm-markov-1'"),
        (GOOD, None, "format is None"),
        (
            {"left.weight": torch.zeros(VOCAB, RANK)},
            "dllm-markov-1",
            "holds 'left.weight', exp",
        ),
        ({**GOOD, "bias": torch.zeros(1)}, "dllm-markov-1", "holds"),
        (
            {**GOOD, "right.weight": torch.zeros(VOCAB, RANK + 1)},
            "dllm-markov-1",
            r"'right.weight' has shape \[7, 4\], expected \[7, 3\]",
        ),
        (
            {name: torch.zeros(VOCAB + 1, RANK) for name in GOOD},
            "dllm-markov-1",
            r"'left.weight' has shape \[8, 3\], expected \[7, 3\] \(the drafter's vocabulary",
        ),
        ({**GOOD, "left.weight": torch.zeros(VOCAB)}, "dllm-markov-1", r"shape \[7\], expected"),
        (
            {**GOOD, "right.weight": torch.full((VOCAB, RANK), torch.nan)},
            "dllm-markov-1",
            "'right.weight': expected finite weights",
        ),
        ({name: torch.zeros(VOCAB, 0) for name in GOOD}, "dllm-markov-1", r"\[7, rank\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, tensors, form, said):
    write(tmp_path, tensors, form)
    with pytest.raises(LoadError, match=said):
        load_markov(tmp_path, VOCAB)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(LoadError, match=f"{FILE}: expected a safetensors file"):
        load_markov(tmp_path, VOCAB)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_a_head_has_sizes(sizes):
    with pytest.raises(DllmError, match="=0: expected a whole number of at least 1"):
        MarkovHead(*sizes)
