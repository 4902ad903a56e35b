"""A Markov head beside the bundled drafter: found and used, and the text stays the target's."""

import os

import pytest
import torch

import dllm.verify
from dllm.errors import DllmError, LoadError
from dllm.models.hub import resolve
from dllm.models.loading import load_model
from dllm.models.markov import MarkovHead, save_markov
from dllm.verify.draft.rows import RowDrafter

PROMPTS = ["Reverse the list: pear, fig, plum", "Sort the list: 8, 2, 5"]


def head_for(vocab_size, std):
    torch.manual_seed(3)
    head = MarkovHead(vocab_size, 4)
    torch.nn.init.normal_(head.right.weight, std=std)
    return head


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled drafter with a head whose biases are noise."""
    path, source = tmp_path_factory.mktemp("headed"), resolve("tiny")
    for file in source.iterdir():
        os.symlink(file, path / file.name)
    save_markov(head_for(load_model(source).spec.vocab_size, 1.0), path)
    return path


@pytest.fixture(scope="module")
def headed(folder):
    return dllm.verify.load("tiny-ar", folder, dtype="float64")


@pytest.fixture(scope="module")
def plain(folder):
    return dllm.verify.load("tiny-ar", folder, dtype="float64", markov=False)


def emitted(outputs):
    return [[token for each in output.rounds for token in each.tokens] for output in outputs]


def test_the_file_beside_a_checkpoint_is_used_unless_told_otherwise(headed, plain):
    head = headed.drafter.markov
    assert (head.rank, head.left.weight.dtype) == (4, torch.float64)
    assert plain.drafter.markov is None
    assert dllm.verify.load("tiny-ar", "tiny").drafter.markov is None


def test_without_a_drafter_there_is_no_head_to_leave_out():
    with pytest.raises(
        DllmError, match=r"markov=\.\.\.: an option of a drafter, but there is none"
    ):
        dllm.verify.load("tiny-ar", markov=False)


def test_a_head_for_another_vocabulary_is_refused(tmp_path):
    for file in resolve("tiny").iterdir():
        os.symlink(file, tmp_path / file.name)
    save_markov(head_for(9, 1.0), tmp_path)
    with pytest.raises(LoadError, match=r"'left.weight' has shape \[9, 4\]"):
        dllm.verify.load("tiny-ar", tmp_path)
    assert dllm.verify.load("tiny-ar", tmp_path, markov=False).drafter is not None


@pytest.mark.parametrize(
    ("search", "options"),
    [
        ("argmax", {"control": "cost", "reuse": 2}),
        ("cps", {"control": "fixed:depth=12,nodes=12", "sources": "none"}),
        ("product", {"control": "adl:k_min=4,k_max=12", "temperature": 1.0, "seed": 3}),
        ("coupled", {"control": "fixed:depth=12,nodes=12", "reuse": 1}),
    ],
)
def test_the_text_is_the_targets(headed, plain, search, options):
    """Token for token, with branches, tail reuse and controls; a bad head only costs drafts."""
    expected = plain.generate(PROMPTS, **{**options, "control": "fixed:nodes=0", "reuse": 0})
    outputs = headed.generate(PROMPTS, search=search, **options)
    assert emitted(outputs) == emitted(expected)


@pytest.mark.parametrize("search", ["sample", "rsd", "kseq", "greedy-plus-one"])
def test_drawn_drafts_run_with_reuse_and_branches(headed, search):
    options = {"temperature": 1.0, "control": "cost", "reuse": 2, "seed": 1}
    outputs = headed.generate(PROMPTS, search=search, **options)
    assert all(output.lossless and output.finish_reason for output in outputs)


def test_columns_that_are_used_again_go_on_behind_what_was_emitted(headed, monkeypatch):
    """The first column of a rest is the head's distribution behind the last token of the text."""
    observe, checked = RowDrafter.observe, []

    def watched(self, row, tokens):
        observe(self, row, tokens)
        lattice, count, last = row.lattice, len(tokens), tokens[-1]
        if count < len(lattice) and lattice.slot(count - 1, last) is not None:
            expected = lattice.distribution_behind(count, last).tokens
            assert row.left.tokens[0, : len(expected)].tolist() == expected.tolist()
            checked.append(True)

    monkeypatch.setattr(RowDrafter, "observe", watched)
    headed.generate(PROMPTS, search="argmax", control="fixed:depth=12,nodes=2", reuse=1)
    assert checked


def test_a_head_that_was_never_trained_drafts_as_before(folder, plain):
    engine = dllm.verify.load("tiny-ar", folder, dtype="float64")
    torch.nn.init.zeros_(engine.drafter.markov.right.weight)
    options = {"control": "fixed:depth=12,nodes=12", "sources": "none"}
    for search in ("argmax", "product"):
        ours, theirs = (e.generate(PROMPTS, search=search, **options) for e in (engine, plain))
        assert [o.rounds for o in ours] == [o.rounds for o in theirs]
